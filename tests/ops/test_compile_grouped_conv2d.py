"""The Triton kernels of grouped_conv2d compile to machine code for GPUs that are not here."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from triton.language import int32, int64
from triton_compile import check_compiles, compiled, driver, skip_interpreted  # noqa: F401

from fastnets.kernels.grouped_conv2d import dw_launches, dx_launches, fwd_launches
from fastnets.ops._convolution import empty, output_size

pytestmark = [skip_interpreted, pytest.mark.usefixtures("driver")]

NCHW, NHWC = torch.contiguous_format, torch.channels_last


def grouped_launches(
    shape=(16, 128, 56, 56), out=128, groups=32, kernel=(3, 3), stride=(1, 1), dilation=(1, 1), *,
    dtype=torch.float32, layout=NHWC, activation=None, need=(True, True, True),
):  # fmt: skip
    """What grouped_conv2d launches forward and backward; the tensors have no memory."""

    def tensor(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = tensor(*shape).contiguous(memory_format=layout)
    w, b = tensor(out, shape[1] // groups, *kernel), tensor(out)
    geometry = stride, (kernel[0] // 2, kernel[1] // 2), dilation
    y = empty(x, (shape[0], out, *output_size(x, w, *geometry)))
    need_dx, need_dw, need_db = need
    launches = fwd_launches(x, w, b, y, *geometry, activation)
    launches += dx_launches(y, w, x, *geometry) if need_dx else []
    return launches + dw_launches(y, x, w, w if need_dw else None, b if need_db else None, *geometry)


@pytest.mark.parametrize(
    "dtype, layout", list(product((torch.float32, torch.float64, torch.bfloat16, torch.float16), (NCHW, NHWC))), ids=str
)
def test_grouped_compiles(dtype, layout, tmp_path):
    check_compiles(grouped_launches(dtype=dtype, layout=layout, activation="silu"), tmp_path)


@pytest.mark.parametrize(
    "case",
    [
        {"shape": (16, 256, 56, 56), "out": 256, "stride": (2, 2), "activation": "relu"},
        {"shape": (1, 1024, 7, 7), "out": 1024, "layout": NCHW},
        {"shape": (16, 240, 28, 28), "out": 60, "groups": 3, "kernel": (1, 1)},
        {"shape": (1, 36, 28, 28), "out": 144, "groups": 3, "kernel": (1, 1), "layout": NCHW},
        {"shape": (2, 12, 9, 9), "out": 6, "groups": 3, "kernel": (2, 5), "dilation": (2, 1)},
        {"need": (False, False, True)},
        {"need": (False, True, False), "layout": NCHW},
    ],
    ids=str,
)
def test_grouped_choices_compile(case, tmp_path):
    check_compiles(grouped_launches(**case), tmp_path)


def test_grouped_sizes_share_a_compilation():
    """Batch, height and width are arguments of a kernel: no value of theirs, 1 included, compiles it anew."""
    shapes = (16, 128, 56, 56), (1, 128, 112, 112), (3, 128, 1, 9999)
    for launches in zip(*map(grouped_launches, shapes), strict=True):
        assert len({compiled(launch).hash for launch in launches}) == 1


def test_grouped_indexes_with_64_bits_where_32_do_not_reach():
    def index_types(batch: int) -> set:
        launches = grouped_launches((batch, 1024, 32, 32), 1024)
        return {launch.constants["INDEX"] for launch in launches[:-1]}

    assert index_types(2047) == {int32}
    assert index_types(2048) == {int64}

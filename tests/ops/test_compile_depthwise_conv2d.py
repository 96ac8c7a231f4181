"""The Triton kernels of depthwise_conv2d compile to machine code for GPUs that are not here."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from triton.language import int32, int64
from triton_compile import check_compiles, compiled, driver, skip_interpreted  # noqa: F401

from fastnets.kernels.depthwise_conv2d import dw_launches, dx_launches, fwd_launches
from fastnets.ops._convolution import empty, output_size

pytestmark = [skip_interpreted, pytest.mark.usefixtures("driver")]

NCHW, NHWC = torch.contiguous_format, torch.channels_last


def depthwise_launches(
    shape=(16, 96, 56, 56), kernel=(3, 3), m=1, stride=(1, 1), dilation=(1, 1), *,
    dtype=torch.float32, layout=NHWC, bias=True, activation=None, need=(True, True, True),
):  # fmt: skip
    """What depthwise_conv2d launches forward and backward; the tensors have no memory."""

    def tensor(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = tensor(*shape).contiguous(memory_format=layout)
    w, b = tensor(shape[1] * m, 1, *kernel), tensor(shape[1] * m)
    geometry = stride, (kernel[0] // 2, kernel[1] // 2), dilation
    y = empty(x, (shape[0], w.shape[0], *output_size(x, w, *geometry)))

    need_dx, need_dw, need_db = need
    launches = fwd_launches(x, w, b if bias else None, y, *geometry, activation)
    launches += dx_launches(y, w, x, *geometry) if need_dx else []
    launches += dw_launches(y, x, w, w if need_dw else None, b if need_db else None, *geometry)
    return launches


@pytest.mark.parametrize(
    "dtype, layout, size",
    [
        *product((torch.float32, torch.bfloat16), (NCHW, NHWC), (3, 5, 7)),
        *product((torch.float64, torch.float16), (NCHW, NHWC), (3,)),
    ],
    ids=str,
)
def test_depthwise_compiles(dtype, layout, size, tmp_path):
    activation = {3: "relu6", 5: "silu", 7: None}[size]
    launches = depthwise_launches(kernel=(size, size), dtype=dtype, layout=layout, activation=activation)
    check_compiles(launches, tmp_path)


@pytest.mark.parametrize(
    "case",
    [
        {"stride": (2, 2), "layout": NCHW, "activation": "relu"},
        {"stride": (2, 1), "dilation": (1, 2), "activation": "leaky_relu"},
        {"m": 2, "kernel": (1, 5), "activation": "hardswish", "dtype": torch.bfloat16},
        {"kernel": (31, 31), "activation": "sigmoid", "need": (False, True, False)},  # 31 groups of rows
        {"shape": (1, 96, 7, 7), "bias": False, "dtype": torch.float16},  # one warp a program
        {"shape": (1, 3, 7, 7), "layout": NCHW, "activation": "sigmoid", "dtype": torch.float64},
        {"need": (False, True, False)},
        {"need": (False, False, True), "layout": NCHW},
        {"shape": (2048, 1024, 32, 32), "dtype": torch.bfloat16},  # 2^31 elements
        {"shape": (2048, 1024, 32, 32), "dtype": torch.bfloat16, "layout": NCHW},
    ],
    ids=str,
)
def test_depthwise_choices_compile(case, tmp_path):
    check_compiles(depthwise_launches(**case), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_depthwise_moves_vectors_in_channels_last(dtype):
    fwd, dx, *_ = depthwise_launches(dtype=dtype)
    for launch in (fwd, dx):
        ptx = compiled(launch).asm["ptx"]
        assert "ld.global.v4.b32" in ptx and "st.global.v4.b32" in ptx


def test_depthwise_sizes_share_a_compilation():
    """Batch, height and width are arguments of a kernel: no value of theirs, 1 included, compiles it anew."""
    shapes = (16, 96, 56, 56), (1, 96, 112, 112), (3, 96, 1, 9999)
    for launches in zip(*map(depthwise_launches, shapes), strict=True):
        assert len({compiled(launch).hash for launch in launches}) == 1


def test_depthwise_indexes_with_64_bits_where_32_do_not_reach():
    def index_types(batch: int) -> set:
        return {launch.constants["INDEX"] for launch in depthwise_launches((batch, 1024, 32, 32))[:-1]}

    assert index_types(2047) == {int32}
    assert index_types(2048) == {int64}

"""The Triton kernels of precision_gate_conv2d compile to machine code for GPUs that are not here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton.language import int32, int64
from triton_compile import check_compiles, compiled, driver, skip_interpreted  # noqa: F401

from fastnets.kernels.precision_gate_conv2d import fwd_launches
from fastnets.ops._convolution import empty, output_size

pytestmark = [skip_interpreted, pytest.mark.usefixtures("driver")]

NCHW, NHWC = torch.contiguous_format, torch.channels_last


def launches(
    shape=(16, 64, 56, 56), outputs=64, kernel=(3, 3), groups=1, stride=(1, 1), *,
    dtype=torch.float32, layout=NHWC, bias=True, bits=(8, 4, 8),
):  # fmt: skip
    """What a call launches; the tensors have no memory."""

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, w = tensor(*shape).contiguous(memory_format=layout), tensor(outputs, shape[1] // groups, *kernel)
    geometry = stride, (kernel[0] // 2, kernel[1] // 2), (1, 1)
    y = empty(x, (shape[0], outputs, *output_size(x, w, *geometry)))
    b = tensor(outputs) if bias else None
    open = tensor(dtype=torch.int64)
    return fwd_launches(x, w, tensor(outputs), b, tensor(), tensor(), y, open, *geometry, groups, *bits)


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"dtype": torch.bfloat16, "layout": NCHW},
        {"dtype": torch.float16, "kernel": (1, 1), "outputs": 24, "bias": False},
        {"dtype": torch.float64, "bits": (5, 2, 3)},
        {"groups": 64, "stride": (2, 2)},
        {"shape": (2048, 1024, 32, 32), "kernel": (1, 1), "dtype": torch.bfloat16},  # 2^31 elements
    ],
    ids=str,
)
def test_compiles(case, tmp_path):
    check_compiles(launches(**case), tmp_path)


def test_sums_run_on_int8_tensor_cores():
    *_, conv = launches()
    ptx = compiled(conv).asm["ptx"]
    assert ".s32.s8.s8" in ptx


def test_products_and_sums_are_not_fused():
    """The magic number that rounds must meet a product that is rounded already."""
    quantize, *_ = launches()
    assert "fma.rn" not in compiled(quantize).asm["ptx"].replace("fma.rn.ftz", "")


def test_indexes_with_64_bits_where_32_do_not_reach():
    def index_types(batch: int) -> set:
        return {launch.constants["INDEX"] for launch in launches((batch, 1024, 32, 32), 32, (1, 1))[::2]}

    assert index_types(2047) == {int32}
    assert index_types(2048) == {int64}

"""The Triton kernels of batch_moments and sync_batch_norm compile to machine code for GPUs that are not here."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from triton.language import int32, int64
from triton_compile import check_compiles, compiled, driver, skip_interpreted  # noqa: F401

from fastnets.kernels import batch_moments as moments
from fastnets.kernels import sync_batch_norm as norm
from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops.batch_moments import empty_like, sum_type

pytestmark = [skip_interpreted, pytest.mark.usefixtures("driver")]

NCHW, NHWC = torch.contiguous_format, torch.channels_last


def launches(
    shape=(16, 96, 56, 56),
    *,
    dtype=torch.float32,
    layout=NHWC,
    affine=True,
    params=None,
    counted=False,
    activation=None,
):
    """What batch_moments and sync_batch_norm launch forward and backward; the tensors have no memory."""
    x = torch.empty(shape, dtype=dtype, device="meta")
    x = x.contiguous(memory_format=layout) if x.dim() == 4 else x
    mean, var, sums = (x.new_empty(size, dtype=sum_type(x)) for size in (shape[1], shape[1], (2, shape[1])))
    weight = x.new_empty(shape[1], dtype=params or sum_type(x)) if affine else None
    count, vectors = mean.new_empty(()) if counted else 99, (mean, var, weight, weight)
    return [
        *moments.fwd_launches(x, mean, var, as_variance=True),
        *norm.fwd_launches(x, *vectors, empty_like(x), 1e-5, activation),
        *norm.reduce_launches(x, x, *vectors, sums, 1e-5, activation),
        *norm.dx_launches(x, x, *vectors, sums, count, empty_like(x), 1e-5, activation),
    ]


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype, layout", list(product(DTYPES, (NCHW, NHWC))), ids=str)
def test_batch_norm_compiles(dtype, layout, tmp_path):
    check_compiles(launches(dtype=dtype, layout=layout), tmp_path)


@pytest.mark.parametrize(
    "case",
    [
        {"affine": False, "counted": True},
        {"dtype": torch.float16, "params": torch.float16, "layout": NCHW},
        {"shape": (64, 100)},
        *({"activation": name} for name in list(ACTIVATIONS)[1:]),
        {"activation": "silu", "dtype": torch.float64},
        {"shape": (1, 3, 7, 7), "layout": NCHW, "dtype": torch.float64},
        {"shape": (2048, 1024, 32, 32), "dtype": torch.bfloat16},  # 2^31 elements
        {"shape": (2048, 1024, 32, 32), "dtype": torch.bfloat16, "layout": NCHW},
    ],
    ids=str,
)
def test_batch_norm_choices_compile(case, tmp_path):
    check_compiles(launches(**case), tmp_path)


@pytest.mark.parametrize("layout", (NCHW, NHWC), ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batch_norm_moves_vectors(dtype, layout):
    parts, _, fwd, reduce, _, dx = launches((16, 24, 28, 28), dtype=dtype, layout=layout)
    for launch in (parts, fwd, reduce, dx):
        assert "ld.global.v4.b32" in compiled(launch).asm["ptx"]
    for launch in (fwd, dx):
        assert "st.global.v4.b32" in compiled(launch).asm["ptx"]


def test_batch_norm_sizes_share_a_compilation():
    """Batch, height and width are arguments of a kernel: no value of theirs, 1 included, compiles it anew."""
    shapes = (16, 96, 56, 56), (3, 96, 112, 112), (3, 96, 3, 9999)
    for several in zip(*map(launches, shapes), strict=True):
        assert len({compiled(launch).hash for launch in several}) == 1


def test_batch_norm_indexes_with_64_bits_where_32_do_not_reach():
    def index_types(batch: int) -> set:
        return {launch.constants["INDEX"] for launch in launches((batch, 1024, 32, 32)) if "INDEX" in launch.constants}

    assert index_types(2047) == {int32}
    assert index_types(2048) == {int64}

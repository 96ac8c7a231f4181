"""The Triton kernels of corner_pool compile to machine code for GPUs that are not here."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from triton.language import int32, int64
from triton_compile import check_compiles, compiled, driver, skip_interpreted  # noqa: F401

from fastnets.kernels.corner_pool import bwd_launches, fwd_launches, sum_launches
from fastnets.ops.corner_pool import DIRECTIONS

pytestmark = [skip_interpreted, pytest.mark.usefixtures("driver")]

NCHW, NHWC = torch.contiguous_format, torch.channels_last


def launches(direction="top", shape=(8, 128, 128, 128), *, dtype=torch.float32, layout=NHWC, first=True, add=False):
    """What a pool launches forward and backward; the tensors have no memory."""
    x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout)
    forward = fwd_launches(x, x, *DIRECTIONS[direction], add)
    return forward + (bwd_launches(x, x, x, *DIRECTIONS[direction], first) if dtype.is_floating_point else [])


@pytest.mark.parametrize(
    "direction, dtype, layout", [*product(DIRECTIONS, (torch.float32, torch.bfloat16), (NCHW, NHWC))], ids=str
)
def test_corner_pool_compiles(direction, dtype, layout, tmp_path):
    check_compiles(launches(direction, dtype=dtype, layout=layout), tmp_path)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64, torch.int64), ids=str)
@pytest.mark.parametrize("layout", (NCHW, NHWC), ids=str)
@pytest.mark.parametrize("reverse", (True, False))
def test_corner_pool_sum_compiles(reverse, layout, dtype, tmp_path):
    x = torch.empty((8, 128, 128, 128), dtype=dtype, device="meta").contiguous(memory_format=layout)
    check_compiles(sum_launches(x, x, x, reverse), tmp_path)


@pytest.mark.parametrize(
    "case",
    [
        {"dtype": torch.float64, "direction": "left", "layout": NCHW},
        {"dtype": torch.float16, "first": False},
        {"dtype": torch.int64, "direction": "left", "layout": NCHW},
        {"dtype": torch.bool},
        {"add": True, "direction": "right", "layout": NCHW},
        {"shape": (1, 3, 7, 1), "direction": "left", "layout": NCHW},
        {"shape": (1, 3, 7, 2048), "direction": "right", "layout": NCHW, "first": False},
        {"shape": (1, 3, 7, 2049), "direction": "left", "layout": NCHW},
        {"shape": (1024, 128, 128, 128), "direction": "left", "layout": NCHW},  # 2^31 elements
        {"shape": (1024, 128, 128, 128)},
    ],
    ids=str,
)  # fmt: skip
def test_corner_pool_choices_compile(case, tmp_path):
    check_compiles(launches(**case), tmp_path)


def test_corner_pool_sizes_share_a_compilation():
    shapes = (8, 128, 128, 128), (1, 128, 64, 99), (3, 128, 100, 65)
    for several in zip(*(launches("left", s) for s in shapes), strict=True):
        assert len({compiled(launch).hash for launch in several}) == 1


def test_corner_pool_indexes_with_64_bits_where_32_do_not_reach():
    assert {launch.constants["INDEX"] for launch in launches(shape=(1023, 128, 128, 128))} == {int32}
    assert {launch.constants["INDEX"] for launch in launches(shape=(1024, 128, 128, 128))} == {int64}

"""The Triton kernels of strip_pool compile to machine code for GPUs that are not here."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from check_op import DTYPES
from triton.language import int32, int64
from triton_compile import check_compiles, compiled, driver, skip_interpreted  # noqa: F401

from fastnets.kernels.strip_pool import bwd_launches, fwd_launches
from fastnets.ops._convolution import empty

pytestmark = [skip_interpreted, pytest.mark.usefixtures("driver")]

NCHW, NHWC = torch.contiguous_format, torch.channels_last


def launches(shape=(4, 256, 60, 60), *, dtype=torch.float32, layout=NHWC):
    """What strip_pool launches forward and backward; the tensors have no memory."""
    x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout)
    n, c, h, w = shape
    rows, columns = empty(x, (n, c, h, 1)), empty(x, (n, c, 1, w))
    return fwd_launches(x, rows, columns) + bwd_launches(rows, columns, x)


@pytest.mark.parametrize("dtype, layout", [*product(DTYPES, (NCHW, NHWC))], ids=str)
def test_strip_pool_compiles(dtype, layout, tmp_path):
    check_compiles(launches(dtype=dtype, layout=layout), tmp_path)


@pytest.mark.parametrize("shape", [(1, 3, 7, 1), (1, 512, 1, 9), (2, 256, 119, 119), (4096, 128, 64, 64)], ids=str)
@pytest.mark.parametrize("layout", [NCHW, NHWC], ids=str)
def test_strip_pool_choices_compile(shape, layout, tmp_path):
    check_compiles(launches(shape, layout=layout), tmp_path)


def test_strip_pool_sizes_share_a_compilation():
    """Those whose widths have the same next power of two."""
    shapes = (4, 256, 60, 60), (1, 256, 61, 37), (3, 256, 119, 59)
    for several in zip(*map(launches, shapes), strict=True):
        assert len({compiled(launch).hash for launch in several}) == 1


def test_strip_pool_indexes_with_64_bits_where_32_do_not_reach():
    assert {launch.constants["INDEX"] for launch in launches((4095, 128, 64, 64))} == {int32}
    assert int64 in {launch.constants["INDEX"] for launch in launches((4096, 128, 64, 64))}

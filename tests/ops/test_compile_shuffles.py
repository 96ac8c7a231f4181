"""The Triton kernels of the shuffles compile to machine code for GPUs that are not here."""

from __future__ import annotations

import pytest
import torch
from triton.language import int32, int64
from triton_compile import check_compiles, compiled, driver, skip_interpreted  # noqa: F401

from fastnets.kernels.channel_shuffle import channel_shuffle_launches, shuffle_split_launches
from fastnets.kernels.pixel_shuffle import pixel_shuffle_launches, pixel_unshuffle_launches
from fastnets.ops._convolution import empty

pytestmark = [skip_interpreted, pytest.mark.usefixtures("driver")]

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def tensor(*shape, dtype=torch.float32, layout=torch.contiguous_format):
    return torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128], ids=str
)
def test_compiles(dtype, layout, tmp_path):
    x = tensor(16, 116, 28, 28, dtype=dtype, layout=layout)
    coarse = tensor(1, 12, 540, 960, dtype=dtype, layout=layout)
    fine = empty(coarse, (1, 3, 1080, 1920))
    launches = channel_shuffle_launches(x, x, 2) + shuffle_split_launches((x, x), (x, x), False)
    launches += pixel_shuffle_launches(coarse, fine, 2) + pixel_unshuffle_launches(fine, coarse, 2)
    check_compiles(launches, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_bytes_compile(dtype, layout, tmp_path):
    coarse = tensor(1, 12, 540, 960, dtype=dtype, layout=layout)
    fine = tensor(1, 3, 1080, 1920, dtype=torch.uint8, layout=layout)
    check_compiles(pixel_shuffle_launches(coarse, fine, 2), tmp_path)


def test_sizes_share_a_compilation():
    """Those of axes do; strides decide about vector loads."""
    hashes = set()
    for n, h in ((16, 32), (2, 16), (3, 48)):
        (launch,) = pixel_shuffle_launches(tensor(n, 12, h, 32), tensor(n, 3, 2 * h, 64), 2)
        hashes.add(compiled(launch).hash)
    assert len(hashes) == 1


def test_indexes_with_64_bits_where_32_do_not_reach():
    for batch, expected in ((31, int32), (33, int64)):
        x = tensor(batch, 64, 1024, 1024, dtype=torch.uint8)
        (launch,) = channel_shuffle_launches(x, x, 2)
        assert launch.constants["INDEX"] == expected

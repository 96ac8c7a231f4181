"""Walls stop whoever reads or writes beside a tensor, and nobody else."""

from __future__ import annotations

import ctypes
import os
import signal

import pytest
import torch
from walls import walled, walls

from fastnets import ops


def ends(access):
    """The signal that ends a forked process which does that, 0 if none does."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # pytest would print where
        access()
        os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("dtype", (torch.uint8, torch.bfloat16, torch.float32, torch.complex128), ids=str)
@pytest.mark.parametrize("size", [(1,), (5, 3), (2, 3, 40, 60)])
def test_numbers_can_be_read_and_what_lies_beside_cannot(dtype, size):
    t = torch.randn(size).to(dtype)
    for side, beside in (("before", -1), ("after", t.numel() * t.itemsize)):
        (copy,) = walled([t], side)
        assert torch.equal(copy, t) and copy.stride() == t.stride() and copy.data_ptr() % t.itemsize == 0
        assert ends(lambda: ctypes.string_at(copy.data_ptr(), t.numel() * t.itemsize)) == 0  # noqa: B023
        assert ends(lambda: ctypes.string_at(copy.data_ptr() + beside, 1)) == signal.SIGSEGV  # noqa: B023
        assert ends(lambda: ctypes.memset(copy.data_ptr() + beside, 0, 1)) == signal.SIGSEGV  # noqa: B023


def test_strides_stay_and_nothing_has_no_walls():
    x = torch.arange(48.0).view(2, 3, 2, 4)[:, 1:, :, ::3]
    copy, missing, empty = walled([x, None, x[:0]], "after")
    assert torch.equal(copy, x) and copy.stride() == x.stride() and missing is None and empty.shape == x[:0].shape


def test_cpu_kernels_see_copies_and_what_they_write_comes_back(cpu_kernels):
    x, into = (torch.randn(1, 4, 3, 3).contiguous(memory_format=torch.channels_last) for _ in range(2))
    with walls("after"):
        assert torch.equal(ops.channel_shuffle(x, 2), torch.nn.functional.channel_shuffle(x, 2))
        assert torch.ops.fastnets_cpu.add_images(x, x, None, into) is into and torch.equal(into, 2 * x)

"""The maxima of a direct convolution's results, which never leave the caches, against the two kernels one by one."""

from __future__ import annotations

import pytest
import torch
from convolutions import whole
from edges import check_refuses, check_thread_counts

from fastnets.ops._packed import pack_panels

LAST = torch.channels_last
cpu = torch.ops.fastnets_cpu


def both(x, o, kernel, stride, padding, windows, activation="relu"):
    """What the one kernel gives, and what the two give."""
    c, pairs = x.shape[1], x.dtype == torch.bfloat16 and x.shape[1] > 4
    torch.manual_seed(0)
    rows = whole(o, kernel[0] * kernel[1] * c)
    panels = pack_panels(rows.to(x.dtype) if pairs else rows, 2 if pairs else 1)
    sides = padding if len(padding) == 4 else (*padding, *padding)
    conv = (x, panels, o, kernel, stride, sides, whole(o))
    made = cpu.direct_conv2d(*conv, None, activation, [], None)
    return cpu.direct_max_pool2d(*conv, activation, *windows), cpu.max_pool2d(made, *windows)


def check(*args):
    got, expected = both(*args)
    assert got.is_contiguous(memory_format=LAST) and torch.equal(got, expected)


types = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
POOLS = {  # kernel, stride, padding, ceil_mode
    "3/2": ((3, 3), (2, 2), (1, 1), False),
    "3/2, ceil": ((3, 3), (2, 2), (0, 0), True),
    "2/2": ((2, 2), (2, 2), (0, 0), False),
    "3/1": ((3, 3), (1, 1), (1, 1), False),
    "apart": ((1, 2), (3, 4), (0, 1), False),
    "high": ((5, 1), (1, 1), (2, 0), False),
    "wide": ((1, 4), (2, 3), (0, 2), True),
}


@pytest.mark.parametrize("windows", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("size", ((1, 2), (8, 9), (13, 31)))
@types
def test_cpu_geometries(walled_cpu_kernels, dtype, size, windows):
    for n in (1, 3):
        x = whole(n, 3, *(s + 4 for s in size)).to(dtype)
        for given in (x, x.contiguous(memory_format=LAST)):
            check(given, 24, (3, 3), (1, 1), (0, 1), windows)
            check(given, 24, (4, 2), (2, 3), (2, 0), windows)
            check(given, 24, (3, 3), (2, 2), (0, 0, 1, 1), windows)


@pytest.mark.parametrize("o", (1, 15, 16, 33, 70))
@pytest.mark.parametrize("c", (1, 3, 6))
@pytest.mark.parametrize("activation", (None, "relu6", "silu"))
def test_cpu_channels(walled_cpu_kernels, c, o, activation):
    for dtype in [torch.bfloat16] + [torch.float32] * (c <= 4):
        check(whole(2, c, 11, 12).to(dtype), o, (3, 3), (1, 1), (1, 1), POOLS["3/2"], activation)


def test_cpu_threads_and_images_do_not_change_a_bit(cpu_kernels):
    """Rows that one window shares with the next are made by two threads, and are not those of the image before."""
    x = torch.randn(5, 3, 40, 30).contiguous(memory_format=LAST)
    one = lambda images: both(images, 24, (3, 3), (2, 2), (1, 1), POOLS["3/2"], "silu")[0]
    check_thread_counts(lambda: [one(x)])
    assert torch.equal(one(x), torch.cat([one(image.contiguous(memory_format=LAST)) for image in x.split(1)]))


@pytest.mark.parametrize("number", (torch.nan, torch.inf, -torch.inf))
@types
def test_cpu_what_is_not_finite_travels(cpu_kernels, dtype, number):
    x = whole(1, 3, 9, 8).to(dtype)
    x[0, 1, 4, 4] = number
    got, expected = both(x, 20, (3, 3), (1, 1), (1, 1), POOLS["3/2"], None)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    assert not got.isfinite().all() and got.isfinite().any()


@pytest.mark.parametrize(
    "wrong", ("layout", "type", "panels", "bias", "kernel", "windows", "stride", "padding", "single")
)
def test_cpu_wrong_arguments_raise(cpu_kernels, wrong):
    x, panels = whole(1, 3, 9, 9).contiguous(memory_format=LAST), whole(1, 27, 32)
    good = [x, panels, 32, [3, 3], [1, 1], [1] * 4, whole(32), None, [3, 3], [2, 2], [1, 1], False]
    bad = {
        "layout": (0, x.repeat(1, 1, 1, 2)[..., :9]),
        "type": (0, x.double()),
        "panels": (1, panels[:, :26].contiguous()),
        "bias": (6, whole(31)),
        "kernel": (3, [12, 12]),
        "windows": (8, [12, 3]),
        "stride": (9, [2, 0]),
        "padding": (10, [1, 2]),
        "single": (10, [1, 1, 1]),
    }
    check_refuses(cpu.direct_max_pool2d.default, good, *bad[wrong])

"""The kernels of maximum and mean of windows, which PackedMaxPool2d and PackedAvgPool2d call, against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from edges import check_refuses, check_thread_counts
from torch import nn

import fastnets
from fastnets.layers import PackedAvgPool2d, PackedMaxPool2d

LAST = torch.channels_last
MAX, MEAN = torch.ops.fastnets_cpu.max_pool2d, torch.ops.fastnets_cpu.avg_pool2d


def whole(*size):
    make = torch.Generator().manual_seed(1)
    return torch.randint(-9, 10, size, generator=make).float().contiguous(memory_format=LAST)


def by_kernel(layer, x):
    fastnets.backend_report(reset=True)
    y = layer(x)
    ran = fastnets.backend_report(reset=True)
    assert [entry["calls"] for entry in ran.values()] == [{"cpu": 1}]
    assert y.is_contiguous(memory_format=LAST)
    return y


def check(x, *geometry, ceil_mode=False):
    """A maximum is one of the numbers; a mean of whole numbers is right to the last bit."""
    y = by_kernel(PackedMaxPool2d(*geometry, ceil_mode=ceil_mode), x)
    assert torch.equal(y, nn.MaxPool2d(*geometry, ceil_mode=ceil_mode)(x))
    for count in (True, False):
        y = by_kernel(PackedAvgPool2d(*geometry, ceil_mode, count), x)
        assert torch.equal(y, nn.AvgPool2d(*geometry, ceil_mode, count)(x.double()).to(torch.float32).to(x.dtype))


# Channels around the lanes, and around four vectors of them, for each instruction set.
@pytest.mark.parametrize("c", (*range(1, 36), 47, 48, 49, 63, 64, 65, 70))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_cpu_channels(walled_cpu_kernels, dtype, c):
    check(whole(2, c, 5, 6).to(dtype), 3, 2, 1)


@pytest.mark.parametrize("ceil_mode", (False, True))
@pytest.mark.parametrize("stride", (1, 2, 3))
@pytest.mark.parametrize(("kernel", "padding"), [(k, p) for k in (2, 3, 5, 7) for p in range(k // 2 + 1)])
def test_cpu_geometries(walled_cpu_kernels, kernel, padding, stride, ceil_mode):
    for size in ((7, 9), (8, 7), (13, 10)):
        check(whole(2, 20, *size), kernel, stride, padding, ceil_mode=ceil_mode)


def test_cpu_pairs(walled_cpu_kernels):
    check(whole(2, 20, 9, 8), (1, 4), (3, 1), (0, 2))
    check(whole(1, 20, 2, 2), (4, 5), (2, 1), (1, 2), ceil_mode=True)


@pytest.mark.parametrize("number", (torch.nan, -torch.nan, torch.inf, -torch.inf))
@pytest.mark.parametrize("place", range(9))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_cpu_what_is_not_finite_travels_as_in_pytorch(cpu_kernels, dtype, place, number):
    x = whole(1, 70, 3, 3).to(dtype)
    x.view(1, 70, 9)[:, ::2, place] = number
    x[:, 1] = -torch.inf
    for ours, theirs in ((PackedMaxPool2d, nn.MaxPool2d), (PackedAvgPool2d, nn.AvgPool2d)):
        for geometry in ((3, 1, 1), (2, 1, 0)):
            y = by_kernel(ours(*geometry), x)
            torch.testing.assert_close(y, theirs(*geometry)(x), rtol=0, atol=0, equal_nan=True)


def test_threads_do_not_change_a_bit(cpu_kernels):
    x = torch.randn(2, 70, 40, 30).contiguous(memory_format=LAST)
    check_thread_counts(lambda: [PackedMaxPool2d(3, 2, 1)(x), PackedAvgPool2d(3, 1, 1)(x)])


@pytest.mark.parametrize("wrong", ("layout", "type", "kernel", "too large", "stride", "padding", "single"))
@pytest.mark.parametrize("op", (MAX, MEAN), ids=("maximum", "mean"))
def test_cpu_wrong_arguments_raise(cpu_kernels, op, wrong):
    x = whole(1, 20, 9, 9)
    good = [x, [3, 3], [1, 1], [1, 1], False, *[True] * (op is MEAN)]
    bad = {
        "layout": (0, x.contiguous()),
        "type": (0, x.double()),
        "kernel": (1, [0, 3]),
        "too large": (1, [12, 3]),
        "stride": (2, [1, 0]),
        "padding": (3, [1, 2]),
        "single": (3, [1, 1, 1]),
    }
    check_refuses(op.default, good, *bad[wrong])


LAYERS = {
    "maximum": (PackedMaxPool2d, nn.MaxPool2d, {}),
    "mean": (PackedAvgPool2d, nn.AvgPool2d, {}),
    "dilation": (PackedMaxPool2d, nn.MaxPool2d, {"dilation": 2}),
    "divisor": (PackedAvgPool2d, nn.AvgPool2d, {"divisor_override": 5}),
}


@pytest.mark.parametrize(("ours", "theirs", "more"), LAYERS.values(), ids=LAYERS)
def test_what_has_no_kernel_is_pytorchs(ours, theirs, more):
    x = whole(2, 20, 8, 8)
    layer, expected = ours(3, 2, 1, **more), theirs(3, 2, 1, **more)
    others = [x.contiguous(), x.double(), x.half(), x[0], x[:0]] + [x] * bool(more)
    fastnets.backend_report(reset=True)
    for other in others:
        assert torch.equal(layer(other), expected(other))
    x.requires_grad_()
    layer(x).sum().backward()
    gradient, x.grad = x.grad, None
    expected(x).sum().backward()
    assert torch.equal(gradient, x.grad) and not fastnets.backend_report(reset=True)


def test_indices_are_pytorchs():
    x = whole(1, 20, 8, 8)
    for ours, theirs in zip(
        PackedMaxPool2d(2, return_indices=True)(x), nn.MaxPool2d(2, return_indices=True)(x), strict=True
    ):
        assert torch.equal(ours, theirs)


# Bytes, of which four times as many channels are a vector.
@pytest.mark.parametrize("c", (1, 15, 16, 31, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257))
def test_cpu_bytes(walled_cpu_kernels, c):
    x = torch.randint(0, 256, (2, c, 5, 6), generator=torch.Generator().manual_seed(c), dtype=torch.uint8)
    x = x.contiguous(memory_format=LAST)
    for geometry in ((3, 2, 1), (2, 2, 0), (5, 1, 2)):
        assert torch.equal(by_kernel(PackedMaxPool2d(*geometry), x), nn.MaxPool2d(*geometry)(x))
    assert torch.equal(MAX(x, [3, 3], [2, 2], [0, 0], True), nn.MaxPool2d(3, 2, ceil_mode=True)(x))

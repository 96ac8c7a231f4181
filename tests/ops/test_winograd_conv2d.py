"""The kernel of 3x3 convolutions by Winograd's algorithm, which PackedConv2d calls, against F.conv2d in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from convolutions import whole
from edges import check_refuses, check_thread_counts

from fastnets.layers import PackedConv2d
from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops._packed import pack_winograd

LAST = torch.channels_last


def arguments(n, c, o, h, w, padding=(1, 1)):
    """Whole numbers, whose points at 0, 1, -1 and infinity float32 holds if the weights are multiples of 4."""
    torch.manual_seed(0)
    x = whole(n, c, h, w).contiguous(memory_format=LAST)
    residual = whole(n, o, h + 2 * padding[0] - 2, w + 2 * padding[1] - 2).contiguous(memory_format=LAST)
    return x, 4 * whole(o, c, 3, 3), whole(o), residual


def kernel(x, weight, side, padding=(1, 1), bias=None, residual=None, activation=None):
    op = torch.ops.fastnets_cpu.winograd_conv2d.default
    return op(x, pack_winograd(weight, side), len(weight), padding, bias, residual, activation, 1)


def check(x, weight, side, padding=(1, 1), bias=None, residual=None, activation=None):
    """Tiles of 2 exactly; those of 4, whose roots of 1/2 and 2 are rounded, to three bits of the terms together."""
    got = kernel(x, weight, side, padding, bias, residual, activation)
    exact, size = (
        F.conv2d(x.double(), weight.double(), None, 1, padding),
        F.conv2d(x.abs(), weight.abs(), None, 1, padding),
    )
    if bias is not None:
        exact += bias.double()[:, None, None]
    if residual is not None:
        exact += residual.double()
    exact = ACTIVATIONS[activation](exact)
    assert got.is_contiguous(memory_format=LAST) and got.shape == exact.shape
    if side == 2 and activation in (None, "relu", "relu6"):
        assert torch.equal(got.double(), exact)
    else:
        assert ((got.double() - exact).abs() <= 8 * torch.finfo(torch.float32).eps * (size.amax() + 8)).all()


# Rows and columns around those of one and two tiles.
@pytest.mark.parametrize("w", (1, 2, 4, 5, 8, 9))
@pytest.mark.parametrize("h", (1, 3, 4, 7))
@pytest.mark.parametrize("side", (2, 4))
def test_cpu_sizes(walled_cpu_kernels, side, h, w):
    x, weight, bias, residual = arguments(2, 16, 32, h, w)
    check(x, weight, side)
    check(x, weight, side, (1, 1), bias, residual, "relu")


# Channels and results around the lanes and panels.
@pytest.mark.parametrize("o", (1, 15, 16, 17, 33, 48, 70))
@pytest.mark.parametrize("c", (1, 4, 15, 17, 40))
@pytest.mark.parametrize("side", (2, 4))
def test_cpu_channels(walled_cpu_kernels, side, c, o):
    x, weight, bias, residual = arguments(2, c, o, 6, 7)
    check(x, weight, side, (1, 1), bias, residual)


@pytest.mark.parametrize("padding", ((0, 0), (0, 1), (2, 1), (3, 4)))
@pytest.mark.parametrize("side", (2, 4))
def test_cpu_paddings(walled_cpu_kernels, side, padding):
    x, weight, bias, residual = arguments(2, 20, 24, 9, 6, padding)
    check(x, weight, side, padding, bias, residual, "relu6")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("side", (2, 4))
def test_cpu_activations(cpu_kernels, side, activation):
    x, weight, bias, residual = arguments(2, 19, 37, 5, 7)
    for b in (None, bias):
        for r in (None, residual):
            check(x, weight, side, (1, 1), b, r, activation)


# One chunk of tiles, and several with one that is not full.
@pytest.mark.parametrize("size", ((1, 8, 8), (1, 20, 21), (1, 60, 61), (5, 29, 30)))
@pytest.mark.parametrize("side", (2, 4))
def test_chunks_and_threads_do_not_change_a_bit(cpu_kernels, side, size):
    n, h, w = size
    x, weight, bias, residual = arguments(n, 24, 40, h, w)
    check(x, weight, side, (1, 1), bias, residual, "relu")
    weight = torch.randn(weight.shape)
    check_thread_counts(lambda: [kernel(x, weight, side, (1, 1), bias, residual, "silu")])


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
@pytest.mark.parametrize("side", (2, 4))
def test_cpu_what_is_not_finite_stays_near(cpu_kernels, side, value):
    """Results that have it among their terms are not finite either; those of tiles that do not read it are as ever."""
    x, weight, *_ = arguments(1, 16, 16, 24, 24)
    weight, finite = weight.abs() + 4, kernel(x, weight.abs() + 4, side)
    x[0, 3, 9, 14] = value
    got = kernel(x, weight, side)
    assert not got[..., 8:11, 13:16].isfinite().any()
    got[..., 4:16, 8:20] = finite[..., 4:16, 8:20]
    assert torch.equal(got, finite)


def test_cpu_inputs_are_left_alone(cpu_kernels):
    tensors = arguments(2, 18, 40, 7, 9)
    copies = [t.clone() for t in tensors]
    kernel(tensors[0], tensors[1], 4, (1, 1), *tensors[2:], "relu6")
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))


def test_cpu_no_images(cpu_kernels):
    x, weight, *_ = arguments(0, 16, 16, 8, 8)
    assert kernel(x, weight, 4).shape == (0, 16, 8, 8)


@pytest.mark.parametrize("wrong", ("layout", "type", "panels", "points", "bias", "residual", "padding"))
def test_cpu_wrong_arguments_raise(cpu_kernels, wrong):
    x, weight, bias, residual = arguments(2, 16, 40, 6, 6)
    panels = pack_winograd(weight, 4)
    good = [x, panels, 40, [1, 1], bias, residual, None, 1]
    bad = {
        "layout": (0, x.contiguous()),
        "type": (0, x.double()),
        "panels": (1, panels[:, :, :15].contiguous()),
        "points": (1, panels[:, :25].contiguous()),
        "bias": (4, whole(39)),
        "residual": (5, whole(2, 40, 6, 5).contiguous(memory_format=LAST)),
        "padding": (3, [-1, 1]),
    }
    check_refuses(torch.ops.fastnets_cpu.winograd_conv2d.default, good, *bad[wrong])


# Which tiles the layer takes: none where there are few of them, or few channels.
@pytest.mark.parametrize(
    ("size", "side"),
    (
        ((1, 16, 28, 28), 4),
        ((1, 16, 14, 14), 2),
        ((4, 16, 14, 14), 4),
        ((1, 16, 7, 7), 2),
        ((1, 16, 6, 6), 0),
        ((1, 15, 28, 28), 0),
    ),
)
def test_layer_takes_the_faster(cpu_kernels, size, side):
    conv = PackedConv2d(size[1], 32, 3, padding=1, bias=False, activation="relu").eval().requires_grad_(False)
    x, weight, *_ = arguments(size[0], size[1], 32, *size[2:])
    conv.weight.copy_(weight)
    residual = whole(size[0], 32, *size[2:]).contiguous(memory_format=LAST)
    assert conv._winograd_side(x) == side
    exact = (F.conv2d(x.double(), weight.double(), padding=1) + residual.double()).relu()
    torch.testing.assert_close(conv(x, residual.clone()).double(), exact, rtol=0, atol=1e-3 if side == 4 else 0)


@pytest.mark.parametrize("other", ({"stride": 2}, {"dilation": 2}, {"groups": 2}, {"kernel_size": (3, 1)}), ids=str)
def test_layer_leaves_others_alone(other):
    assert PackedConv2d(16, 32, 3).is_winograd()
    assert not PackedConv2d(16, 32, **{"kernel_size": 3, **other}).is_winograd()

"""The kernels that multiply in int8, against float64: of whole numbers all sums are exact, and each result is rounded once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from edges import check_refuses, check_thread_counts

from fastnets.layers import DepthwiseConv2d, PackedConv2d, PackedInvertedResidual
from fastnets.ops import _int8
from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops._convolution import lay_zeros
from fastnets.ops._int8 import Levels

LAST = torch.channels_last
INPUT, RESIDUAL, RESULTS = Levels(1.0, 100), Levels(512.0, 7), Levels(2.0**12, 50)
FINE = Levels(2.0**6, 50)  # so fine that most results are beyond the last level


def image(*size, levels=INPUT, seed=0):
    """Numbers that have levels, and those."""
    make = torch.Generator().manual_seed(seed)
    levels_of = torch.randint(0, 256, size, generator=make, dtype=torch.uint8).contiguous(memory_format=LAST)
    return _int8.numbers(levels_of, torch.tensor([1 / levels.step, levels.zero])), levels_of


def whole(layer, seed=0):
    """Weights that are whole numbers of -127 to 127, of which each result has the last, and biases."""
    make = torch.Generator().manual_seed(seed)
    layer = layer.eval().requires_grad_(False)
    layer.weight.copy_(torch.randint(-127, 128, layer.weight.shape, generator=make))
    layer.weight.flatten(1)[:, 0] = 127
    if layer.bias is not None:
        layer.bias.copy_(torch.randint(-1000, 1000, layer.bias.shape, generator=make))
    return layer


def exactly(conv, x, residual=None):
    x = lay_zeros(x.double(), conv._zeros(x.shape[2:]))
    bias = None if conv.bias is None else conv.bias.double()
    y = F.conv2d(x, conv.weight.double(), bias, conv.stride, 0, conv.dilation, conv.groups)
    return ACTIVATIONS[conv.activation](y if residual is None else y + residual.double())


def levels_of(y, levels):
    return (y / levels.step).clamp(-levels.zero, 255 - levels.zero).round().add(levels.zero).to(torch.uint8)


def check_stores(layer, last, x, residual, exact):
    """What a layer, whose last convolution is `last`, stores: numbers and levels, of an input that is either."""
    for given in x:
        last.result_levels = last.residual_levels = None
        y = layer(given, *residual[:1])
        assert y.dtype == torch.float32 and y.is_contiguous(memory_format=LAST) and torch.equal(y.double(), exact)
        for levels in (RESULTS, FINE) if last.activation in (None, "relu", "relu6") else ():
            last.result_levels, last.residual_levels = levels, RESIDUAL if residual else None
            y = layer(given, *residual[1:])
            assert y.dtype == torch.uint8 and y.is_contiguous(memory_format=LAST)
            assert torch.equal(y, levels_of(exact, levels))


def check(conv, n, h, w, with_residual=False):
    conv.levels = INPUT
    x = image(n, conv.in_channels, h, w)
    size = exactly(conv, x[0]).shape
    residual = image(*size, levels=RESIDUAL, seed=1) if with_residual else ()
    check_stores(conv, conv, x, residual, exactly(conv, x[0], *residual[:1]))


# Pixels around the 14, 7 or 3 of a tile, results around the 32 of a panel and the lanes of two vectors.
@pytest.mark.parametrize("pixels", (1, 3, 7, 8, 13, 14, 15, 29))
@pytest.mark.parametrize("o", (1, 15, 16, 17, 32, 33, 70))
@pytest.mark.parametrize("c", (16, 20, 68))
def test_pointwise_edges(walled_cpu_kernels, c, o, pixels):
    check(whole(PackedConv2d(c, o, 1, bias=False)), 1, 1, pixels)
    check(whole(PackedConv2d(c, o, 1, activation="relu")), 1, 1, pixels, with_residual=True)


@pytest.mark.parametrize(
    "geometry",
    (
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": (0, 0, 1, 2), "stride": 2},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": (1, 7), "padding": (0, 3)},
        {"kernel_size": 2, "stride": (1, 3), "padding": 3},
    ),
    ids=str,
)
@pytest.mark.parametrize("o", (8, 33))
@pytest.mark.parametrize("width", (1, 14, 30))
def test_direct_edges(walled_cpu_kernels, width, o, geometry):
    check(whole(PackedConv2d(16, o, **geometry)), 2, 5, width)
    check(whole(PackedConv2d(16, o, **geometry, activation="relu")), 2, 5, width, with_residual=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(cpu_kernels, activation):
    for size in (1, 3):
        conv = whole(PackedConv2d(16, 24, size, padding=size // 2, activation=activation))
        conv.weight.div_(2.0**12)  # so that they are not all at their ends
        conv.levels, (x, bytes) = INPUT, image(2, 16, 5, 9)
        exact = exactly(conv, x)
        for given in (x, bytes):
            torch.testing.assert_close(conv(given).double(), exact, rtol=1e-5, atol=1e-5)


# The hidden numbers are whole too: the first convolution picks channels, the depthwise one adds pixels.
def block(c, hidden, o, expand, activation=None, **geometry):
    project = whole(PackedConv2d(hidden, o, 1, activation=activation))
    depthwise = DepthwiseConv2d(hidden, **geometry, activation="relu").eval().requires_grad_(False)
    make = torch.Generator().manual_seed(2)
    depthwise.weight.copy_(torch.randint(-1, 2, depthwise.weight.shape, generator=make))
    depthwise.bias.copy_(torch.randint(-20, 20, (hidden,), generator=make))
    first = None
    if expand:
        first = PackedConv2d(c, hidden, 1).eval().requires_grad_(False)
        first.weight.zero_()
        first.bias.copy_(torch.randint(-20, 20, (hidden,), generator=make))
        first.weight[torch.arange(hidden), torch.randint(0, c, (hidden,), generator=make)] = 127
        first.levels = Levels(1.0, 100)
    layer = PackedInvertedResidual(first, depthwise, project)
    project.levels = Levels(512.0, 0) if expand else Levels(8.0, 0)
    project.bias.mul_(project.levels.step)  # what is added has no more digits than float32
    if not expand:
        layer.levels = INPUT
    return layer.eval()


def check_block(layer, n, h, w, with_residual=False):
    c = layer.depthwise.in_channels if layer.expand is None else layer.expand.in_channels
    x = image(n, c, h, w)
    hidden = x[0].double() if layer.expand is None else exactly(layer.expand, x[0])
    hidden = exactly(layer.depthwise, hidden)
    kept = levels_of(hidden, layer.project.levels).double() * layer.project.levels.step
    size = exactly(layer.project, kept).shape
    residual = image(*size, levels=RESIDUAL, seed=1) if with_residual else ()
    check_stores(layer, layer.project, x, residual, exactly(layer.project, kept, *residual[:1]))


# Hidden channels around the 16 and 32 of a panel and the 256 from which they lie pixel by pixel; images of a strip or of
# several, which are tasks together or panel by panel.
@pytest.mark.parametrize("hidden", (16, 20, 48, 272))
@pytest.mark.parametrize("expand", (True, False))
@pytest.mark.parametrize("size", ((1, 1), (7, 7), (13, 15), (60, 64)))
def test_block_edges(walled_cpu_kernels, size, expand, hidden):
    if not expand and hidden % 16:
        hidden += -hidden % 16
    check_block(block(20, hidden, 24, expand, kernel_size=3, padding=1), 1, *size)
    check_block(block(20, hidden, 33, expand, "relu", kernel_size=3, padding=1), 1, *size, with_residual=True)


@pytest.mark.parametrize("expand", (True, False))
@pytest.mark.parametrize("hidden", (32, 960))
@pytest.mark.parametrize(
    "geometry", ({"kernel_size": 3, "stride": 2, "padding": (0, 0, 1, 1)}, {"kernel_size": 5, "padding": 2}), ids=str
)
def test_block_geometries(walled_cpu_kernels, geometry, hidden, expand):
    check_block(block(160, hidden, 40, expand, **geometry), 3, 14, 14)


def test_threads_do_not_change_a_bit(cpu_kernels):
    convs = [whole(PackedConv2d(32, 70, size, padding=size // 2)) for size in (1, 3)]
    layer, (x, bytes) = block(32, 96, 40, True, kernel_size=3, padding=1), image(3, 32, 20, 21)
    for conv in convs:
        conv.levels, conv.result_levels = INPUT, RESULTS
    check_thread_counts(lambda: [f(given) for f in (*convs, layer) for given in (x, bytes)])


def test_levels_end_where_they_end(cpu_kernels):
    conv = whole(PackedConv2d(16, 32, 1, bias=False))
    conv.levels = INPUT
    x = image(1, 16, 1, 5)[0]
    x[..., 0], x[..., 1], x[..., 2] = float("inf"), -1e30, float("nan")
    ends = x.clamp(-100.0, 155.0).nan_to_num(0.0)
    assert torch.equal(conv(x).double(), exactly(conv, ends))


def test_the_longest_sums_fit(cpu_kernels):
    """All levels and all weights the last: just below 2^31, beyond which a layer is not multiplied in int8."""
    c = _int8.LONGEST
    conv = PackedConv2d(c, 16, 1, bias=False).eval().requires_grad_(False)
    conv.weight.fill_(127)
    conv.levels, x = Levels(1.0, 0), torch.full((1, c, 1, 1), 255.0)
    assert (conv(x) == torch.tensor(255 * 127 * c).float()).all() and conv.takes_int8()
    assert not PackedConv2d(c + 1, 1, 1).takes_int8()
    assert not PackedConv2d(c // 9 + 1, 1, 3).takes_int8()


def test_levels_between_reach_both_ends_and_have_zero():
    for low, high in ((-3.0, 5.0), (0.0, 6.0), (-2.0, 0.0), (2.0, 4.0), (-4.0, -2.0)):
        step, zero = _int8.levels_between(low, high)
        assert -zero * step == pytest.approx(min(low, 0), abs=step / 2)
        assert (255 - zero) * step == pytest.approx(max(high, 0), abs=step / 2) and 0 <= zero <= 255
    assert _int8.levels_between(0.0, 0.0) == (1.0, 0)


@pytest.mark.parametrize(
    "wrong",
    ("no scales", "scales", "levels", "zero", "weights", "activation", "bytes", "residual", "channels", "layout"),
)
def test_wrong_arguments_raise(cpu_kernels, wrong):
    conv = whole(PackedConv2d(16, 32, 1))
    conv.levels, conv.result_levels, conv.residual_levels = INPUT, RESULTS, RESIDUAL
    x, bytes = image(1, 16, 3, 5)
    conv(x)
    panels, bias, quantized, levels = next(iter(conv._packed[2].values()))
    residual = torch.zeros(1, 32, 3, 5, dtype=torch.uint8).contiguous(memory_format=LAST)
    good = bytes, panels, 32, bias, residual, "relu", quantized, levels
    op = torch.ops.fastnets_cpu.pointwise_conv2d.default
    assert op(*good).dtype == torch.uint8
    bad = {
        "no scales": (6, quantized[:1]),
        "scales": (6, [quantized[0][1:], quantized[1]]),
        "levels": (6, [quantized[0], -quantized[1]]),
        "zero": (7, levels + 0.5),
        "weights": (1, panels.float()),
        "activation": (5, "silu"),
        "bytes": (6, []),
        "residual": (4, residual.float()),
        "channels": (0, bytes[:, :15]),
        "layout": (0, bytes.contiguous()),
    }
    check_refuses(op, good, *bad[wrong])

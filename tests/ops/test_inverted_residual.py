"""The kernel of inverted residuals, which PackedInvertedResidual calls, against three convolutions in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from convolutions import whole
from edges import check_at_once, check_refuses, check_thread_counts

import fastnets
from fastnets.layers import DepthwiseConv2d, PackedConv2d, PackedInvertedResidual
from fastnets.ops._activation import ACTIVATIONS

LAST = torch.channels_last


def block(c, hidden, o, activations=("relu", "relu6", None), expand=True, bias=True, kernel_size=3, **geometry):
    torch.manual_seed(0)
    geometry = {"padding": 1, **geometry}
    first = PackedConv2d(c, hidden, 1, bias=bias, activation=activations[0]) if expand else None
    middle = DepthwiseConv2d(hidden, kernel_size, bias=bias, activation=activations[1], **geometry)
    last = PackedConv2d(hidden, o, 1, bias=bias, activation=activations[2])
    layer = PackedInvertedResidual(first, middle, last).eval().requires_grad_(False)
    for p in layer.parameters():
        p.copy_(whole(*p.shape))
    return layer


def exactly(layer, x, residual=None):
    y = x.double()
    for conv in (layer.expand, layer.depthwise, layer.project):
        if conv is None:
            continue
        if conv is layer.depthwise:
            where = conv.stride, conv.padding, conv.dilation, conv.groups
        else:
            where = ()
        y = F.conv2d(y, conv.weight.double(), None if conv.bias is None else conv.bias.double(), *where)
        if conv is layer.project and residual is not None:
            y = y + residual.double()
        y = ACTIVATIONS[conv.activation](y)
    return y


def on_kernel(layer, *tensors):
    """The result, which is the kernel's and not that of the three layers."""
    fastnets.backend_report(reset=True)
    y = layer(*tensors)
    assert fastnets.backend_report(reset=True)["inverted_residual"]["calls"] == {"cpu": 1}
    return y


def check(layer, x, residual=None):
    x = x.contiguous(memory_format=LAST)
    if residual is not None:
        residual = residual.contiguous(memory_format=LAST)
    copies = x.clone(), None if residual is None else residual.clone()
    got, exact = on_kernel(layer, x, residual), exactly(layer, x, residual)
    assert got.is_contiguous(memory_format=LAST) and torch.equal(got.double(), exact)
    assert torch.equal(x, copies[0]) and (residual is None or torch.equal(residual, copies[1]))


# Hidden channels around the 16 and the 32 of a panel; results around the lanes; pixels around the rows of a tile.
@pytest.mark.parametrize("hidden", (1, 16, 17, 32, 48, 70))
@pytest.mark.parametrize("o", (1, 15, 17, 33))
@pytest.mark.parametrize("size", ((1, 1), (3, 5), (7, 7), (13, 15)))
def test_cpu_edges(cpu_kernels, size, o, hidden):
    check(block(5, hidden, o), whole(1, 5, *size), whole(1, o, *size))


@pytest.mark.parametrize("expand", (True, False))
@pytest.mark.parametrize(
    "geometry",
    (
        {"stride": 2},
        {"kernel_size": 5, "padding": 2},
        {"kernel_size": 5, "padding": 2, "stride": 2},
        {"padding": 0},
        {"kernel_size": (3, 1), "stride": (1, 3), "padding": (2, 0), "dilation": (2, 1)},
        {"kernel_size": 7, "padding": 3},
        {"padding": 4},
    ),
    ids=str,
)
def test_cpu_geometries(cpu_kernels, geometry, expand):
    check(block(48, 48, 20, expand=expand, **geometry), whole(2, 48, 11, 9))


# Between the products hidden channels lie panel by panel, of 256 on pixel by pixel, with a panel left empty where their
# number is even. With few weights each thread takes all steps, with over 256 KB the threads share the panels; or several
# images go to each.
@pytest.mark.parametrize("n", (3, 5))
@pytest.mark.parametrize(("c", "o"), ((5, 17), (140, 140)))
@pytest.mark.parametrize("hidden", (240, 256, 257, 290))
def test_cpu_many_hidden_channels(cpu_kernels, hidden, c, o, n):
    check(block(c, hidden, o), whole(n, c, 7, 9), whole(n, o, 7, 9))


# Wide maps are cut into strips, which share rows of x; several images go to a thread each.
@pytest.mark.parametrize("n", (1, 3, 9))
@pytest.mark.parametrize(("stride", "kernel_size"), ((1, 3), (2, 3), (1, 5), (2, 5)))
def test_cpu_strips(cpu_kernels, kernel_size, stride, n):
    layer = block(8, 112, 16, kernel_size=kernel_size, padding=kernel_size // 2, stride=stride)
    check(layer, whole(n, 8, 61, 58))


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("activations", [(a, None, None) for a in ACTIVATIONS] + [(None, a, a) for a in ACTIVATIONS])
def test_cpu_activations(cpu_kernels, activations, bias):
    layer = block(6, 24, 10, activations, bias=bias)
    for p in layer.parameters():
        p.copy_(torch.randn(p.shape))
    x, residual = (torch.randn(2, c, 6, 7).contiguous(memory_format=LAST) for c in (6, 10))
    exact = exactly(layer, x, residual)
    assert (on_kernel(layer, x, residual) - exact).abs().max() < 1e-6 * exact.abs().max()


def test_cpu_nan_stays_below_its_kernel(cpu_kernels):
    layer, x = block(4, 20, 3), whole(1, 4, 9, 9).contiguous(memory_format=LAST)
    x[0, 1, 4, 4] = float("nan")
    assert layer(x).isnan()[0, 0].nonzero().tolist() == [[i, j] for i in (3, 4, 5) for j in (3, 4, 5)]


@pytest.mark.parametrize("size", (7, 40))
def test_threads_do_not_change_a_bit(cpu_kernels, size):
    layer, x = block(16, 96, 40), torch.randn(1, 16, size, size).contiguous(memory_format=LAST)
    check_thread_counts(lambda: [layer(x)])


def test_threads_that_call_at_once(cpu_kernels):
    layer, x = block(16, 96, 40), torch.randn(1, 16, 9, 9).contiguous(memory_format=LAST)
    layer(x)
    check_at_once([lambda: layer(x)])


@pytest.mark.parametrize("wrong", ("layout", "type", "expand", "bias", "depthwise", "hidden", "project", "residual"))
def test_cpu_wrong_arguments_raise(cpu_kernels, wrong):
    layer = block(4, 32, 6)
    x, residual = (whole(1, c, 5, 5).contiguous(memory_format=LAST) for c in (4, 6))
    panels, bias, kernels, results = layer._panels()
    pairs = [3, 3], [1, 1], [1, 1], [1, 1]
    good = [x, panels, bias, None, kernels, 32, *pairs, None, results, None, 6, residual, None]
    bad = {
        "layout": (0, x.contiguous()),
        "type": (0, x.double()),
        "expand": (1, panels[:, :3].contiguous()),
        "bias": (2, bias[:31]),
        "depthwise": (4, kernels[:-1]),
        "hidden": (5, 24),
        "project": (11, results[:, :16].contiguous()),
        "residual": (14, residual[..., :4]),
    }
    check_refuses(torch.ops.fastnets_cpu.inverted_residual.default, good, *bad[wrong])

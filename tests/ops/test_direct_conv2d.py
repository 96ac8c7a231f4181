"""The direct kernel of dense convolutions, which PackedConv2d calls, against F.conv2d in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from convolutions import whole
from edges import check_refuses, check_thread_counts

import fastnets
from fastnets.layers import PackedConv2d
from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops._convolution import lay_zeros

LAST = torch.channels_last


types = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)


def check(x, o, activation=None, bias=True, **geometry):
    torch.manual_seed(0)
    conv = PackedConv2d(x.shape[1], o, bias=bias, activation=activation, **geometry).eval().requires_grad_(False)
    for p in conv.parameters():
        p.copy_(whole(*p.shape))
    conv, x = conv.to(x.dtype), x.contiguous(memory_format=LAST)
    assert conv.is_direct(x.dtype)
    padded = lay_zeros(x.double(), conv._zeros(x.shape[2:]))
    exact = F.conv2d(padded, conv.weight.double(), conv.bias.double() if bias else None, conv.stride)
    fastnets.backend_report(reset=True)
    got = conv._direct(x)
    assert torch.equal(got, conv._direct(x.contiguous()))
    assert fastnets.backend_report(reset=True)["direct_conv2d"]["calls"] == {"cpu": 2}
    assert got.is_contiguous(memory_format=LAST) and torch.equal(got, ACTIVATIONS[activation](exact).to(x.dtype))


# Columns of results around the rows of a tile, results around the lanes and panels.
@pytest.mark.parametrize("o", (1, 15, 24, 32, 33))
@pytest.mark.parametrize("width", (1, 5, 14, 30))
@pytest.mark.parametrize("c", (1, 2, 3, 4))
@types
def test_cpu_edges(walled_cpu_kernels, dtype, c, width, o):
    check(whole(2, c, 7, 2 * width - 1).to(dtype), o, "relu6", kernel_size=3, stride=2, padding=1)


# Weights of more channels are bfloat16 as well, in pairs.
@pytest.mark.parametrize("o", (1, 32, 70))
@pytest.mark.parametrize("width", (1, 13, 14, 30))
@pytest.mark.parametrize("c", (6, 16, 50))
def test_cpu_edges_in_pairs(walled_cpu_kernels, c, width, o):
    check(whole(2, c, 5, width).bfloat16(), o, "relu", kernel_size=3, padding=1)


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize(
    "geometry",
    (
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (1, 7), "padding": (0, 3)},
        {"kernel_size": (7, 1), "padding": (3, 0)},
        {"kernel_size": 2, "stride": (1, 3), "padding": 3},
    ),
    ids=str,
)
def test_cpu_geometries_in_pairs(walled_cpu_kernels, geometry, bias):
    check(whole(2, 12, 20, 23).bfloat16(), 40, "relu6", bias, **geometry)


def test_an_odd_number_of_channels_is_left_to_others(cpu_kernels):
    conv = PackedConv2d(5, 8, 3).eval().requires_grad_(False).bfloat16()
    assert not conv.is_direct(torch.bfloat16)
    panels = whole(1, 23, 32, 2).bfloat16()  # 45 numbers in pairs
    good = [
        whole(1, 6, 9, 9).bfloat16(),
        whole(1, 27, 32, 2).bfloat16(),
        32,
        [3, 3],
        [1, 1],
        [1] * 4,
        *[None] * 3,
        [],
        None,
    ]
    torch.ops.fastnets_cpu.direct_conv2d.default(*good)
    with pytest.raises(RuntimeError, match="expected float32 weights for 5 channels"):
        torch.ops.fastnets_cpu.direct_conv2d.default(whole(1, 5, 9, 9).bfloat16(), panels, *good[2:])


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize(
    "geometry",
    (
        {"kernel_size": 7, "stride": 2, "padding": 3},
        {"kernel_size": 11, "stride": 4, "padding": 2},
        {"kernel_size": 3},
        {"kernel_size": (1, 4), "stride": (3, 1), "padding": (2, 5)},
        {"kernel_size": 12, "padding": 1},
        {"kernel_size": 2, "padding": 3},
    ),
    ids=str,
)
@types
def test_cpu_geometries(walled_cpu_kernels, dtype, geometry, bias):
    check(whole(2, 3, 20, 23).to(dtype), 20, "relu", bias, **geometry)


@pytest.mark.parametrize("padding", ((0, 0, 1, 1), (0, 1, 2, 0), (3, 0, 0, 2), (0, 4, 9, 0), (9, 0, 0, 4)))
@pytest.mark.parametrize("kernel_size", (3, 5, 7))
@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("size", ((8, 9), (9, 8), (8, 31)))
@types
def test_cpu_padding_that_differs_by_side(walled_cpu_kernels, dtype, size, stride, kernel_size, padding):
    geometry = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    check(whole(2, 3, *size).to(dtype), 20, "relu", **geometry)
    if dtype == torch.bfloat16 and kernel_size == 3:
        check(whole(2, 12, *size).to(dtype), 40, "relu", **geometry)


def test_cpu_results_past_the_caches(walled_cpu_kernels):
    check(whole(1, 3, 400, 351), 32, kernel_size=3, padding=1)


def test_threads_do_not_change_a_bit(cpu_kernels):
    conv = PackedConv2d(3, 24, 3, padding=1, activation="silu").eval().requires_grad_(False)
    x = torch.randn(1, 3, 50, 40).contiguous(memory_format=LAST)
    check_thread_counts(lambda: [conv(x)])


@pytest.mark.parametrize("wrong", ("layout", "type", "weights", "panels", "bias", "kernel", "stride", "padding"))
def test_cpu_wrong_arguments_raise(cpu_kernels, wrong):
    x, panels = whole(1, 3, 9, 9).contiguous(memory_format=LAST), whole(1, 27, 32)
    good = [x, panels, 32, [3, 3], [1, 1], [1] * 4, whole(32), None, None, [], None]
    bad = {
        "layout": (0, x.repeat(1, 1, 1, 2)[..., :9]),
        "type": (0, x.double()),
        "weights": (1, panels.bfloat16()),
        "panels": (1, panels[:, :26].contiguous()),
        "bias": (6, whole(31)),
        "kernel": (3, [12, 12]),
        "stride": (4, [0, 1]),
        "padding": (5, [1, 1]),
    }
    check_refuses(torch.ops.fastnets_cpu.direct_conv2d.default, good, *bad[wrong])

"""The kernel of pointwise convolutions, which PackedConv2d calls: a product of matrices and what its store does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from edges import check_thread_counts

from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops._packed import pack_for_cpu, pack_panels

LAST = torch.channels_last


def arguments(n, c, o, h, w, seed=0):
    make = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(n, k, h, w, generator=make).contiguous(memory_format=LAST) for k in (c, o))
    return x, torch.randn(o, c, 1, 1, generator=make), torch.randn(o, generator=make), residual


def kernel(x, weight, bias=None, residual=None, activation=None):
    op = torch.ops.fastnets_cpu.pointwise_conv2d.default
    panels, bias = pack_for_cpu(weight, bias)
    return op(x, panels, len(weight), bias, residual, activation, [], None)


def check(x, weight, bias, residual, activation):
    """Against float64: the sums of c + 2 terms may each be off by roundings of the size of all terms together, and
    results by that to their type."""
    got = kernel(x, weight, bias, residual, activation)
    exact = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double())
    size = F.conv2d(x.abs().double(), weight.abs().double(), None if bias is None else bias.abs().double())
    if residual is not None:
        exact, size = exact + residual.double(), size + residual.abs().double()
    error = (got.double() - ACTIVATIONS[activation](exact)).abs()
    assert got.is_contiguous(memory_format=LAST) and got.shape == exact.shape
    sums = torch.finfo(torch.float32).eps * ((x.shape[1] + 2) ** 0.5 + 4) * size
    assert got.dtype == x.dtype and (error <= sums + torch.finfo(x.dtype).eps / 2 * got.double().abs()).all()


# Pixels around the 14 or 6 of a tile, results around the 32 of a panel and the lanes of two vectors.
@pytest.mark.parametrize("pixels", (1, 5, 6, 13, 14, 15, 29, 100))
@pytest.mark.parametrize("o", (1, 6, 15, 16, 17, 31, 32, 33, 70))
@pytest.mark.parametrize("c", (1, 7, 40))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_cpu_edges(walled_cpu_kernels, dtype, c, o, pixels):
    x, weight, bias, residual = (t.to(dtype) for t in arguments(1, c, o, 1, pixels))
    check(x, weight, None, None, None)
    check(x, weight, bias, residual, "relu")


# Around the 64 channels of bfloat16 that are widened at a time.
@pytest.mark.parametrize("c", (63, 64, 65, 129))
def test_cpu_channels(walled_cpu_kernels, c):
    x, weight, bias, residual = (t.bfloat16() for t in arguments(1, c, 40, 1, 15))
    check(x, weight, bias, residual, "relu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_cpu_activations(walled_cpu_kernels, dtype, activation):
    x, weight, bias, residual = (t.to(dtype) for t in arguments(2, 19, 37, 5, 7))
    for b in (None, bias):
        for r in (None, residual):
            check(x, weight, b, r, activation)


def test_cpu_inputs_are_left_alone(cpu_kernels):
    tensors = arguments(2, 8, 40, 3, 9)
    copies = [t.clone() for t in tensors]
    kernel(*tensors, "relu6")
    assert all(torch.equal(t, copy) for t, copy in zip(tensors, copies, strict=True))


# 21 channels: in bfloat16 the last one's pair is not there, and what follows is the next pixel's.
@pytest.mark.parametrize("c", (20, 21))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_cpu_nan_and_infinity_stay_in_their_pixel(cpu_kernels, dtype, c):
    x, weight, bias, _ = (t.to(dtype) for t in arguments(1, c, 40, 1, 30))
    x[0, 0, 0, 7], x[0, 0, 0, 20] = float("nan"), float("inf")
    y = kernel(x, weight, bias, None, "relu")[0, :, 0]
    assert y[:, 7].isnan().all() and not y[:, :7].isnan().any() and not y[:, 8:].isnan().any()
    assert y.isinf().any(0).nonzero().flatten().tolist() == [20]


def test_threads_do_not_change_a_bit(cpu_kernels):
    tensors = arguments(1, 70, 100, 30, 31)
    check_thread_counts(lambda: [kernel(*tensors, "silu")])


def test_cpu_no_pixels(cpu_kernels):
    assert kernel(*arguments(0, 4, 6, 3, 3), None).shape == (0, 6, 3, 3)


@pytest.mark.parametrize("wrong", ("layout", "type", "panels", "pairs", "bias", "bias of another type", "residual"))
def test_cpu_wrong_arguments_raise(cpu_kernels, wrong):
    x, weight, bias, residual = arguments(1, 4, 6, 3, 5)
    panels = pack_panels(weight)
    bad = {
        "layout": (x.contiguous(), panels, 6, bias, residual),
        "type": (x.double(), panels, 6, bias, residual),
        "panels": (x, panels, 40, bias, residual),
        "pairs": (x.bfloat16(), panels.bfloat16(), 6, bias, residual.bfloat16()),
        "bias of another type": (x.bfloat16(), pack_panels(weight.bfloat16(), 2), 6, bias.bfloat16(), None),
        "bias": (x, panels, 6, bias[:5], residual),
        "residual": (x, panels, 6, bias, residual[..., :4]),
    }
    with pytest.raises(RuntimeError, match="expected"):
        torch.ops.fastnets_cpu.pointwise_conv2d.default(*bad[wrong], None, [], None)

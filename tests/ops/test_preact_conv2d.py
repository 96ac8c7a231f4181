"""The kernel of a pointwise convolution behind BatchNorm and ReLU, which PackedPreactConv2d calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from edges import check_refuses, check_thread_counts

from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops._packed import LANES, pack_for_cpu, pack_panels

LAST = torch.channels_last


def whole(*sizes, seed=0):
    return torch.randint(-3, 4, sizes, generator=torch.Generator().manual_seed(seed)).float()


def arguments(n, parts, o, h, w):
    """Whole numbers, which normalised and pooled are exact in bfloat16, and whose sums are in float32."""
    xs = [whole(n, c, h, w, seed=c).contiguous(memory_format=LAST) for c in parts]
    return F.pad(whole(2, sum(parts), seed=1), (0, LANES), value=float("nan")), xs, whole(o, sum(parts), seed=2)


def kernel(norm, xs, weight, bias=None, pool=1, activation=None):
    op = torch.ops.fastnets_cpu.preact_conv2d.default
    return op(norm, xs, pool, pack_for_cpu(weight.to(xs[0].dtype), None)[0], len(weight), bias, activation)


def check(norm, xs, weight, bias=None, pool=1, activation=None):
    scale, shift = norm[:, :-LANES, None, None]
    made = F.avg_pool2d(F.relu(torch.cat(xs, 1) * scale + shift), pool, divisor_override=1)
    exact = ACTIVATIONS[activation](F.conv2d(made.double(), weight[:, :, None, None].double(), bias).float())
    for dtype in (torch.float32, torch.bfloat16):
        images = [x.to(dtype) for x in xs]
        got = kernel(norm, images, weight, None if bias is None else bias.float(), pool, activation)
        assert got.is_contiguous(memory_format=LAST)
        assert torch.equal(got, exact.to(dtype))


# Pixels around the 14 or 12 of a block, results around the 32 of a panel and the lanes of two vectors.
@pytest.mark.parametrize("pixels", (1, 11, 12, 13, 14, 15, 29, 100))
@pytest.mark.parametrize("o", (1, 16, 31, 33, 70))
@pytest.mark.parametrize("c", (1, 15, 16, 17, 40))
def test_cpu_edges(walled_cpu_kernels, c, o, pixels):
    check(*arguments(1, [c], o, 1, pixels))


@pytest.mark.parametrize("parts", ([16, 16], [64, 32, 32], [1, 1, 1], [7, 12, 12], [17, 3, 48, 5]), ids=str)
def test_cpu_channels_come_from_several_images(walled_cpu_kernels, parts):
    tensors = arguments(2, parts, 40, 5, 7)
    check(*tensors)
    check(*tensors, pool=2)


@pytest.mark.parametrize("pool", (1, 2, 3))
@pytest.mark.parametrize("h", (3, 7))
@pytest.mark.parametrize("w", (4, 9, 33))
def test_cpu_pooling_leaves_out_what_is_left_over(walled_cpu_kernels, pool, h, w):
    check(*arguments(2, [19, 4], 37, h, w), bias=whole(37).double(), pool=pool)


@pytest.mark.parametrize("activation", (None, "relu", "relu6"))
def test_cpu_bias_and_activation(cpu_kernels, activation):
    check(*arguments(2, [19], 37, 5, 7), bias=whole(37).double(), activation=activation)


def test_cpu_rounding(cpu_kernels):
    """Against float64: the sums of c terms, each rounded before, may be off by roundings of all terms together."""
    make = torch.Generator().manual_seed(0)
    norm, x, weight = (torch.randn(s, generator=make) for s in ((2, 70 + LANES), (2, 70, 9, 9), (40, 70)))
    scale, shift = norm[:, :-LANES, None, None].double()
    made = F.relu(x.double() * scale + shift)
    size = F.conv2d(x.double().abs() * scale.abs() + shift.abs(), weight[:, :, None, None].double().abs())
    exact = F.conv2d(made, weight[:, :, None, None].double())
    error = (kernel(norm, [x.contiguous(memory_format=LAST)], weight) - exact).abs()
    assert (error <= torch.finfo(torch.float32).eps * (70**0.5 + 4) * size).all()


def test_cpu_inputs_are_left_alone(cpu_kernels):
    norm, xs, weight = arguments(2, [8, 3], 40, 3, 9)
    copies = [t.clone() for t in xs]
    kernel(norm, xs, weight, pool=2)
    assert all(torch.equal(t, copy) for t, copy in zip(xs, copies, strict=True))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_cpu_nan_and_infinity_stay_in_their_pixel(cpu_kernels, dtype):
    norm, xs, weight = arguments(1, [20, 3], 40, 1, 30)
    xs = [x.to(dtype) for x in xs]
    norm[0, 3], norm[0, 21], weight[:, 21] = 1, 1, 1
    xs[0][0, 3, 0, 7], xs[1][0, 1, 0, 20] = float("nan"), float("inf")
    y = kernel(norm, xs, weight, activation="relu")[0, :, 0]
    assert y[:, 7].isnan().all() and not y[:, :7].isnan().any() and not y[:, 8:].isnan().any()
    assert y.isinf().any(0).nonzero().flatten().tolist() == [20]


def test_threads_do_not_change_a_bit(cpu_kernels):
    make = torch.Generator().manual_seed(0)
    norm, x, weight = (torch.randn(s, generator=make) for s in ((2, 70 + LANES), (1, 70, 30, 31), (100, 70)))
    x = x.contiguous(memory_format=LAST)
    check_thread_counts(lambda: [kernel(norm, [x], weight), kernel(norm, [x], weight, pool=2)])


def test_cpu_no_images(cpu_kernels):
    assert kernel(*arguments(0, [4], 6, 3, 3)).shape == (0, 6, 3, 3)


def test_cpu_wrong_arguments_raise(cpu_kernels):
    norm, xs, weight = arguments(1, [4, 3], 6, 3, 5)
    x, op = xs[0], torch.ops.fastnets_cpu.preact_conv2d.default
    good = norm, xs, 2, pack_panels(weight), 6, whole(6), "relu"
    for images in (
        [],
        [x],
        [x, x],
        [x, xs[1].contiguous()],
        [x, xs[1].double()],
        [x, xs[1].bfloat16()],
        [x, xs[1][:, :, :2]],
        [x, xs[1][0]],
    ):
        check_refuses(op, good, 1, images)
    for place, value in (
        (0, norm.double()),
        (0, norm[:, :-1]),
        (2, 0),
        (2, 4),
        (3, pack_panels(weight)[:, 1:]),
        (4, 40),
    ):
        check_refuses(op, good, place, value)
    check_refuses(op, good, 5, whole(5))

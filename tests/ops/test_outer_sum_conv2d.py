"""The kernel of a pointwise convolution of spread strips, which PackedOuterSumConv2d calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from edges import check_refuses, check_thread_counts

from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops._packed import pack_for_cpu, pack_panels

LAST = torch.channels_last


def whole(*sizes, seed=0):
    return torch.randint(-3, 4, sizes, generator=torch.Generator().manual_seed(seed)).float()


def image(*sizes, seed=0):
    return whole(*sizes, seed=seed).contiguous(memory_format=LAST)


def arguments(n, c, o, h, w):
    """Whole numbers, whose sums of products are exact in float32."""
    return image(n, c, h, 1, seed=1), image(n, c, 1, w, seed=2), whole(o, c, seed=3), image(n, o, h, w, seed=4)


def kernel(rows, columns, weight, factor=None, bias=None, activation=None):
    op = torch.ops.fastnets_cpu.outer_sum_conv2d.default
    return op(rows, columns, pack_for_cpu(weight.to(rows.dtype), None)[0], len(weight), bias, activation, factor)


def check(rows, columns, weight, factor, bias=None, activation=None):
    sums = F.conv2d(F.relu(rows + columns).double(), weight[:, :, None, None].double(), bias)
    exact = ACTIVATIONS[activation](sums.float())
    for dtype in (torch.float32, torch.bfloat16):
        strips = rows.to(dtype), columns.to(dtype), weight
        of = None if bias is None else bias.float()
        gate = kernel(*strips, None, of, activation)
        assert gate.is_contiguous(memory_format=LAST) and torch.equal(gate, exact.to(dtype))
        # What is multiplied was rounded, as if it had been stored.
        got = kernel(*strips, factor.to(dtype), of, activation)
        assert got.is_contiguous(memory_format=LAST) and torch.equal(got, gate * factor.to(dtype))


# Pixels around the 14 or 12 of a block, results around the 32 of a panel and the lanes of two vectors.
@pytest.mark.parametrize("w", (1, 11, 12, 13, 14, 15, 29, 100))
@pytest.mark.parametrize("o", (1, 16, 31, 33, 70))
@pytest.mark.parametrize("c", (1, 15, 16, 17, 40))
def test_cpu_edges(walled_cpu_kernels, c, o, w):
    check(*arguments(1, c, o, 1, w))


@pytest.mark.parametrize(("n", "h", "w"), [(1, 5, 1), (1, 30, 3), (2, 3, 4), (3, 1, 1), (3, 7, 5), (2, 13, 17)])
def test_cpu_each_pixel_has_its_row_column_and_image(walled_cpu_kernels, n, h, w):
    check(*arguments(n, 19, 37, h, w))


@pytest.mark.parametrize("activation", (None, "relu", "relu6"))
def test_cpu_bias_and_activation(cpu_kernels, activation):
    check(*arguments(2, 19, 37, 5, 7), whole(37, seed=5).double(), activation)


@pytest.mark.parametrize("activation", ("sigmoid", "silu", "hardswish"))
def test_cpu_rounding(cpu_kernels, activation):
    """Against float64: sums of c terms may be off by roundings of all of them together; slopes are at most 1.5."""
    make = torch.Generator().manual_seed(0)
    sizes = (2, 70, 9, 1), (2, 70, 1, 8), (40, 70), (2, 40, 9, 8)
    rows, columns, weight, factor = (torch.randn(s, generator=make) for s in sizes)
    rows, columns, factor = (t.contiguous(memory_format=LAST) for t in (rows, columns, factor))
    sums, taps = F.relu(rows.double() + columns.double()), weight[:, :, None, None].double()
    exact = ACTIVATIONS[activation](F.conv2d(sums, taps)) * factor
    size = (1.5 * F.conv2d(rows.double().abs() + columns.double().abs(), taps.abs()) + 1) * factor.abs()
    error = (kernel(rows, columns, weight, factor, None, activation) - exact).abs()
    assert (error <= torch.finfo(torch.float32).eps * (70**0.5 + 8) * size).all()


def test_cpu_results_past_the_caches(cpu_kernels):
    """Of 40 MB, which where nothing is multiplied by them are stored past them."""
    rows, columns, weight, factor = arguments(1, 3, 64, 400, 400)
    check(rows, columns, weight, factor)


def test_cpu_inputs_are_left_alone(cpu_kernels):
    given = arguments(2, 8, 40, 3, 9)
    copies = [t.clone() for t in given]
    kernel(*given)
    assert all(torch.equal(t, copy) for t, copy in zip(given, copies, strict=True))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_cpu_nan_and_infinity_stay_in_their_row_and_column(cpu_kernels, dtype):
    rows, columns, weight, _ = arguments(1, 20, 40, 9, 30)
    rows[0, 3, 2], columns[0, 5, 0, 20] = float("nan"), float("inf")
    weight[:, 5] = 1
    y = kernel(rows.to(dtype), columns.to(dtype), weight, activation="relu")[0]
    others = [h for h in range(9) if h != 2]
    assert y[:, 2].isnan().all() and not y[:, others].isnan().any()
    assert y[:, others].isinf().any(0).any(0).nonzero().flatten().tolist() == [20]


def test_threads_do_not_change_a_bit(cpu_kernels):
    make = torch.Generator().manual_seed(0)
    sizes = (1, 70, 30, 1), (1, 70, 1, 31), (100, 70), (1, 100, 30, 31)
    rows, columns, weight, factor = (torch.randn(s, generator=make) for s in sizes)
    rows, columns, factor = (t.contiguous(memory_format=LAST) for t in (rows, columns, factor))
    check_thread_counts(lambda: [kernel(rows, columns, weight), kernel(rows, columns, weight, factor)])


@pytest.mark.parametrize(("n", "h", "w"), [(0, 3, 3), (1, 0, 3), (1, 3, 0)])
def test_cpu_no_pixels(cpu_kernels, n, h, w):
    assert kernel(*arguments(n, 4, 6, h, w)).shape == (n, 6, h, w)


def test_cpu_wrong_arguments_raise(cpu_kernels):
    rows, columns, weight, factor = arguments(2, 4, 6, 3, 5)
    op = torch.ops.fastnets_cpu.outer_sum_conv2d.default
    good = rows, columns, pack_panels(weight), 6, whole(6), "relu", factor
    both = [torch.cat((t, t), d).contiguous(memory_format=LAST) for t, d in ((rows, 3), (columns, 2))]
    wrong = {
        0: (rows.double(), rows.bfloat16(), rows[:1], rows[:, :3], rows[0], rows[:, ::2], both[0]),
        1: (columns.double(), columns.bfloat16(), columns[:1], columns[:, :3], columns[0], columns[:, :, 0], both[1]),
        2: (pack_panels(weight)[:, 1:], pack_panels(weight).bfloat16()),
        3: (40,),
        4: (whole(5), whole(6).double()),
        6: (factor.contiguous(), factor.bfloat16(), factor[:1], factor[:, :, :2], factor[0]),
    }
    for place, values in wrong.items():
        for value in values:
            check_refuses(op, good, place, value)

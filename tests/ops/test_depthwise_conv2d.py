"""depthwise_conv2d on every backend: the contract, literal values, edges, errors."""

from __future__ import annotations

import math
from itertools import chain, product

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from check_op import (
    DTYPES,
    Case,
    check_call,
    check_gradients,
    check_onnx,
    check_tracing,
    check_values,
    in_both_layouts,
    in_types,
    run,
)
from convolutions import X, bad_arguments, check_autocast, check_empty_batch, check_memory, fits
from edges import check_thread_counts, error_of

import fastnets
from fastnets._backends import INTERPRETED
from fastnets.ops import depthwise_conv2d
from fastnets.ops._activation import ACTIVATIONS


def case(name, shape, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), m=1, bias=True, activation=None):
    make = torch.Generator().manual_seed(len(name))
    x = torch.randn(shape, generator=make, dtype=torch.float64)
    w = torch.randn(shape[1] * m, 1, *kernel, generator=make, dtype=torch.float64)
    b = torch.randn(shape[1] * m, generator=make, dtype=torch.float64) if bias else None
    kwargs = {"stride": stride, "padding": padding, "dilation": dilation, "activation": activation}
    terms = max(kernel[0] * kernel[1] * m, shape[0] * shape[2] * shape[3])
    return Case(name, depthwise_conv2d, [x, w, b], kwargs, terms, {"activation": None})


# One of each class of tile: channels below, at and past a vector of 4, 8 and 16 lanes; columns in tiles of 7 and of 4, with
# a rest, all border; rows and columns fewer than the kernel has; contiguous rows of one vector, and of more, whose lanes
# at their sides and amid the map are not the same; fewer channels than lanes, pixel by pixel.
CASES = [
    case("one number", (1, 1, 1, 1), padding=(0, 0), kernel=(1, 1)),
    case("one pixel", (2, 16, 1, 1)),
    case("one column", (1, 5, 6, 1)),
    case("tiles of seven", (1, 17, 7, 14)),
    case("tiles of four", (2, 16, 4, 8)),
    case("inner tiles", (1, 33, 3, 28)),
    case("rest", (1, 24, 5, 13), bias=False),
    case("few channels", (3, 3, 6, 9)),
    case("stride 2", (2, 18, 9, 14), stride=(2, 2)),
    case("stride 2, tiles of four", (1, 18, 9, 16), stride=(2, 2)),
    case("channels in pieces", (1, 168, 4, 14)),
    case("5x5", (1, 16, 8, 14), kernel=(5, 5), padding=(2, 2)),
    case("5x5 stride 2", (1, 16, 11, 16), kernel=(5, 5), stride=(2, 2), padding=(2, 2)),
    case("7x7", (1, 16, 8, 8), kernel=(7, 7), padding=(3, 3)),
    case("dilated", (1, 16, 9, 10), padding=(2, 2), dilation=(2, 2)),
    case("dilation not a multiple of the stride", (1, 16, 9, 11), stride=(3, 2), dilation=(2, 3), padding=(3, 1)),
    case("all asymmetric", (2, 8, 7, 9), kernel=(2, 5), stride=(1, 2), padding=(1, 3), dilation=(2, 1)),
    case("7x7 of maps with an inner part", (1, 20, 9, 31), kernel=(7, 7), padding=(3, 3)),
    case("9x4, taps on all sides", (1, 17, 9, 19), kernel=(9, 4), padding=(4, 2)),
    case("taps beside the map", (1, 16, 5, 3), kernel=(3, 13), padding=(1, 6)),
    case("any taps, stride 3", (1, 16, 7, 25), kernel=(4, 6), padding=(1, 3), stride=(1, 3)),
    case("dilated, columns apart by five", (1, 18, 12, 23), padding=(4, 5), dilation=(4, 5)),
    case("dilated further than the map", (1, 16, 4, 3), padding=(5, 5), dilation=(5, 5)),
    case("kernel larger than the map", (1, 16, 2, 3), kernel=(7, 5), padding=(3, 2)),
    case("more padding than kernel", (1, 6, 3, 3), padding=(4, 5)),
    case("no common factor, few channels", (1, 3, 9, 11), stride=(3, 2), dilation=(2, 3), padding=(3, 1)),
    case("many channels, one tap", (1, 70, 2, 3), kernel=(1, 1), padding=(0, 0)),
    case("two kernels a channel", (2, 5, 6, 8), m=2),
    case("three kernels a channel, strided", (1, 16, 7, 7), m=3, stride=(2, 2)),
    case("several tiles and sums", (1, 33, 12, 12), kernel=(1, 1), padding=(0, 0)),
    case("all gradients in one pass", (8, 18, 16, 14)),
    case("all gradients in one pass, stride 2", (8, 17, 32, 14), stride=(2, 2)),
    case("rows with sides", (1, 3, 9, 31)),
    case("rows with sides, stride 2", (1, 3, 17, 35), stride=(2, 2)),
    case("rows with sides, 5x5", (1, 2, 15, 29), kernel=(5, 5), padding=(2, 2)),
    case("rows with sides, 5x5 stride 2", (1, 2, 16, 61), kernel=(5, 5), stride=(2, 2), padding=(2, 2)),
    case("two maps a vector, one alone", (2, 19, 8, 7)),
    case("two maps a vector, stride 2", (1, 3, 15, 15), stride=(2, 2)),
    case("two maps a vector, 5x5", (1, 5, 7, 8), kernel=(5, 5), padding=(2, 2)),
    case("two maps a vector, 5x5 stride 2", (1, 4, 5, 15), kernel=(5, 5), stride=(2, 2), padding=(2, 2)),
    case("pixels of three channels", (2, 3, 9, 23)),
    case("pixels of three channels, 5x5", (1, 3, 8, 17), kernel=(5, 5), padding=(2, 2)),
    case("pixels of two channels, one vector", (1, 2, 3, 5)),
    case("pixels of most of a vector", (1, 11, 8, 5)),
    case("few channels, stride 2", (2, 6, 9, 12), stride=(2, 2)),
    case("pixels of three channels, stride 2", (2, 3, 31, 23), stride=(2, 2)),
    case("pixels of three channels, 5x5 stride 2", (1, 3, 8, 26), kernel=(5, 5), stride=(2, 2), padding=(2, 2)),
    case("pixels of most of a vector, stride 2", (1, 13, 5, 6), stride=(2, 2)),
    case("few channels, two kernels each", (1, 5, 9, 12), kernel=(7, 7), padding=(3, 3), m=2),
    case("tiles of seven that overlap", (1, 20, 3, 19)),
    case("tiles of four that overlap", (1, 16, 3, 30), stride=(1, 2)),
    case("rows of taps in groups", (1, 1, 2, 3), kernel=(26, 2), padding=(13, 1)),
]
if INTERPRETED:
    # A program takes milliseconds for each tap, and a contiguous map is a program for each channel. These have every
    # geometry, masks at all edges, two tiles of channels and of pixels, two partial sums of the weight's gradient (144
    # pixels in tiles of 16), and two groups of its taps (52 where 49 fit).
    small = ("one number", "one column", "few channels", "all asymmetric", "more padding than kernel")
    small += (
        "no common factor, few channels",
        "two kernels a channel",
        "several tiles and sums",
        "rows of taps in groups",
    )
    CASES = [c for c in CASES if c.name in small]


@in_types("case", CASES, DTYPES, each=("few channels", "several tiles and sums"))
def test_values_and_gradients(backend, case, dtype):
    check_values(case, dtype)


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a])
def test_activations(backend, activation):
    if INTERPRETED:  # an activation is a function of the sum; its gradient is PyTorch's
        return check_values(
            case("activation", (1, 2, 3, 4), (1, 1), padding=(0, 0), activation=activation), torch.float32
        )
    check_values(case("activation", (1, 18, 4, 7), activation=activation), torch.float32)
    check_values(case("activation", (1, 3, 4, 5), activation=activation), torch.bfloat16)
    check_gradients(case("smooth", (1, 2, 3, 3), activation=activation))


@pytest.mark.parametrize(("m", "stride"), [(2, 2)] if INTERPRETED else [*product((1, 2), (1, 2))])
def test_gradcheck(backend, m, stride):
    check_gradients(case("gradcheck", (2, 3, 4, 5), kernel=(3, 2), stride=(stride, 1), m=m))


@pytest.mark.parametrize("activation", (None, "silu", "relu6"))
def test_tracing(backend, activation):
    c = case("tracing", (2, 4, 5, 6), activation=activation)
    x, w, b = c.cast(torch.float64)
    geometry = ([1, 1], [1, 1], [1, 1])
    leaves = [t.detach().requires_grad_() for t in (x, w, b)]
    dy = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    operators = torch.ops.fastnets
    check_tracing(
        c,
        [
            (operators.depthwise_conv2d.default, (*leaves, *geometry, activation)),
            (operators.depthwise_conv2d_backward.default, (dy, *leaves[:2], *geometry, True, True, True)),
            (operators.depthwise_conv2d_backward.default, (dy, *leaves[:2], *geometry, False, True, False)),
        ],
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_onnx(tmp_path, activation):
    check_onnx(case("onnx", (2, 4, 9, 8), stride=(2, 1), activation=activation), tmp_path)


def test_literal_values(backend):
    x = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    w = torch.tensor([[[[0.0, 1.0], [2.0, 0.0]]]])
    bias = torch.tensor([0.5])
    # Each output is x[i, j + 1] + 2 x[i + 1, j] + 1/2.
    assert depthwise_conv2d(x, w, bias).tolist() == [[[[10.5, 13.5], [19.5, 22.5]]]]
    assert depthwise_conv2d(x, w, stride=2, padding=1).tolist() == [[[[0.0, 4.0], [4.0, 22.0]]]]
    x2 = torch.stack([x[0, 0], -x[0, 0]])[None]
    w2 = torch.ones(4, 1, 1, 1) * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1)
    assert depthwise_conv2d(x2, w2)[0, :, 0, 0].tolist() == [1.0, 2.0, -3.0, -4.0]  # output o reads channel o // 2


def test_literal_gradients(backend):
    x = torch.arange(1.0, 5.0).view(1, 1, 2, 2).requires_grad_()
    w = torch.tensor([[[[2.0, -1.0]]]], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    depthwise_conv2d(x, w, bias).backward(torch.tensor([[[[1.0], [10.0]]]]))
    assert x.grad.tolist() == [[[[2.0, -1.0], [20.0, -10.0]]]]
    assert w.grad.tolist() == [[[[31.0, 42.0]]]]
    assert bias.grad.tolist() == [11.0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@in_both_layouts
def test_nan_and_infinity_travel(backend, activation, layout):
    """A kernel of one tap has no neighbours: what comes out is the activation of what goes in."""
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-30, -1e30, 88.8, -88.8, 200.0, -200.0, 5.9999, 6.0]
    x = torch.tensor(values).view(1, 1, 1, -1).repeat(1, 17, 3, 1).contiguous(memory_format=layout)
    got = depthwise_conv2d(x, torch.ones(17, 1, 1, 1), activation=activation)
    torch.testing.assert_close(got, ACTIVATIONS[activation](x), rtol=1e-5, atol=1e-37, equal_nan=True)


@in_both_layouts
@pytest.mark.parametrize("column", (0, 3, 6, 9))
def test_nan_stays_where_the_kernel_reaches(backend, layout, column):
    x = torch.ones(1, 16, 5, 10).contiguous(memory_format=layout)
    x[0, 2, 2, column] = math.nan
    y = depthwise_conv2d(x, torch.ones(16, 1, 3, 3), padding=1)
    reached = torch.zeros(1, 16, 5, 10, dtype=torch.bool)
    reached[0, 2, 1:4, max(0, column - 1) : column + 2] = True
    assert torch.equal(y.isnan(), reached)


@in_both_layouts
def test_nan_in_the_weight_gradient_stays_in_its_channel(backend, layout):
    x = torch.ones(2, 17, 4, 9).contiguous(memory_format=layout)
    x[0, 3, 0, 8] = math.nan  # a corner: only taps that reach it see it
    w = torch.ones(17, 1, 3, 3, requires_grad=True)
    depthwise_conv2d(x, w, padding=1).sum().backward()
    assert w.grad[3, 0].isnan().tolist() == [[False, True, True], [False, True, True], [False, False, False]]
    assert not w.grad[[*range(3), *range(4, 17)]].isnan().any()


def test_lazily_negated_input(backend):
    x = torch.complex(torch.ones(1, 4, 5, 5), torch.ones(1, 4, 5, 5)).conj().imag
    assert x.is_neg()
    assert torch.equal(depthwise_conv2d(x, W), depthwise_conv2d(-X, W))


def test_unbatched_and_string_padding(backend):
    x, w = torch.randn(6, 7, 8), torch.randn(6, 1, 3, 4)
    for padding in ("same", "valid", 2, (1, 2)):
        got = depthwise_conv2d(x, w, None, 1, padding, (1, 2))
        torch.testing.assert_close(got, F.conv2d(x, w, None, 1, padding, (1, 2), 6), rtol=1e-5, atol=1e-5)


@in_both_layouts
def test_empty_batch(backend, layout):
    check_empty_batch(lambda *args: depthwise_conv2d(*args, 2), 1, layout)


W = torch.ones(4, 1, 3, 3)
BAD = bad_arguments(W)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises_what_pytorch_raises(backend, name):
    args = BAD[name]
    groups = 0 if name == "no channels" else 4
    assert error_of(depthwise_conv2d, *args) == error_of(F.conv2d, *args, groups=groups)


def test_bad_activation(backend):
    error, message = error_of(depthwise_conv2d, X, W, activation="tanh")
    assert error is ValueError and "'relu6'" in message and "'tanh'" in message


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_autocast(dtype):
    check_autocast(depthwise_conv2d, 1, dtype)


@in_both_layouts
def test_threads_do_not_change_a_bit(cpu_kernels, layout):
    x = torch.randn(3, 40, 20, 21).contiguous(memory_format=layout)
    c = Case("threads", depthwise_conv2d, [x, torch.randn(40, 1, 3, 3), torch.randn(40)], {"padding": 1})
    dy = [torch.randn(3, 40, 20, 21)]
    check_thread_counts(lambda: chain(*run(c, c.tensors, dy)))


@in_both_layouts
def test_memory(cpu_kernels, layout):
    """Beside the gradients, some channels of x, dy and dx at a time, and sums of the gradients of weight and bias."""
    check_memory(depthwise_conv2d, 1, layout, beside=1 << 20)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(data=st.data())
def test_any_geometry(data):
    """Shapes, strides, paddings and dilations that nobody thought of, on the CPU kernels."""
    draw = data.draw
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    c = case(
        "any",
        draw(st.tuples(st.integers(1, 2), st.integers(1, 35), st.integers(1, 12), st.integers(1, 30))),
        kernel=draw(st.tuples(st.integers(1, 6), st.integers(1, 6))),
        stride=draw(pair),
        padding=draw(st.tuples(st.integers(0, 5), st.integers(0, 5))),
        dilation=draw(pair),
        m=draw(st.integers(1, 3)),
        bias=draw(st.booleans()),
    )
    hypothesis.assume(fits(*c.tensors[:2], c.kwargs))
    dtype = draw(st.sampled_from(DTYPES))
    tensors = c.cast(dtype)
    if draw(st.booleans()):
        tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    check_call(c, tensors, dtype)


def test_backend_report_and_refusal():
    fastnets.backend_report(reset=True)
    with fastnets.use_backend("reference"):
        depthwise_conv2d(X, W)
    report = fastnets.backend_report()
    assert report["depthwise_conv2d"]["calls"] == {"reference": 1}
    with fastnets.use_backend("triton"), pytest.raises(RuntimeError, match="cannot run on backend 'triton': .*cpu"):
        depthwise_conv2d(X.to(torch.int64), W.to(torch.int64))


def test_backward_runs_on_the_backend_of_the_forward_pass():
    x = X.clone().requires_grad_()
    fastnets.backend_report(reset=True)
    with fastnets.use_backend("reference"):
        y = depthwise_conv2d(x, W)
    y.sum().backward()
    assert fastnets.backend_report()["depthwise_conv2d_backward"]["calls"] == {"reference": 1}

"""grouped_conv2d on every backend: the contract, literal values, edges, errors."""

from __future__ import annotations

import math
from functools import partial
from itertools import chain

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
    output_gradients,
    run,
)
from convolutions import BAD_GROUPS, X, bad_arguments, check_autocast, check_empty_batch, check_memory, fits
from edges import check_thread_counts, error_of

import fastnets
from fastnets._backends import INTERPRETED
from fastnets.ops import grouped_conv2d
from fastnets.ops._activation import ACTIVATIONS

LAST = torch.channels_last


def case(
    name, shape, out, groups, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), bias=True, activation=None
):
    make = torch.Generator().manual_seed(len(name))
    x = torch.randn(shape, generator=make, dtype=torch.float64)
    w = torch.randn(out, shape[1] // groups, *kernel, generator=make, dtype=torch.float64)
    b = torch.randn(out, generator=make, dtype=torch.float64) if bias else None
    kwargs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "activation": activation}
    taps = kernel[0] * kernel[1]
    terms = max(taps * w.shape[1], taps * out // groups, shape[0] * shape[2] * shape[3])
    return Case(name, grouped_conv2d, [x, w, b], kwargs, terms, {"activation": None})


# One of each class: channels of a group that divide a vector of 4, 8 and 16 lanes, that fill it, that are wider and that
# leave a rest; groups that fill the last vector or not; columns in tiles of 7 and of 4, with a rest, and fewer.
CASES = [
    case("one number", (1, 1, 1, 1), 1, 1, padding=(0, 0), kernel=(1, 1)),
    case("one pixel", (2, 8, 1, 1), 8, 2),
    case("one column", (1, 6, 6, 1), 4, 2),
    case("four channels a group", (2, 32, 5, 14), 32, 8),
    case("a vector half full", (1, 12, 4, 8), 12, 3),
    case("two in, four out", (1, 20, 5, 9), 40, 10),
    case("four in, two out", (1, 12, 4, 7), 6, 3),
    case("three groups of five in a vector, one alone", (2, 35, 5, 9), 35, 7),
    case("two in, three out", (1, 18, 4, 8), 27, 9),
    case("eight channels a group", (1, 24, 6, 7), 24, 3, bias=False),
    case("sixteen channels a group", (1, 32, 4, 11), 32, 2),
    case("sixteen channels a group, tiles of fourteen", (1, 32, 3, 28), 32, 2),
    case("sixteen channels a group, tiles of fourteen, stride 2", (1, 32, 5, 28), 32, 2, stride=(2, 2)),
    case("rest after a vector", (1, 10, 3, 8), 46, 2),
    case("rest of the source", (1, 38, 3, 5), 6, 2),
    case("one group", (2, 5, 4, 6), 7, 1),
    case("depthwise", (1, 18, 5, 7), 18, 18),
    case("depthwise, three kernels a channel", (1, 5, 5, 7), 15, 5),
    case("stride 2", (2, 16, 9, 14), 16, 4, stride=(2, 2)),
    case("1x1", (2, 24, 4, 5), 36, 3, kernel=(1, 1), padding=(0, 0)),
    case("1x1 four channels a group", (1, 32, 3, 8), 32, 8, kernel=(1, 1), padding=(0, 0)),
    case("1x1 stride 2", (1, 16, 7, 8), 32, 2, kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    case("5x5", (1, 8, 6, 9), 8, 2, kernel=(5, 5), padding=(2, 2)),
    case("dilation not a multiple of the stride", (1, 8, 9, 11), 8, 4, stride=(3, 2), dilation=(2, 3), padding=(3, 1)),
    case("all asymmetric", (2, 4, 7, 9), 6, 2, kernel=(2, 5), stride=(1, 2), padding=(1, 3), dilation=(2, 1)),
    case("kernel larger than the map", (1, 8, 2, 3), 8, 2, kernel=(7, 5), padding=(3, 2)),
    case("more padding than kernel", (1, 4, 3, 3), 4, 2, padding=(4, 5)),
    case("one group, two taps", (1, 3, 2, 3), 2, 1, kernel=(1, 2), padding=(0, 1)),
    case("three groups, one tap", (2, 6, 3, 2), 3, 3, kernel=(1, 1), padding=(0, 0)),
    case("two groups, two taps", (1, 4, 4, 5), 6, 2, kernel=(2, 1), stride=(1, 2), padding=(1, 0)),
    case("stride larger than kernel and map", (1, 4, 4, 5), 4, 2, kernel=(2, 1), stride=(5, 7), padding=(0, 0)),
]
WIDE = 4 if INTERPRETED else 16
if INTERPRETED:  # A program takes milliseconds for each channel and tap; tiles are tested with depthwise_conv2d.
    CASES = [c for c in CASES if c.tensors[1].numel() <= 32]


@in_types("case", CASES, DTYPES, each=("two groups, two taps",))
def test_values_and_gradients(backend, case, dtype):
    check_values(case, dtype)


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a])
def test_activations(backend, activation):
    if INTERPRETED:  # as those of depthwise_conv2d: the kernels are the same
        return check_values(case("activation", (1, 4, 2, 3), 2, 2, kernel=(1, 1), activation=activation), torch.float32)
    check_values(case("activation", (1, 4, 3, 7), 6, 2, kernel=(1, 1), activation=activation), torch.float32)
    check_values(case("activation", (1, 4, 2, 3), 2, 2, kernel=(1, 1), activation=activation), torch.bfloat16)
    check_gradients(case("smooth", (1, 4, 2, 3), 2, 2, kernel=(2, 1), activation=activation))


@pytest.mark.parametrize(("out", "groups"), [(6, 2)] if INTERPRETED else [(4, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("stride", [2] if INTERPRETED else [1, 2])
def test_gradcheck(backend, out, groups, stride):
    check_gradients(case("gradcheck", (2, 4, 3, 2), out, groups, kernel=(2, 1), stride=(stride, 1)))


@pytest.mark.parametrize("activation", (None, "silu", "relu6"))
def test_tracing(backend, activation):
    c = case("tracing", (2, 4, 5, 6), 6, 2, kernel=(1, 3), padding=(0, 1), activation=activation)
    leaves = [t.detach().requires_grad_() for t in c.cast(torch.float64)]
    geometry = ([1, 1], [0, 1], [1, 1], 2)
    dy = torch.randn(2, 6, 5, 6, dtype=torch.float64, requires_grad=True)
    operators = torch.ops.fastnets
    check_tracing(
        c,
        [
            (operators.grouped_conv2d.default, (*leaves, *geometry, activation)),
            (operators.grouped_conv2d_backward.default, (dy, *leaves[:2], *geometry, True, True, True)),
            (operators.grouped_conv2d_backward.default, (dy, *leaves[:2], *geometry, False, True, False)),
        ],
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_onnx(tmp_path, activation):
    check_onnx(case("onnx", (2, 4, 9, 8), 6, 2, stride=(2, 1), activation=activation), tmp_path)


def test_literal_values(backend):
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1) * torch.tensor([1.0, 10.0])
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, -1.0]]).view(4, 2, 1, 1)
    bias = torch.tensor([0.5, 0.0, 0.0, 0.0])
    # The first two outputs see channels 0 and 1, the others channels 2 and 3.
    assert grouped_conv2d(x, w, bias, groups=2)[0, :, 0].tolist() == [[1.5, 10.5], [2, 20], [7, 70], [2, 20]]
    # A row of taps (a, b), zeros on both sides: b x0, a x0 + b x1, a x1.
    w = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]])
    assert grouped_conv2d(x[:, :2], w, padding=(0, 1)).tolist() == [[[[4.0, 41.0, 10.0]]]]
    assert grouped_conv2d(x[:, :2], w, padding=(0, 1), stride=(3, 2)).tolist() == [[[[4.0, 10.0]]]]


def test_literal_gradients(backend):
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1).requires_grad_()
    w = torch.tensor([[5.0, 6.0], [7.0, 8.0]]).view(2, 2, 1, 1).requires_grad_()
    bias = torch.zeros(2, requires_grad=True)
    grouped_conv2d(x, w, bias, groups=2).backward(torch.tensor([1.0, 10.0]).view(1, 2, 1, 1))
    assert x.grad.flatten().tolist() == [5.0, 6.0, 70.0, 80.0]
    assert w.grad.flatten().tolist() == [1.0, 2.0, 30.0, 40.0]
    assert bias.grad.tolist() == [1.0, 10.0]


@pytest.mark.parametrize("groups", (4, 2, 1))
@in_both_layouts
def test_nan_stays_where_the_kernel_reaches(backend, layout, groups):
    depth = WIDE // groups
    x = torch.ones(2, WIDE, 5, 10).contiguous(memory_format=layout)
    x[0, 2, 2, 3] = math.nan
    w = torch.ones(WIDE, depth, 3, 3, requires_grad=True)
    y = grouped_conv2d(x, w, padding=1, groups=groups)
    reached = torch.zeros(2, groups, depth, 5, 10, dtype=torch.bool)
    reached[0, 2 // depth, :, 1:4, 2:5] = True
    assert torch.equal(y.isnan(), reached.view(2, WIDE, 5, 10))
    y.sum().backward()
    reached = torch.zeros(groups, depth, depth, 3, 3, dtype=torch.bool)
    reached[2 // depth, :, 2 % depth] = True
    assert torch.equal(w.grad.isnan(), reached.view(WIDE, depth, 3, 3))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_travel(backend, activation):
    values = [math.nan, math.inf, -math.inf, 0.0, 1e-30, -1e30, 88.8, -88.8, 200.0, -200.0, 5.9999, 6.0]
    x = torch.tensor(values).view(1, 1, 1, -1).repeat(1, 6, 1, 1)
    w = torch.ones(6, 1, 1, 1)  # six groups, or the sum would be inf - inf
    got = grouped_conv2d(x, w, groups=6, activation=activation)
    torch.testing.assert_close(got, ACTIVATIONS[activation](x), rtol=1e-5, atol=1e-37, equal_nan=True)


def test_unbatched_and_string_padding(backend):
    x, w = torch.randn(6, 7, 8), torch.randn(4, 3, 3, 4)
    for padding in ("same", "valid", 2, (1, 2)):
        got = grouped_conv2d(x, w, None, 1, padding, (1, 2), 2)
        torch.testing.assert_close(got, F.conv2d(x, w, None, 1, padding, (1, 2), 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ("channels_last", "transposed", "strided"))
def test_weights_in_any_layout(backend, layout):
    c = case("weights", (1, 8, 4, 5), 12, 2, kernel=(2, 3))
    x, w, b = c.cast(torch.float32)
    strided = torch.full((24, 4, 2, 3), math.nan)
    strided[::2] = w
    w = {
        "channels_last": w.contiguous(memory_format=LAST),
        "transposed": w.mT.contiguous().mT,
        "strided": strided[::2],
    }[layout]
    tensors = [x, w, b]
    check_call(c, tensors, torch.float32, layout)


# 1x1 kernels that are products of matrices on a CPU: a group's results are a panel of 32 and a part of one, a part, a
# panel; so many pixels that all panels go over a block of them before the next, with lines of results fetched ahead; few
# results more than vectors, which are dots where there are channels for two vectors.
PRODUCTS = [
    case("panels and a rest", (2, 30, 5, 9), 123, 3, kernel=(1, 1), padding=(0, 0), activation="relu6"),
    case("part of a panel", (1, 80, 3, 5), 21, 1, kernel=(1, 1), padding=(0, 0), activation="silu"),
    case("one panel", (1, 16, 5, 5), 64, 2, kernel=(1, 1), padding=(0, 0), bias=False),
    case("many pixels", (8, 8, 128, 130), 32, 2, kernel=(1, 1), padding=(0, 0)),
    case("one result more", (2, 81, 5, 9), 51, 3, kernel=(1, 1), padding=(0, 0), bias=False),
    case("one result more, many channels", (2, 120, 5, 9), 51, 3, kernel=(1, 1), padding=(0, 0), activation="relu"),
    case("two more", (1, 128, 3, 5), 68, 2, kernel=(1, 1), padding=(0, 0), activation="silu"),
    case("three more", (3, 78, 13, 17), 38, 2, kernel=(1, 1), padding=(0, 0)),
    case("four more", (1, 129, 1, 2), 60, 3, kernel=(1, 1), padding=(0, 0)),
]


@pytest.mark.parametrize("case", PRODUCTS, ids=lambda case: case.name)
def test_products_of_matrices(cpu_kernels, case):
    check_values(case, torch.float32)


@pytest.mark.parametrize("stride", ((1, 123), (80, 1), (96, 3)))
def test_products_with_weights_in_any_layout(cpu_kernels, stride):
    x, w, b = PRODUCTS[0].cast(torch.float32)
    strided = torch.full((123 * 96,), math.nan).as_strided((123, 10, 1, 1), (*stride, 1, 1)).copy_(w)
    got = grouped_conv2d(x.contiguous(memory_format=LAST), strided, b, groups=3)
    assert (got - F.conv2d(x.double(), w.double(), b.double(), groups=3)).abs().max() < 1e-5


def test_a_stride_far_beyond_the_map_takes_no_memory(cpu_kernels):
    """Of the gradient of x; a list of taps for each pair of its residues would be 100 GB."""
    check_values(case("far", (1, 8, 4, 5), 8, 2, stride=(2**16, 2**17)), torch.float32)


@in_both_layouts
def test_empty_batch(backend, layout):
    check_empty_batch(lambda *args: grouped_conv2d(*args, 2, groups=2), 2, layout)


W = torch.ones(6, 2, 3, 3)
BAD = bad_arguments(W)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises_what_pytorch_raises(backend, name):
    assert error_of(grouped_conv2d, *BAD[name], groups=2) == error_of(F.conv2d, *BAD[name], groups=2)


@pytest.mark.parametrize("groups", BAD_GROUPS)
def test_bad_groups_raise_what_pytorch_raises(backend, groups):
    assert error_of(grouped_conv2d, X, W, groups=groups) == error_of(F.conv2d, X, W, groups=groups)


def test_bad_activation(backend):
    error, message = error_of(grouped_conv2d, X, W, groups=2, activation="tanh")
    assert error is ValueError and "'relu6'" in message and "'tanh'" in message


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_autocast(dtype):
    check_autocast(partial(grouped_conv2d, groups=2), 2, dtype)


THREADED = [
    case("3x3", (3, 40, 20, 21), 40, 10),
    case("1x1", (3, 40, 20, 21), 100, 2, kernel=(1, 1), padding=(0, 0)),
]


@pytest.mark.parametrize("case", THREADED, ids=lambda case: case.name)
@in_both_layouts
def test_threads_do_not_change_a_bit(cpu_kernels, layout, case):
    tensors = case.cast(torch.float32)
    tensors[0] = tensors[0].contiguous(memory_format=layout)
    dy = output_gradients(case, tensors)
    check_thread_counts(lambda: chain(*run(case, tensors, dy)))


@in_both_layouts
def test_memory(cpu_kernels, layout):
    """Beside the gradients, sixteen partial sums of those of weight and bias."""
    check_memory(partial(grouped_conv2d, groups=8), 16, layout, beside=16 * 128 * (16 * 9 + 1) * 4)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(data=st.data())
def test_any_geometry(data):
    """Shapes, groups, strides, paddings and dilations that nobody thought of, on the CPU kernels."""
    draw = data.draw
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups, depth, out = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    wide = draw(st.sampled_from([(1, 1), (4, 4), (1, 5), (5, 1)]))
    c = case(
        "any",
        (draw(st.integers(1, 2)), groups * depth * wide[0], draw(st.integers(1, 12)), draw(st.integers(1, 20))),
        groups * out * wide[1],
        groups,
        kernel=draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        stride=draw(pair),
        padding=draw(st.tuples(st.integers(0, 4), st.integers(0, 4))),
        dilation=draw(pair),
        bias=draw(st.booleans()),
    )
    hypothesis.assume(fits(*c.tensors[:2], c.kwargs))
    dtype = draw(st.sampled_from(DTYPES))
    tensors = c.cast(dtype)
    for i in (0, 1):
        if draw(st.booleans()):
            tensors[i] = tensors[i].contiguous(memory_format=LAST)
    check_call(c, tensors, dtype)


def test_backend_report_and_refusal():
    fastnets.backend_report(reset=True)
    with fastnets.use_backend("reference"):
        grouped_conv2d(X, W, groups=2)
    assert fastnets.backend_report()["grouped_conv2d"]["calls"] == {"reference": 1}
    with fastnets.use_backend("triton"), pytest.raises(RuntimeError, match="cannot run on backend 'triton': .*cpu"):
        grouped_conv2d(X.to(torch.int64), W.to(torch.int64), groups=2)

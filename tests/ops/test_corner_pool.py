"""corner_pool and corner_pool_sum on every backend: the contract, literal values, ties, NaN, edges, errors."""

from __future__ import annotations

import math
from itertools import chain

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from check_op import (
    DTYPES,
    LAYOUTS,
    Case,
    check_gradients,
    check_onnx,
    check_tracing,
    check_values,
    in_both_layouts,
    run,
    same,
)
from edges import allocated, check_thread_counts

import fastnets
from fastnets._backends import INTERPRETED
from fastnets.ops import corner_pool, corner_pool_sum
from fastnets.ops.corner_pool import CORNERS, DIRECTIONS, INTEGERS, TIES

LAST = torch.channels_last


def image(*shape, levels=4):
    """Whole numbers, so that ties are the normal case, as after a ReLU."""
    make = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, levels, shape, generator=make).double()


def case(name, shape, direction, tie="first", levels=4):
    kwargs = {"direction": direction, "tie": tie}
    terms = shape[2] if direction in ("top", "bottom") else shape[3]
    return Case(name, corner_pool, [image(*shape, levels=levels)], kwargs, terms, magnitude_of_inputs=False, exact=True)


def sum_case(name, shape, corner):
    v, h = image(*shape), image(*shape).flip(3)
    return Case(name, corner_pool_sum, [v, h], {"corner": corner}, max(shape[2:]), magnitude_of_inputs=False)


# One of each class of block: lanes and places below, at and past a vector of 4, 8 and 16; a rest in both; one of each.
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 5), (2, 5, 6, 1), (1, 3, 4, 8), (1, 17, 16, 16), (2, 33, 5, 18), (1, 2, 35, 37)]
SHAPES += [(1, 2, 3, 264), (33, 8, 3, 5)]  # rows that a warp goes along twice; images enough for a block each
if INTERPRETED:  # where a place takes a millisecond
    SHAPES = [(1, 1, 1, 1), (2, 3, 1, 5), (2, 3, 4, 3)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(backend, shape, direction, dtype):
    check_values(case("ties", shape, direction, "first"), dtype)
    check_values(case("few ties", shape, direction, "last", levels=1000), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sum(backend, shape, corner, dtype):
    check_values(sum_case("sum", shape, corner), dtype)


@pytest.mark.parametrize("dtype", (*INTEGERS, torch.bool), ids=str)
def test_integers(backend, dtype):
    shape = (1, 3, 4, 3) if INTERPRETED else (2, 17, 5, 19)
    for direction in DIRECTIONS:
        check_values(case("integers", shape, direction, levels=200), dtype)
    lowest = (
        torch.zeros(1, 1, 2, 3, dtype=dtype)
        if dtype == torch.bool
        else torch.full((1, 1, 2, 3), torch.iinfo(dtype).min, dtype=dtype)
    )
    assert torch.equal(corner_pool(lowest, "left"), lowest)
    if dtype != torch.bool:
        for corner in CORNERS:
            v, h = image(*shape).to(dtype), image(*shape).flip(2).to(dtype)
            vertical, horizontal = CORNERS[corner]
            expected = corner_pool(v, vertical) + corner_pool(h, horizontal)
            assert torch.equal(corner_pool_sum(v, h, corner), expected)


def test_64_bits_are_not_rounded(backend):
    x = torch.tensor([2**62 + 1, 2**62, -(2**63), 2**63 - 1]).view(1, 1, 1, 4)
    assert corner_pool(x, "right").flatten().tolist() == [2**62 + 1, 2**62 + 1, 2**62 + 1, 2**63 - 1]


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradcheck(backend, direction, tie):
    x = torch.randperm(24, generator=torch.Generator().manual_seed(0)).double().view(1, 2, 4, 3)  # no ties: smooth
    check_gradients(Case("gradcheck", corner_pool, [x], {"direction": direction, "tie": tie}))


@pytest.mark.parametrize("corner", CORNERS)
def test_sum_gradcheck(backend, corner):
    x = torch.randperm(48, generator=torch.Generator().manual_seed(0)).double().view(2, 1, 2, 4, 3)
    check_gradients(Case("gradcheck", corner_pool_sum, [*x], {"corner": corner}))


def test_tracing(backend):
    x, dy = (torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    operators = torch.ops.fastnets
    pool, backward = operators.corner_pool.default, operators.corner_pool_backward.default
    c = case("tracing", (2, 4, 5, 6), "left")
    check_tracing(c, [(pool, (x, "left", "first")), (backward, (dy, x, "top", "last"))])
    c = Case("tracing", lambda x: corner_pool_sum(x, -x, "top_left"), [torch.randn(2, 4, 5, 6)])
    check_tracing(c, [(operators.corner_pool_sum.default, (x, dy, "bottom_right"))])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_onnx(tmp_path, direction):
    check_onnx(Case("onnx", corner_pool, [torch.randn(2, 3, 9, 8)], {"direction": direction}), tmp_path)


@pytest.mark.parametrize("corner", CORNERS)
def test_sum_onnx(tmp_path, corner):
    check_onnx(Case("onnx", lambda x: corner_pool_sum(x, -x, corner), [torch.randn(2, 3, 9, 8)]), tmp_path)


X = [[1.0, 3.0, 2.0], [0.0, 3.0, 5.0], [4.0, 1.0, 5.0]]
LITERAL = {
    "top": [[4.0, 3.0, 5.0], [4.0, 3.0, 5.0], [4.0, 1.0, 5.0]],
    "bottom": [[1.0, 3.0, 2.0], [1.0, 3.0, 5.0], [4.0, 3.0, 5.0]],
    "left": [[3.0, 3.0, 2.0], [5.0, 5.0, 5.0], [5.0, 5.0, 5.0]],
    "right": [[1.0, 3.0, 3.0], [0.0, 3.0, 5.0], [4.0, 4.0, 5.0]],
}


@in_both_layouts
@pytest.mark.parametrize("direction", LITERAL)
def test_literal_values(backend, direction, layout):
    x = torch.tensor(X).repeat(1, 2, 1, 1).contiguous(memory_format=layout)
    assert corner_pool(x, direction).tolist() == [[LITERAL[direction]] * 2]
    assert corner_pool(x[0], direction).tolist() == [LITERAL[direction]] * 2


def test_literal_sums(backend):
    x = torch.tensor(X)[None, None]
    for corner, (vertical, horizontal) in {"top_left": ("top", "left"), "bottom_right": ("bottom", "right")}.items():
        expected = torch.tensor(LITERAL[vertical]) + torch.tensor(LITERAL[horizontal])
        assert corner_pool_sum(x, x, corner).tolist() == [[expected.tolist()]]
        assert corner_pool_sum(x[0], x[0], corner).tolist() == [expected.tolist()]


# Gradients of the sum of all results along one scan: how many results each number of the input is.
TIED = {
    ("first", (0.0, 2.0, 2.0, 1.0, 2.0)): [1.0, 4.0, 0.0, 0.0, 0.0],  # CornerNet's rule: a strict >
    ("last", (0.0, 2.0, 2.0, 1.0, 2.0)): [1.0, 1.0, 2.0, 0.0, 1.0],  # torch.cummax
    ("first", (0.0, 0.0, 0.0, 0.0, 0.0)): [5.0, 0.0, 0.0, 0.0, 0.0],
    ("last", (0.0, 0.0, 0.0, 0.0, 0.0)): [1.0, 1.0, 1.0, 1.0, 1.0],
    ("first", (-0.0, 0.0, -0.0, -1.0, 1.0)): [4.0, 0.0, 0.0, 0.0, 1.0],
    ("last", (-0.0, 0.0, -0.0, -1.0, 1.0)): [1.0, 1.0, 2.0, 0.0, 1.0],
    ("first", (-math.inf, -math.inf, 1.0, math.inf, math.inf)): [2.0, 0.0, 1.0, 2.0, 0.0],
    ("first", (1.0, math.nan, 3.0, math.nan, 2.0)): [1.0, 4.0, 0.0, 0.0, 0.0],
    ("last", (1.0, math.nan, 3.0, math.nan, 2.0)): [1.0, 2.0, 0.0, 2.0, 0.0],
    ("first", (math.nan, math.inf, 0.0, 0.0, 0.0)): [5.0, 0.0, 0.0, 0.0, 0.0],
}


@in_both_layouts
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("tie", "values"), TIED, ids=str)
def test_who_receives_the_gradient(backend, direction, tie, values, layout):
    dim, reverse = DIRECTIONS[direction]
    scan = torch.tensor(values[::-1] if reverse else values).view((5, 1) if dim == 2 else (1, 5))
    x = scan.repeat(1, 17, 1, 1).contiguous(memory_format=layout).requires_grad_()
    y = corner_pool(x, direction, tie=tie)
    y.sum().backward()
    expected = TIED[tie, values]
    assert x.grad.view(17, 5).tolist() == [expected[::-1] if reverse else expected] * 17
    nan = torch.tensor(values).isnan().cummax(0).values
    assert torch.equal(y.detach().view(17, 5)[3].isnan(), nan.flip(0) if reverse else nan)


def test_last_is_the_gradient_of_cummax(backend):
    x = image(2, 3, 4, 5).requires_grad_()
    dy = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    for direction, dim in (("bottom", 2), ("right", 3)):
        (ours,) = torch.autograd.grad(corner_pool(x, direction, tie="last"), x, dy)
        (theirs,) = torch.autograd.grad(x.cummax(dim).values, x, dy)
        torch.testing.assert_close(ours, theirs)


@in_both_layouts
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)], ids=str)
def test_empty(backend, shape, layout):
    x = torch.zeros(shape).contiguous(memory_format=layout).requires_grad_()
    for direction in DIRECTIONS:
        y = corner_pool(x, direction)
        assert y.shape == shape
        assert torch.autograd.grad(y.sum(), x)[0].shape == shape
    assert corner_pool_sum(x, x, "top_left").shape == shape


X4 = torch.ones(1, 2, 3, 3)
BAD = {
    "direction": (lambda: corner_pool(X4, "up"), ValueError, "direction must be one of .*'right'.*, but got 'up'"),
    "tie": (lambda: corner_pool(X4, "top", tie="all"), ValueError, "tie must be one of .*, but got 'all'"),
    "two dimensions": (lambda: corner_pool(X4[0, 0], "top"), RuntimeError, r"float32 of shape \(3, 3\)"),
    "five dimensions": (lambda: corner_pool(X4[None], "top"), RuntimeError, r"shape \(1, 1, 2, 3, 3\)"),
    "complex": (lambda: corner_pool(X4.to(torch.complex64), "top"), RuntimeError, "complex64"),
    "corner": (lambda: corner_pool_sum(X4, X4, "top_right"), ValueError, "corner must be one of .*'top_right'"),
    "sizes": (lambda: corner_pool_sum(X4, X4[..., :2], "top_left"), RuntimeError, r"one shape.*\(1, 2, 3, 2\)"),
    "types": (lambda: corner_pool_sum(X4, X4.double(), "top_left"), RuntimeError, "one shape, .*float64"),
    "bool": (lambda: corner_pool_sum(X4 > 0, X4 > 0, "top_left"), RuntimeError, "can be added, but got torch.bool"),
    "one unbatched": (lambda: corner_pool_sum(X4, X4[0], "top_left"), RuntimeError, "one shape"),
    "gradient": (
        lambda: torch.ops.fastnets.corner_pool_backward(X4[..., :2], X4, "top", "first"),
        RuntimeError,
        "gradient of the shape",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises(name, backend):
    call, error, message = BAD[name]
    if name == "complex" and backend != "reference":
        message = "cannot run on backend"
    with pytest.raises(error, match=message):
        call()


def test_sum_brings_two_layouts_together(backend):
    v, h = image(2, 3, 4, 5), image(2, 3, 4, 5).flip(2)
    expected = corner_pool_sum(v, h, "top_left")
    got = corner_pool_sum(v.contiguous(memory_format=LAST), h, "top_left")
    assert torch.equal(got, expected) and got.is_contiguous(memory_format=LAST)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(data=st.data())
def test_any_geometry(data):
    """Shapes, types and layouts that nobody thought of, on the CPU kernels, against the reference bit for bit."""
    draw = data.draw
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)))
    dtype = draw(st.sampled_from(DTYPES))
    x = image(*shape, levels=draw(st.sampled_from((2, 9, 1000)))).to(dtype)
    x = x.contiguous(memory_format=draw(st.sampled_from(LAYOUTS))).requires_grad_()
    dy = image(*shape, levels=9).to(dtype)  # whole numbers: sums are exact, whatever their order
    direction, tie = draw(st.sampled_from(tuple(DIRECTIONS))), draw(st.sampled_from(TIES))
    results = []
    for name in ("cpu", "reference"):
        with fastnets.use_backend(name):
            y = corner_pool(x, direction, tie=tie)
            results.append([y, *torch.autograd.grad(y, x, dy)])
    assert same(*results)


@in_both_layouts
def test_threads_do_not_change_a_bit(cpu_kernels, layout):
    shape = (3, 40, 20, 21)
    for c in (case("threads", shape, "left"), sum_case("threads", shape, "top_left")):
        tensors = [t.float().contiguous(memory_format=layout) for t in c.tensors]
        dy = [torch.randn(shape)]
        check_thread_counts(lambda c=c, tensors=tensors, dy=dy: chain(*run(c, tensors, dy)))


@in_both_layouts
def test_allocates_only_its_result(cpu_kernels, layout):
    x = torch.randn(2, 16, 128, 256).contiguous(memory_format=layout)
    backward = torch.ops.fastnets.corner_pool_backward
    calls = [lambda d=d: corner_pool(x, d) for d in DIRECTIONS] + [lambda: corner_pool_sum(x, x, "top_left")]
    calls += [lambda d=d: backward(x, x, d, "first") for d in DIRECTIONS]
    assert [allocated(call) for call in calls] == [x.nbytes] * len(calls)

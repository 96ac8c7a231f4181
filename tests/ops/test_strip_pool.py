"""strip_pool on every backend: the contract, literal values, edges, errors."""

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
    check_call,
    check_gradients,
    check_onnx,
    check_tracing,
    check_values,
    in_both_layouts,
    output_gradients,
    run,
)
from edges import allocated, check_thread_counts

from fastnets._backends import INTERPRETED
from fastnets.ops import strip_pool

LAST = torch.channels_last


def case(name, shape):
    make = torch.Generator().manual_seed(sum(shape))
    # The terms of a mean are magnitudes over their number: the op itself on absolute values.
    return Case(name, strip_pool, [torch.randn(shape, generator=make, dtype=torch.float64)], terms=max(shape[2:]))


# One of each class of block: rows in fours and in strips of 16, columns and channels in vectors of 4, 8 and 16, with and
# without a rest; one of each.
CASES = [
    case("one number", (1, 1, 1, 1)),
    case("one row", (2, 3, 1, 5)),
    case("one column", (2, 5, 6, 1)),
    case("few", (3, 3, 4, 8)),
    case("whole vectors", (1, 16, 16, 16)),
    case("rest", (2, 33, 5, 18)),
    case("strips", (1, 2, 35, 37)),
    case("rows that begin anywhere", (1, 8, 9, 19)),
    case("channels", (1, 70, 17, 3)),
]
if INTERPRETED:
    CASES = [c for c in CASES if c.tensors[0].numel() <= 400] + [case("two strips", (1, 2, 17, 3))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(backend, case, dtype):
    check_values(case, dtype)


def test_gradcheck(backend):
    check_gradients(case("gradcheck", (2, 2, 3, 4)))
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    for i in range(2):  # a gradient that is missing
        check_gradients(Case("one of two", lambda x, i=i: strip_pool(x)[i], [x]))


def test_tracing(backend):
    leaf = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    grads = torch.randn(2, 4, 5, 1, requires_grad=True), torch.randn(2, 4, 1, 6, requires_grad=True)
    operators = torch.ops.fastnets
    check_tracing(
        case("tracing", (2, 4, 5, 6)),
        [
            (operators.strip_pool.default, (leaf,)),
            (operators.strip_pool_backward.default, (*grads, True)),
            (operators.strip_pool_backward.default, (*grads, False)),
        ],
    )


def test_onnx(tmp_path):
    check_onnx(case("onnx", (2, 4, 9, 8)), tmp_path)


@in_both_layouts
def test_literal_values(backend, layout):
    x = torch.tensor([[1.0, 3.0, 5.0], [7.0, 9.0, 11.0]]).repeat(1, 2, 1, 1).contiguous(memory_format=layout)
    rows, columns = strip_pool(x.requires_grad_())
    assert rows.tolist() == [[[[3.0], [9.0]]] * 2]
    assert columns.tolist() == [[[[4.0, 6.0, 8.0]]] * 2]
    (dx,) = torch.autograd.grad([rows, columns], x, [torch.full_like(rows, 6.0), torch.full_like(columns, 10.0)])
    assert dx.tolist() == [[[[7.0] * 3] * 2] * 2] and dx.stride() == x.stride()
    rows, columns = strip_pool(x[0].detach())
    assert rows.tolist() == [[[3.0], [9.0]]] * 2 and columns.tolist() == [[[4.0, 6.0, 8.0]]] * 2


@in_both_layouts
def test_nan_and_infinity_stay_in_their_row_and_column(backend, layout):
    x = torch.ones(1, 17, 5, 19).contiguous(memory_format=layout)
    x[0, 3, 2, 17], x[0, 3, 4, 0] = math.nan, math.inf
    rows, columns = (y.flatten(1) for y in strip_pool(x[0]))
    assert rows.isnan().nonzero().tolist() == [[3, 2]] and columns.isnan().nonzero().tolist() == [[3, 17]]
    assert rows.isinf().nonzero().tolist() == [[3, 4]] and columns.isinf().nonzero().tolist() == [[3, 0]]


@in_both_layouts
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)], ids=str)
def test_empty_is_what_mean_gives(backend, shape, layout):
    x = torch.zeros(shape).contiguous(memory_format=layout).requires_grad_()
    results = strip_pool(x)
    for y, dim in zip(results, (3, 2), strict=True):
        torch.testing.assert_close(y, x.mean(dim, keepdim=True), equal_nan=True)
    assert torch.autograd.grad(sum(y.sum() for y in results), x)[0].shape == shape


@in_both_layouts
def test_a_long_mean_keeps_its_digits(backend, layout):
    """One number many times: a sum taken one after another in float32 would be off by 1e-4."""
    n = 600 if INTERPRETED else 1 << 15
    for shape in ((1, 2, 2, n), (1, 2, n, 2)):
        for y in strip_pool(torch.full(shape, 0.1).contiguous(memory_format=layout)):
            torch.testing.assert_close(y, torch.full_like(y, 0.1), rtol=2e-5, atol=0)


BAD = {
    "integers": (lambda: strip_pool(torch.ones(1, 2, 3, 3, dtype=torch.int32)), "int32"),
    "two dimensions": (lambda: strip_pool(torch.ones(3, 3)), r"float32 of shape \(3, 3\)"),
    "five dimensions": (lambda: strip_pool(torch.ones(1, 1, 2, 3, 3)), r"shape \(1, 1, 2, 3, 3\)"),
    "gradient": (
        lambda: torch.ops.fastnets.strip_pool_backward(torch.ones(1, 2, 3, 2), torch.ones(1, 2, 1, 4), False),
        r"\(n, c, h, 1\).*\(1, 2, 3, 2\)",
    ),
    "gradients of two types": (
        lambda: torch.ops.fastnets.strip_pool_backward(torch.ones(1, 2, 3, 1), torch.ones(1, 2, 1, 4).double(), False),
        "one type and device.*float64",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises(name, backend):
    call, message = BAD[name]
    with pytest.raises(RuntimeError, match=message):
        call()


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(data=st.data())
def test_any_geometry(data):
    """Shapes, types and layouts that nobody thought of, on the CPU kernels."""
    draw = data.draw
    c = case("any", draw(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))))
    dtype = draw(st.sampled_from(DTYPES))
    tensors = [c.cast(dtype)[0].contiguous(memory_format=draw(st.sampled_from(LAYOUTS)))]
    check_call(c, tensors, dtype)


@in_both_layouts
@pytest.mark.parametrize("shape", ((1, 80, 40, 41), (2, 24, 8, 33)), ids=str)  # channels are whole vectors, or not
def test_threads_do_not_change_a_bit(cpu_kernels, layout, shape):
    c = case("threads", shape)
    tensors = [c.tensors[0].float().contiguous(memory_format=layout)]
    dy = output_gradients(c, tensors)
    check_thread_counts(lambda: chain(*run(c, tensors, dy)))


@in_both_layouts
def test_allocates_its_results_and_sums_of_parts(cpu_kernels, layout):
    x = torch.randn(2, 16, 256, 384).contiguous(memory_format=layout)
    rows, columns = strip_pool(x)
    sums = x.nbytes // 16 if layout == LAST else 0
    assert allocated(lambda: strip_pool(x)) == rows.nbytes + columns.nbytes + sums
    backward = torch.ops.fastnets.strip_pool_backward
    assert allocated(lambda: backward(rows, columns, layout == LAST)) == x.nbytes

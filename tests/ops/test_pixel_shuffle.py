"""pixel_shuffle, its inverse and the shuffle into bytes, on every backend: the contract, literal values, edges, errors."""

from __future__ import annotations

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from check_op import (
    Case,
    check_gradients,
    check_onnx,
    check_onnx_module,
    check_tracing,
    check_values,
    in_both_layouts,
    layouts,
)
from edges import allocated, error_of, need_memory
from movement import FLOATS, OTHERS, PLACES, more_than_2_to_31, of_type

from fastnets._backends import INTERPRETED
from fastnets.ops import pixel_shuffle, pixel_shuffle_to_uint8, pixel_unshuffle


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def up(name, shape, r):
    n, c, h, w = shape
    return Case(name, pixel_shuffle, [images(n, c * r * r, h, w)], {"upscale_factor": r}, exact=True)


def down(name, shape, r):
    n, c, h, w = shape
    return Case(f"{name}, down", pixel_unshuffle, [images(n, c, h * r, w * r)], {"downscale_factor": r}, exact=True)


# n, c, h, w of the images with few channels for those with c; factors with vector kernels and without; rows, and
# channels, of no vector, half a vector, one and more with a rest.
SHAPES = {
    "one number": ((1, 1, 1, 1), 1),
    "one pixel": ((2, 5, 1, 1), 2),
    "factor 1": ((2, 3, 3, 4), 1),
    "two": ((2, 1, 3, 35), 2),
    "three": ((1, 1, 3, 37), 3),
    "four": ((2, 1, 2, 18), 4),
    "colours by two": ((1, 3, 3, 17), 2),
    "colours by three": ((1, 3, 2, 7), 3),
    "colours by four": ((2, 3, 2, 5), 4),
    "many channels by two": ((1, 20, 2, 3), 2),
    "many channels by three": ((1, 17, 2, 3), 3),
    "many channels by four": ((1, 16, 1, 2), 4),
    "five": ((1, 2, 2, 3), 5),
}
CASES = [f(name, *SHAPES[name]) for name in SHAPES for f in (up, down)]


# The interpreter takes milliseconds for a program, whatever it moves.
DTYPES = (torch.float32, torch.uint8) if INTERPRETED else (*FLOATS, torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(backend, case, dtype):
    check_values(case, dtype)


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
@in_both_layouts
def test_every_type(backend, dtype, layout):
    for r in (2, 3):
        x, known = (t.contiguous(memory_format=layout) for t in of_type((2, 3 * r * r, 3, 5), dtype))
        y, expected = pixel_shuffle(x, r), F.pixel_shuffle(known, r)
        assert y.dtype == dtype and y.stride() == expected.stride() and torch.equal(y.view(known.dtype), expected)
        assert torch.equal(pixel_unshuffle(y, r).view(known.dtype), known)


@pytest.mark.parametrize("case", [up("up", (2, 2, 2, 3), 2), down("of three", (1, 2, 2, 3), 3)], ids=str)
def test_gradcheck(backend, case):
    check_gradients(case)


def test_tracing(backend):
    x = images(2, 8, 3, 4).requires_grad_()
    operators = torch.ops.fastnets
    check_tracing(up("tracing", (2, 2, 3, 4), 2), [(operators.pixel_shuffle.default, (x, 2))])
    sizes = [(3, 2, 8, 6), (5, 2, 4, 10)]
    fine = F.pixel_shuffle(x.detach(), 2).requires_grad_()
    check_tracing(down("tracing", (2, 2, 3, 4), 2), [(operators.pixel_unshuffle.default, (fine, 2))], sizes)
    to_bytes = Case("to bytes", pixel_shuffle_to_uint8, [x.detach()], {"upscale_factor": 2})
    check_tracing(to_bytes, [(operators.pixel_shuffle_to_uint8.default, (x.detach(), 2))])


class Down(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pixel_unshuffle(x, 2)


def test_onnx(tmp_path):
    """With several channels: where SpaceToDepth would put them in another order."""
    (node,) = check_onnx(up("onnx", (2, 3, 9, 8), 2), tmp_path)
    assert node.op_type == "DepthToSpace" and node.attributes["mode"].value == "CRD"
    check_onnx(Case("to bytes", pixel_shuffle_to_uint8, [images(2, 12, 9, 8)], {"upscale_factor": 2}), tmp_path)
    check_onnx_module(Down(), torch.randn(2, 3, 8, 10), tmp_path, step=2)


def test_literal_values(backend):
    x = torch.arange(16.0).view(1, 8, 1, 2)
    y = pixel_shuffle(x, 2)
    assert y.tolist() == [[[[0, 2, 1, 3], [4, 6, 5, 7]], [[8, 10, 9, 11], [12, 14, 13, 15]]]]
    assert pixel_unshuffle(y, 2).flatten().tolist() == list(range(16))


@pytest.mark.parametrize("shape", [(8, 3, 4), (5, 2, 8, 3, 4), (1, 2, 3, 4, 2, 2), (2, 0, 8, 3, 4)], ids=str)
def test_any_number_of_dimensions(backend, shape):
    x = images(*shape).requires_grad_()
    y, expected = pixel_shuffle(x, 2), F.pixel_shuffle(x, 2)
    assert torch.equal(y, expected) and y.stride() == expected.stride()
    (dx,) = torch.autograd.grad(y, x, expected.detach())
    assert torch.equal(dx, x) and torch.equal(pixel_unshuffle(expected, 2), x)
    assert torch.equal(pixel_shuffle_to_uint8(x, 2), to_bytes(expected))


@pytest.mark.parametrize("shape", [(0, 8, 4, 6), (2, 0, 4, 6), (2, 8, 0, 6), (2, 8, 4, 0)], ids=str)
def test_empty(backend, shape):
    x = torch.zeros(shape, requires_grad=True)
    for ours, theirs in ((pixel_shuffle, F.pixel_shuffle), (pixel_unshuffle, F.pixel_unshuffle)):
        y = ours(x, 2)
        expected = theirs(x.to("meta"), 2)  # F.pixel_unshuffle on a CPU returns an empty input as it is
        assert y.shape == expected.shape and y.stride() == expected.stride()
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert dx.shape == x.shape
    assert pixel_shuffle_to_uint8(x, 2).shape == F.pixel_shuffle(x, 2).shape


def to_bytes(x):
    return x.clamp(0, 1).mul(255).round().to(torch.uint8)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("r, c, w", [(1, 1, 3), (2, 1, 530), (3, 3, 33), (4, 17, 5)])
def test_bytes(backend, dtype, r, c, w):
    """All halves between bytes and their neighbours, what lies outside, infinity and NaN."""
    if INTERPRETED:
        w = min(w, 33)
    halves = (torch.arange(-2, 258, dtype=torch.float64) + 0.5) / 255
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, 1.0, 1 - 1e-9, 1e-9, 0.5, 1e30])
    values = torch.cat((halves, halves + 1e-7, halves - 1e-7, special, torch.rand(500) * 1.2 - 0.1)).to(dtype)
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    h = 1 + len(values) // (r * r * c * w)
    x = values.repeat(1 + r * r * c * h * w // len(values))[: r * r * c * h * w].view(1, r * r * c, h, w)
    for what, view in layouts(x).items():
        y, expected = pixel_shuffle_to_uint8(view, r), pixel_shuffle(to_bytes(x), r)
        assert torch.equal(y, expected), f"{what}: {(y != expected).sum()} bytes differ"
        assert y.stride() == pixel_shuffle(view, r).stride(), what


def test_bytes_have_no_gradient(backend):
    x = torch.rand(1, 4, 2, 2, requires_grad=True)
    y = pixel_shuffle_to_uint8(x, 2)
    assert not y.requires_grad and torch.equal(y, pixel_shuffle_to_uint8(x.detach(), 2))


def test_lazy_conjugates_and_negatives(backend):
    z = torch.randn(1, 4, 2, 2, dtype=torch.complex64)
    for lazy in (z.conj(), z.conj().imag):
        for x in (lazy, lazy.clone().requires_grad_()):
            for f in (pixel_shuffle, pixel_unshuffle):
                assert torch.equal(f(x, 2), f(lazy.clone(), 2))
    assert torch.equal(pixel_shuffle_to_uint8(z.conj().imag, 2), pixel_shuffle_to_uint8(-z.imag, 2))
    x = torch.randn(1, 4, 2, 2, dtype=torch.complex64, requires_grad=True)
    (dx,) = torch.autograd.grad(pixel_shuffle(x, 2), x, F.pixel_shuffle(z.conj().clone(), 2).conj().clone().conj())
    assert torch.equal(dx, z.conj().clone())


X = torch.ones(2, 8, 4, 6)
BAD = {
    "one dimension": (X[0, 0, 0], 2),
    "two dimensions": (X[0, 0], 2),
    "two dimensions and no factor": (X[0, 0], 0),
    "channels, rows and columns": (X, 5),
    "rows": (X[:, :, :3, :4], 4),
    "columns": (X[:, :, :, :3], 4),
    "five dimensions": (X[None], 5),
    "zero": (X, 0),
    "zero, no channels": (X[:, :0], 0),
    "negative": (X, -1),
    "float": (X, 2.0),
    "bool": (X, True),
    "text": (X, "2"),
    "none": (X, None),
    "square too large": (X, 2**32),
    "large": (X, 2**31),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises_what_pytorch_raises(backend, name):
    x, factor = BAD[name]
    pairs = [(pixel_shuffle, F.pixel_shuffle), (pixel_shuffle_to_uint8, F.pixel_shuffle)]
    for ours, theirs in (*pairs, (pixel_unshuffle, F.pixel_unshuffle)):
        expected = error_of(theirs, x, factor)
        assert error_of(ours, x, factor) == expected
        assert error_of(ours, x.clone().requires_grad_(), factor) == expected


@pytest.mark.parametrize("dtype", (torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn), ids=str)
def test_bytes_of_other_types_raise(backend, dtype):
    expected = f"pixel_shuffle_to_uint8 expects float32, float64, bfloat16 or float16, but got {dtype}"
    assert error_of(pixel_shuffle_to_uint8, torch.zeros(1, 4, 2, 2).to(dtype), 2) == (RuntimeError, expected)


def test_integers_of_other_kinds(backend):
    for factor in (np.int64(2), torch.tensor(2)):
        assert torch.equal(pixel_shuffle(X, factor), F.pixel_shuffle(X, 2))


@pytest.mark.skipif(INTERPRETED, reason="on the compiled kernels")
@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(data=st.data())
def test_any_geometry(data):
    """Shapes that nobody thought of, on the CPU kernels."""
    draw = data.draw
    r, c = draw(st.integers(1, 6)), draw(st.sampled_from((1, 2, 3, 4, 8, 15, 16, 33)))
    dtype = draw(st.sampled_from((torch.uint8, torch.int16, torch.int32, torch.int64)))
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 70))
    x = torch.randint(0, 255, (n, c * r * r, h, w)).to(dtype)
    x = draw(st.sampled_from(list(layouts(x).values())))
    y = pixel_shuffle(x, r)
    assert torch.equal(y, F.pixel_shuffle(x, r))
    assert torch.equal(pixel_unshuffle(draw(st.sampled_from(list(layouts(y).values()))), r), x)


@pytest.mark.parametrize("r, c", [(2, 3), (3, 3), (2, 8)])
@in_both_layouts
def test_more_than_the_caches_keep(cpu_kernels, layout, r, c):
    """Results of more than 16 MiB are stored past the caches where their rows are whole cache lines."""
    x = torch.randn(1, c, 1200, 1200).contiguous(memory_format=layout)
    y = pixel_unshuffle(x, r)
    assert torch.equal(y, F.pixel_unshuffle(x, r)) and torch.equal(pixel_shuffle(y, r), x)


@in_both_layouts
def test_allocates_only_its_result(cpu_kernels, layout):
    x = torch.randn(4, 16, 256, 256).contiguous(memory_format=layout)
    size = x.numel() * 4
    for f in (pixel_shuffle, pixel_unshuffle):
        assert allocated(lambda f=f: f(x, 2)) == size
    assert allocated(lambda: pixel_shuffle_to_uint8(x, 2)) == size // 4


def fine(rows):
    """Where a shuffle by 2 puts rows."""
    return slice(2 * rows.start, 2 * rows.stop)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter would take hours")
@in_both_layouts
def test_more_than_2_to_31_elements(layout):
    need_memory(7)
    x = more_than_2_to_31(layout)
    y = pixel_shuffle(x, 2)
    for image, rows in PLACES:
        assert torch.equal(y[image, :, fine(rows)], F.pixel_shuffle(x[image, :, rows], 2))
    x = pixel_unshuffle(y, 2)
    for image, rows in PLACES:
        assert torch.equal(y[image, :, fine(rows)], F.pixel_shuffle(x[image, :, rows], 2))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter would take hours")
@in_both_layouts
def test_more_than_2_to_31_bytes(layout):
    need_memory(7)
    x = more_than_2_to_31(layout, np.float16)
    y = pixel_shuffle_to_uint8(x, 2)
    for image, rows in PLACES:
        assert torch.equal(y[image, :, fine(rows)], F.pixel_shuffle(to_bytes(x[image, :, rows]), 2))

"""channel_shuffle and shuffle_split on every backend: the contract, literal values, edges, errors."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from check_op import Case, check_gradients, check_onnx, check_tracing, check_values, in_both_layouts, layouts
from edges import allocated, error_of, need_memory
from movement import FLOATS, OTHERS, PLACES, more_than_2_to_31, of_type

from fastnets._backends import INTERPRETED
from fastnets.ops import channel_shuffle, shuffle_split
from fastnets.ops.channel_shuffle import op_split


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def shuffle_case(name, shape, groups):
    return Case(name, channel_shuffle, [images(*shape)], {"groups": groups}, exact=True)


def split_case(name, shape):
    return Case(name, shuffle_split, [images(*shape), -images(*shape)], exact=True)


# Numbers of groups with vector kernels and without, of which a group, or as many as there are groups, holds channels
# for no vector, half a vector, one and more with a rest; rows in runs of every length.
CASES = [
    shuffle_case("one number", (1, 1, 1, 1), 1),
    shuffle_case("one group", (2, 6, 3, 4), 1),
    shuffle_case("each a group", (2, 6, 3, 4), 6),
    shuffle_case("two groups", (2, 116, 3, 5), 2),
    shuffle_case("two in a group", (2, 116, 2, 3), 58),
    shuffle_case("three groups", (1, 60, 4, 4), 3),
    shuffle_case("four groups", (2, 68, 1, 3), 4),
    shuffle_case("eight groups, one pixel", (3, 96, 1, 1), 8),
    shuffle_case("five groups", (2, 35, 3, 3), 5),
    shuffle_case("nine in a group", (1, 90, 2, 2), 10),
    shuffle_case("wide rows", (1, 4, 9, 300), 2),
    split_case("one channel", (2, 1, 3, 3)),
    split_case("odd", (2, 5, 3, 4)),
    split_case("even", (2, 58, 3, 5)),
    split_case("one pixel", (3, 24, 1, 1)),
    split_case("wide", (1, 4, 9, 40)),
]


# The interpreter takes milliseconds for a program, whatever it moves.
DTYPES = (torch.float32, torch.uint8) if INTERPRETED else (*FLOATS, torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(backend, case, dtype):
    check_values(case, dtype)


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
def test_every_type(backend, dtype):
    (x, known), (b, known_b) = (of_type((2, 12, 3, 5), dtype) for _ in range(2))
    for what, view in layouts_of(x).items():
        got = channel_shuffle(view, 3)
        assert got.dtype == dtype and torch.equal(got.view(known.dtype), F.channel_shuffle(known, 3)), what
        both = F.channel_shuffle(torch.cat((known, known_b), 1), 2).chunk(2, 1)
        for y, expected in zip(shuffle_split(view, b), both, strict=True):
            assert torch.equal(y.view(known.dtype), expected), what


def layouts_of(x):
    return {"contiguous": x, "channels_last": x.contiguous(memory_format=torch.channels_last), "rows": x.mT.clone().mT}


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[8], CASES[12], CASES[14]], ids=str)
def test_gradcheck(backend, case):
    check_gradients(case)


def test_gradients_of_split_asked_for_alone(backend):
    a, b = images(1, 3, 2, 2).requires_grad_(), images(1, 3, 2, 2)
    y, _ = shuffle_split(a, b)  # channels a0, b0, a1
    y.sum().backward()
    assert b.grad is None and a.grad[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]


def test_tracing(backend):
    x, b = images(2, 6, 3, 4).requires_grad_(), images(2, 6, 3, 4).requires_grad_()
    operators = torch.ops.fastnets
    check_tracing(shuffle_case("tracing", (2, 6, 3, 4), 3), [(operators.channel_shuffle.default, (x, 3))])
    split = operators.shuffle_split.default
    for arguments in ((x, b, False), (x, b, True)):
        torch.library.opcheck(split, arguments)

    def twice(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return shuffle_split(x, x + 1)

    check_tracing(Case("split", twice, [x.detach()]), [])


def test_onnx(tmp_path):
    check_onnx(shuffle_case("onnx", (2, 12, 9, 8), 3), tmp_path)
    check_onnx(Case("split", lambda x: shuffle_split(x, -x), [images(2, 5, 9, 8)]), tmp_path)


def test_literal_values(backend):
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert channel_shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert channel_shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    y, z = shuffle_split(x[:, :3], x[:, 3:])
    assert y.flatten().tolist() == [0, 3, 1] and z.flatten().tolist() == [4, 2, 5]
    a, b = op_split(y, z, True)
    assert a.flatten().tolist() == [0, 1, 2] and b.flatten().tolist() == [3, 4, 5]


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 3, 4, 5), (1, 6, 2, 1, 2, 3)], ids=str)
def test_any_number_of_dimensions(backend, shape):
    x = images(*shape).requires_grad_()
    y = channel_shuffle(x, 3)
    assert torch.equal(y, F.channel_shuffle(x, 3)) and y.stride() == x.stride()
    (dx,) = torch.autograd.grad(y, x, F.channel_shuffle(x.detach(), 3))
    assert torch.equal(dx, x)
    if len(shape) == 5:
        volumes = x.detach().contiguous(memory_format=torch.channels_last_3d)
        assert torch.equal(channel_shuffle(volumes, 3), y) and channel_shuffle(volumes, 3).stride() == volumes.stride()


@pytest.mark.parametrize("shape", [(0, 6, 3, 4), (2, 0, 3, 4), (2, 6, 0, 4), (0, 6, 3), (0, 6, 1, 2, 3)], ids=str)
def test_empty(backend, shape):
    x = torch.zeros(shape, requires_grad=True)
    y = channel_shuffle(x, 3)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape
    if len(shape) == 4:
        a, b = shuffle_split(x, x)
        (a.sum() + b.sum()).backward()
        assert a.shape == b.shape == x.shape


@pytest.mark.parametrize("split", (channel_shuffle, shuffle_split))
def test_lazy_conjugates_and_negatives(backend, split):
    z = torch.randn(1, 4, 2, 2, dtype=torch.complex64)
    for lazy in (z.conj(), z.conj().imag):
        for x in (lazy, lazy.clone().requires_grad_()):
            other = lazy if split is shuffle_split else 2
            assert all(map(torch.equal, split(x, other), split(lazy.clone(), other)))
    x = torch.randn(1, 4, 2, 2, dtype=torch.complex64, requires_grad=True)
    (dx,) = torch.autograd.grad(channel_shuffle(x, 2), x, z.conj())
    assert torch.equal(dx, F.channel_shuffle(z.conj().clone(), 2))


X = torch.ones(2, 6, 3, 4)
BAD = {
    "one dimension": (X[0, :, 0, 0], 2),
    "two dimensions": (X[0, 0], 3),
    "two dimensions and no groups": (X[0, 0], 0),
    "groups that do not divide": (X, 4),
    "groups that do not divide, five dimensions": (X[..., None], 4),
    "more groups than channels": (X, 7),
    "no groups": (X, 0),
    "no groups and no channels": (X[:, :0], 0),
    "negative": (X, -1),
    "float": (X, 2.0),
    "bool": (X, True),
    "text": (X, "2"),
    "none": (X, None),
    "tuple": (X, (3,)),
    "too large": (X, 2**62),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises_what_pytorch_raises(backend, name):
    expected = error_of(F.channel_shuffle, *BAD[name])
    assert error_of(channel_shuffle, *BAD[name]) == expected
    if BAD[name][0].is_floating_point():
        x, groups = BAD[name]
        assert error_of(channel_shuffle, x.clone().requires_grad_(), groups) == expected


@pytest.mark.parametrize("b", [X[:, :3], X.double(), X[0], X.to("meta")], ids=["shape", "type", "unbatched", "device"])
def test_bad_input_of_split(backend, b):
    error, text = error_of(shuffle_split, X, b)
    assert error is RuntimeError and text.startswith("shuffle_split expects two tensors (n, c, h, w) of one shape")


def test_integers_of_other_kinds(backend):
    for groups in (np.int64(3), torch.tensor(3)):
        assert torch.equal(channel_shuffle(X, groups), F.channel_shuffle(X, 3))


def test_sources_of_different_layouts(backend):
    a, b = images(2, 6, 3, 4), images(2, 6, 4, 3).mT
    expected = F.channel_shuffle(torch.cat((a, b), 1), 2).chunk(2, 1)
    for first in layouts(a).values():
        for second in layouts(b).values():
            got = shuffle_split(first, second)
            assert all(map(torch.equal, got, expected)) and got[0].stride() == got[1].stride()
            assert all(map(torch.equal, op_split(*got, True), (a, b)))


def test_steps_of_threads(backend):
    """So large that a GPU's threads take two steps along the longest axis, of 45001: some take one."""
    x = torch.randint(0, 255, (1, 12, 16, 45001), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert torch.equal(channel_shuffle(x, 3), F.channel_shuffle(x, 3))


@pytest.mark.skipif(INTERPRETED, reason="on the compiled kernels")
@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(data=st.data())
def test_any_geometry(data):
    """Shapes that nobody thought of, on the CPU kernels."""
    draw = data.draw
    groups, each = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    dtype = draw(st.sampled_from((torch.uint8, torch.int16, torch.int32, torch.int64, torch.complex128)))
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 30))
    x = torch.randint(0, 255, (n, groups * each, h, w)).to(dtype)
    x = draw(st.sampled_from(list(layouts(x).values()) if not dtype.is_complex else [x, x.mT.clone().mT]))
    assert torch.equal(channel_shuffle(x, groups), F.channel_shuffle(x, groups))
    got, b = shuffle_split(x, x + 1), x + 1
    assert all(map(torch.equal, got, F.channel_shuffle(torch.cat((x, b), 1), 2).chunk(2, 1)))
    assert all(map(torch.equal, op_split(*got, True), (x, b)))


@in_both_layouts
def test_allocates_only_its_result(cpu_kernels, layout):
    x = torch.randn(4, 24, 128, 128).contiguous(memory_format=layout)
    size = x.numel() * 4
    assert allocated(lambda: channel_shuffle(x, 3)) == size
    assert allocated(lambda: shuffle_split(x, x)) == 2 * size


@pytest.mark.skipif(INTERPRETED, reason="the interpreter would take hours")
@in_both_layouts
def test_more_than_2_to_31_elements(layout):
    need_memory(5)
    x = more_than_2_to_31(layout)
    y = channel_shuffle(x, 2)
    for image, rows in PLACES:
        assert torch.equal(y[image, :, rows], F.channel_shuffle(x[image, None, :, rows], 2)[0])


@pytest.mark.skipif(INTERPRETED, reason="the interpreter would take hours")
@pytest.mark.parametrize("inverse", (False, True))
@in_both_layouts
def test_split_of_more_than_2_to_31_elements(layout, inverse):
    need_memory(7)
    x = more_than_2_to_31(layout, n=34)
    together, shuffled = (x[:-1], x[1:]), op_split(x[:-1], x[1:], inverse)
    if inverse:
        together, shuffled = shuffled, together
    for image, rows in PLACES:
        a, b, y, z = (t[image, None, :, rows] for t in (*together, *shuffled))
        assert torch.equal(torch.cat((y, z), 1), F.channel_shuffle(torch.cat((a, b), 1), 2))

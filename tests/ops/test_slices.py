"""Kernels on channels of larger images: what they read lies in one, what they write goes into one."""

from __future__ import annotations

import pytest
import torch

import fastnets
from fastnets.ops import _packed
from fastnets.ops._packed import pack_depthwise, pack_panels, pack_winograd

LAST = torch.channels_last
OPS = ("pointwise_conv2d", "winograd_conv2d", "max_pool2d", "avg_pool2d")


def image(n, c, h, w):
    return torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(c)).contiguous(memory_format=LAST)


def arguments(op, c, o, residual=None):
    """What follows x."""
    make = torch.Generator().manual_seed(2)
    if op == "pointwise_conv2d":
        panels = pack_panels(torch.randn(o, c, 1, 1, generator=make))
        return panels, o, torch.randn(o, generator=make), residual, "relu", [], None
    if op == "winograd_conv2d":
        weight = torch.randn(o, c, 3, 3, generator=make)
        return pack_winograd(weight, 4), o, (1, 1), torch.randn(o, generator=make), residual, "relu", 1
    return (3, 3), (1, 1), (1, 1), False, *((True,) if op == "avg_pool2d" else ())


def whole_inputs(op, o):
    """All arguments of kernels that read images without gaps, n = 2, results of 7x5."""
    make = torch.Generator().manual_seed(2)
    weights = lambda *size: torch.randn(size, generator=make)
    if op == "direct_conv2d":
        first = image(2, 3, 14, 9), pack_panels(weights(o, 27)), o, (3, 3), (2, 2), (1,) * 4
        return *first, weights(o), image(2, o, 7, 5), "relu", [], None
    if op == "direct_max_pool2d":
        conv = image(2, 3, 14, 9), pack_panels(weights(o, 27)), o, (3, 3), (1, 1), (1,) * 4, weights(o), "relu"
        return *conv, (3, 3), (2, 2), (1, 1), False
    if op == "preact_conv2d":
        xs = [image(2, 16, 14, 10), image(2, 8, 14, 10)]
        return weights(2, 24 + 16), xs, 2, pack_panels(weights(o, 24)), o, None, None
    if op == "outer_sum_conv2d":
        strips = image(2, 24, 7, 1), image(2, 24, 1, 5)
        return *strips, pack_panels(weights(o, 24)), o, weights(o), "sigmoid", image(2, o, 7, 5)
    if op == "squeeze_excitation":
        gate = [pack_panels(weights(6, o)), weights(6), pack_panels(weights(o, 6)), weights(o)]
        return image(2, o, 7, 5), gate, "relu", False, image(2, o, 7, 5), "relu"
    depthwise = pack_depthwise(weights(48, 1, 3, 3), weights(48)), 48, (3, 3), (1, 1), (1,) * 4, (1, 1), "relu6"
    expand = pack_panels(weights(48, 8)), weights(48), "relu"
    project = pack_panels(weights(o, 48)), weights(o), o, image(2, o, 7, 5), None
    return image(2, 8, 7, 5), *expand, *depthwise, *project, [], None, False, [], None


def kernel(op):
    return getattr(torch.ops.fastnets_cpu, op).default


# Channels around the lanes and the panels, beginning within a cache line or with one.
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("c", "o"), [(16, 16), (20, 37), (33, 70), (48, 32)])
@pytest.mark.parametrize("first", (0, 3, 16))
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 5), (2, 5, 1), (1, 13, 9)])
def test_cpu_slices(walled_cpu_kernels, op, c, o, first, size):
    n, *hw = size
    x = image(n, c + 20, *hw)[:, first : first + c]
    o = o if "conv" in op else c
    rest = arguments(op, c, o, image(n, o, *hw) if n == 2 else None)
    expected = kernel(op)(x.contiguous(memory_format=LAST), *rest)
    assert torch.equal(kernel(op)(x, *rest), expected)
    into = torch.full((n, o + 24, *hw), torch.nan).contiguous(memory_format=LAST)
    result = kernel(op)(x, *rest, into=into, channel=first)
    assert result.data_ptr() == into.data_ptr() and result.shape == into.shape
    assert torch.equal(into[:, first : first + o], expected)
    assert into[:, :first].isnan().all() and into[:, first + o :].isnan().all()


@pytest.mark.parametrize(
    "op",
    (
        *("direct_conv2d", "direct_max_pool2d", "inverted_residual", "outer_sum_conv2d", "preact_conv2d"),
        "squeeze_excitation",
    ),
)
@pytest.mark.parametrize("o", (16, 37, 70))
@pytest.mark.parametrize("first", (0, 3, 16))
def test_cpu_results_in_slices(walled_cpu_kernels, op, o, first):
    given = whole_inputs(op, o)
    expected = kernel(op)(*given)
    into = torch.full((2, o + 24, 7, 5), torch.nan).contiguous(memory_format=LAST)
    result = kernel(op)(*given, into=into, channel=first)
    assert result.data_ptr() == into.data_ptr() and result.shape == into.shape
    assert torch.equal(into[:, first : first + o], expected)
    assert into[:, :first].isnan().all() and into[:, first + o :].isnan().all()
    for bad, channel in ((into, 25), (into, -1), (into[:1], 0), (into.double(), 0), (into.contiguous(), 0)):
        with pytest.raises(RuntimeError, match="expected "):
            kernel(op)(*given, into=bad, channel=channel)
    reference = torch.full_like(into, torch.nan)
    with fastnets.use_backend("reference"):
        assert getattr(_packed, op).run(*given, reference, first) is reference
    torch.testing.assert_close(reference, into, rtol=1e-5, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("op", OPS)
def test_the_reference_does_the_same(op):
    x = image(2, 40, 6, 5)[:, 8:28]
    rest = arguments(op, 20, 20)
    images = []
    for backend in ("cpu", "reference"):
        with fastnets.use_backend(backend):
            into = image(2, 50, 6, 5)
            assert getattr(_packed, op).run(x, *rest, into, 7) is not None
            images.append(into)
    torch.testing.assert_close(*images, rtol=1e-5, atol=1e-4)
    assert not torch.equal(images[0], image(2, 50, 6, 5))


@pytest.mark.parametrize("op", OPS)
def test_cpu_refuses_what_does_not_fit(op):
    x, into = image(2, 20, 6, 5), image(2, 50, 6, 5)
    rest = arguments(op, 20, 20)
    good = (x, *rest, into, 30)
    kernel(op)(*good)
    bad = {
        "past the end": (*good[:-1], 31),
        "before the start": (*good[:-1], -1),
        "other height": (*good[:-2], image(2, 50, 5, 5), 0),
        "other number": (*good[:-2], image(1, 50, 6, 5), 0),
        "other type": (*good[:-2], into.double(), 0),
        "other layout": (*good[:-2], into.contiguous(), 0),
        "a slice": (*good[:-2], image(2, 60, 6, 5)[:, :50], 0),
        "input in another layout": (x.contiguous(), *good[1:]),
        "input of every second channel": (image(2, 40, 6, 5)[:, ::2], *good[1:]),
        "input of every second row": (image(2, 20, 12, 5)[:, :, ::2], *good[1:]),
        "input of a part of the columns": (image(2, 20, 6, 9)[..., :5], *good[1:]),
        "input of every second image": (image(4, 20, 6, 5)[::2], *good[1:]),
        "expanded input": (image(2, 1, 6, 5).expand(2, 20, 6, 5), *good[1:]),
    }
    for wrong in bad.values():
        with pytest.raises(RuntimeError, match="expected"):
            kernel(op)(*wrong)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("c", (1, 15, 16, 33, 70))
@pytest.mark.parametrize("first", (0, 3, 16))
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 7, 5)])
def test_cpu_sums_of_slices(walled_cpu_kernels, dtype, c, first, size):
    n, *hw = size
    a, b = image(n, c + 20, *hw).to(dtype)[:, first : first + c], image(n, c, *hw).to(dtype)
    assert torch.equal(kernel("add_images")(a, b), a + b)
    assert torch.equal(kernel("add_images")(a, b, "relu"), torch.relu(a + b))
    into = torch.full((n, c + 24, *hw), torch.nan, dtype=dtype).contiguous(memory_format=LAST)
    assert kernel("add_images")(b, a, into=into, channel=first).data_ptr() == into.data_ptr()
    assert torch.equal(into[:, first : first + c], a + b)
    assert into[:, :first].isnan().all() and into[:, first + c :].isnan().all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_cpu_concatenations(walled_cpu_kernels, dtype):
    xs = [image(2, 37, 7, 5).to(dtype), image(2, 60, 7, 5).to(dtype)[:, 9:22], image(2, 1, 7, 5).to(dtype).contiguous()]
    into = torch.full((2, 60, 7, 5), torch.nan, dtype=dtype).contiguous(memory_format=LAST)
    assert kernel("concat_images")(into, xs, [0, 37, 51]).data_ptr() == into.data_ptr()
    assert torch.equal(into[:, :50], torch.cat(xs[:2], 1)) and torch.equal(into[:, 51:52], xs[2])
    assert into[:, 50].isnan().all() and into[:, 52:].isnan().all()


def test_cpu_sums_and_concatenations_refuse_what_does_not_fit(cpu_kernels):
    x, into = image(2, 20, 6, 5), image(2, 50, 6, 5)
    for wrong in (image(2, 19, 6, 5), image(1, 20, 6, 5), x.contiguous(), x.double(), x.bfloat16()):
        with pytest.raises(RuntimeError, match="expected"):
            kernel("add_images")(x, wrong)
    for xs, channels in (([x], [31]), ([x], [-1]), ([x, x], [0]), ([x.double()], [0]), ([image(2, 20, 5, 5)], [0])):
        with pytest.raises(RuntimeError, match="expected"):
            kernel("concat_images")(into, xs, channels)

"""corner_pool and corner_pool_sum against PyTorch's ways on CornerNet's heads: 128 channels of 128 x 128 pixels."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from benchmarks import _peers, _shapes
from benchmarks._inputs import seeded
from fastnets.ops import corner_pool, corner_pool_sum
from fastnets.ops.corner_pool import CORNERS, DIRECTIONS

LAST = torch.channels_last
LAYOUTS = ("contiguous", "channels_last")
SIZE = _shapes.CORNERNET_POOLED


def cost(n, tensors, maxima):
    """Tensors that are read or written, each once, and comparisons a number of the result."""
    c, h, w = SIZE
    return {"nbytes": 4 * tensors * n * c * h * w, "flops": maxima * n * c * h * w}


def cummax(x, direction):
    """What mmcv does where PyTorch has cummax."""
    dim, reverse = DIRECTIONS[direction]
    return x.flip(dim).cummax(dim)[0].flip(dim) if reverse else x.cummax(dim)[0]


def cummax_transposed(x, direction):
    """The scan along the other dimension in memory."""
    dim, _ = DIRECTIONS[direction]
    y = x.mT.contiguous() if dim == 3 else x.mT
    return cummax(y, {"top": "left", "bottom": "right", "left": "top", "right": "bottom"}[direction]).mT


def doubling(x, direction):
    """What CornerNet's extension does: windows of 1, 2, 4, ... pixels."""
    dim, reverse = DIRECTIONS[direction]
    y, length, step = x.clone(), x.shape[dim], 1
    while step < length:
        near, far = y.narrow(dim, 0, length - step), y.narrow(dim, step, length - step)
        larger = torch.maximum(near, far)
        (near if reverse else far).copy_(larger)
        step *= 2
    return y


def doubling_cat(x, direction):
    """The same into new memory in place of copies."""
    dim, reverse = DIRECTIONS[direction]
    y, length, step = x, x.shape[dim], 1
    while step < length:
        larger = torch.maximum(y.narrow(dim, 0, length - step), y.narrow(dim, step, length - step))
        rest = y.narrow(dim, length - step if reverse else 0, step)
        y = torch.cat((larger, rest) if reverse else (rest, larger), dim)
        step *= 2
    return y


def pooled(x, direction):
    """One pooling window over as much padding as there are pixels."""
    dim, reverse = DIRECTIONS[direction]
    last = x.shape[dim] - 1
    pad = [0, 0, 0, 0]
    pad[{(2, True): 3, (2, False): 2, (3, True): 1, (3, False): 0}[dim, reverse]] = last
    return F.max_pool2d(F.pad(x, pad, value=float("-inf")), (last + 1, 1) if dim == 2 else (1, last + 1), 1)


def rows_in_python(x, direction):
    """One maximum for each row."""
    dim, reverse = DIRECTIONS[direction]
    y = torch.empty_like(x)
    places = range(x.shape[dim])[:: -1 if reverse else 1]
    y.select(dim, places[0]).copy_(x.select(dim, places[0]))
    for before, place in pairwise(places):
        torch.maximum(y.select(dim, before), x.select(dim, place), out=y.select(dim, place))
    return y


PEERS = (cummax, cummax_transposed, doubling, doubling_cat, pooled, rows_in_python)


def maps(n, count=1):
    make = seeded()
    both = []
    for _ in range(count):
        x = torch.randn(n, *SIZE, generator=make).relu()
        both.append((x, x.contiguous(memory_format=LAST)))
    return both


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", (1, 8))
def test_forward(race, n, layout, direction):
    ((x, xl),) = maps(n)
    candidates = {}
    for peer in (
        PEERS if n == 1 else (cummax, rows_in_python)
    ):  # at 8 the slowest for n = 1 stay out, but what mmcv does
        candidates[f"{peer.__name__}"] = lambda peer=peer: (peer(x, direction),)
        candidates[f"{peer.__name__} channels_last"] = lambda peer=peer: (peer(xl, direction),)
    ours = {"contiguous": x, "channels_last": xl}[layout]  # the tensor that peers read, as far as caches keep it
    candidates["fastnets"] = lambda: (corner_pool(ours, direction),)
    candidates["compile"] = _peers.compiled(cummax, ours, direction) if n == 1 else _peers.BATCHES
    exact = (cummax(x, direction).double(),)  # a maximum is not rounded
    race(f"forward, batch {n}, {layout}", direction, candidates, exact, **cost(n, 2, 1))


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", (1, 8))
def test_sum(race, n, layout, corner):
    (v, vl), (h, hl) = maps(n, 2)
    vertical, horizontal = CORNERS[corner]
    candidates = {"cummax": lambda: (cummax(v, vertical) + cummax(h, horizontal),)}
    for peer in (cummax, doubling, rows_in_python) if n == 1 else (rows_in_python,):
        candidates[peer.__name__] = lambda peer=peer: (peer(v, vertical) + peer(h, horizontal),)
        candidates[f"{peer.__name__} channels_last"] = lambda peer=peer: (peer(vl, vertical) + peer(hl, horizontal),)
    exact = (cummax(v, vertical).double() + cummax(h, horizontal).double(),)
    a, b = {"contiguous": (v, h), "channels_last": (vl, hl)}[layout]
    candidates["fastnets"] = lambda: (corner_pool_sum(a, b, corner),)
    race(f"sum, batch {n}, {layout}", corner, candidates, exact, **cost(n, 3, 3))  # two maxima and the addition


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backward(race, layout, direction):
    """The gradient alone. cummax keeps the places of its maxima, ours finds them anew."""
    ((x, xl),) = maps(1)
    dim, reverse = DIRECTIONS[direction]
    dy = torch.randn(x.shape, generator=seeded(1))
    ours = torch.ops.fastnets.corner_pool_backward.default
    index = (x.flip(dim) if reverse else x).cummax(dim)[1]

    def scatter(dy):
        dx = torch.zeros_like(dy).scatter_add_(dim, index, dy.flip(dim) if reverse else dy)
        return dx.flip(dim) if reverse else dx

    dyl, exact = dy.contiguous(memory_format=LAST), (scatter(dy.double()),)
    a, b = {"contiguous": (dy, x), "channels_last": (dyl, xl)}[layout]
    race(
        f"backward, batch 1, {layout}",
        direction,
        {
            "scatter": lambda: (scatter(dy),),
            "scatter channels_last": lambda: (scatter(dyl),),
            "fastnets": lambda: (ours(a, b, direction, "last"),),
        },
        exact,
        **cost(1, 3, 2),  # x and dy are read; the maxima are found anew, and the gradients added up
    )

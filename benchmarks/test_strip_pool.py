"""strip_pool against PyTorch's means on the maps of SPNet at an output stride of 8."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks import _peers, _shapes
from benchmarks._inputs import seeded
from fastnets.ops import strip_pool

MAPS = [*_shapes.SPNET_POOLED.values()]
LAST = torch.channels_last
LAYOUTS = ("contiguous", "channels_last")


def cost(n, c, h, w):
    """x is read, rows and columns written: each number of x is added to both. The backward pass moves as much, and
    adds what it reads."""
    return {"nbytes": 4 * n * c * (h * w + h + w), "flops": 2 * n * c * h * w}


def means(x):
    return x.mean(3, keepdim=True), x.mean(2, keepdim=True)


def adaptive(x):
    return F.adaptive_avg_pool2d(x, (None, 1)), F.adaptive_avg_pool2d(x, (1, None))


def windows(x):
    return F.avg_pool2d(x, (1, x.shape[3])), F.avg_pool2d(x, (x.shape[2], 1))


def products(x):
    h, w = x.shape[2:]
    return x @ x.new_full((w, 1), 1 / w), x.new_full((1, h), 1 / h) @ x


def through_rows(x):
    """Sums by einsum."""
    h, w = x.shape[2:]
    return torch.einsum("nchw->nch", x)[..., None] / w, torch.einsum("nchw->ncw", x)[..., None, :] / h


PEERS = (means, adaptive, windows, products, through_rows)


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", (1, 4))
def test_forward(race, n, layout, shape):
    x = torch.randn(n, *shape, generator=seeded())
    xl = x.contiguous(memory_format=LAST)
    candidates = {}
    for peer in PEERS:
        candidates[peer.__name__] = lambda peer=peer: peer(x)
        candidates[f"{peer.__name__} channels_last"] = lambda peer=peer: peer(xl)
    ours = {"contiguous": x, "channels_last": xl}[layout]  # the tensor that peers read, as far as caches keep it
    candidates["fastnets"] = lambda: strip_pool(ours)
    candidates["compile"] = _peers.compiled(means, ours) if n == 1 else _peers.BATCHES
    nodes = [("ReduceMean", "x three", "rows", {}), ("ReduceMean", "x two", "columns", {})]
    axes = {"three": torch.tensor([3]), "two": torch.tensor([2])}
    candidates |= _peers.onnx_op(nodes, {"x": x}, "rows columns", axes)
    name = "x".join(map(str, shape))
    race(f"forward, batch {n}, {layout}", name, candidates, means(x.double()), **cost(n, *shape))


@pytest.mark.parametrize("shape", MAPS[2:4], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backward(race, layout, shape):
    """The gradient of the input, from those of rows and columns."""
    n, (c, h, w) = 4, shape
    make = seeded()
    rows, columns = torch.randn(n, c, h, 1, generator=make), torch.randn(n, c, 1, w, generator=make)
    rows_last, columns_last = rows.contiguous(memory_format=LAST), columns.contiguous(memory_format=LAST)
    ours = torch.ops.fastnets.strip_pool_backward.default

    def spread(rows, columns):
        return rows / w + columns / h

    pair = {"contiguous": (rows, columns), "channels_last": (rows_last, columns_last)}[layout]
    race(
        f"backward, batch {n}, {layout}",
        "x".join(map(str, shape)),
        {
            "spread": lambda: (spread(rows, columns),),
            "spread channels_last": lambda: (spread(rows_last, columns_last),),
            "fastnets": lambda: (ours(*pair, layout == "channels_last"),),
        },
        (spread(rows.double(), columns.double()),),
        **cost(n, *shape),
    )

"""channel_shuffle and shuffle_split against PyTorch on the maps of ShuffleNet v1 (arXiv:1707.01083) and v2 (1807.11164)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks import _peers, _shapes
from fastnets.ops import channel_shuffle, shuffle_split

V1, V2 = [*_shapes.SHUFFLENET_SHUFFLE.values()], [*_shapes.SHUFFLENET_V2_SHUFFLE.values()]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def cost(n, c, h):
    """Each number is read once and written once."""
    return {"nbytes": 8 * n * c * h * h, "flops": 0}


def by_hand(x, groups):
    """As torchvision's networks have it."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def halves(a, b):
    return F.channel_shuffle(torch.cat((a, b), 1), 2).chunk(2, 1)


def onnx(x, groups):
    """The three nodes that torchvision's networks are exported to."""
    n, c, h, w = x.shape
    shapes = {"apart": torch.tensor([n, groups, c // groups, h, w]), "together": torch.tensor([n, c, h, w])}
    nodes = [
        ("Reshape", "x apart", "a", {}),
        ("Transpose", "a", "b", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", "b together", "y", {}),
    ]
    return _peers.onnx_op(nodes, {"x": x}, "y", shapes)


@pytest.mark.parametrize("c, h, groups", V1 + V2)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", (1, 16))
def test_channel_shuffle(race, n, layout, c, h, groups):
    x = torch.randn(n, c, h, h).contiguous(memory_format=LAYOUTS[layout])
    race(
        f"channel_shuffle, batch {n}, {layout}",
        f"{c}x{h}x{h}, {groups} groups",
        {
            "torch": lambda: (F.channel_shuffle(x, groups),),
            "by hand": lambda: (by_hand(x, groups),),
            "compile": _peers.compiled(F.channel_shuffle, x, groups) if n == 1 else _peers.BATCHES,
            **onnx(x, groups),
            "fastnets": lambda: (channel_shuffle(x, groups),),
        },
        (F.channel_shuffle(x.double(), groups),),
        **cost(n, c, h),
    )


@pytest.mark.parametrize("c, h, _", V2)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", (1, 16))
def test_shuffle_split(race, n, layout, c, h, _):
    """PyTorch's halves are views of one tensor, ours are dense; both are what the next convolution reads."""
    a, b = (torch.randn(n, c // 2, h, h).contiguous(memory_format=LAYOUTS[layout]) for _ in range(2))
    race(
        f"shuffle_split, batch {n}, {layout}",
        f"2 x {c // 2}x{h}x{h}",
        {
            "torch": lambda: halves(a, b),
            "by hand": lambda: by_hand(torch.cat((a, b), 1), 2).chunk(2, 1),
            "compile": _peers.compiled(halves, a, b) if n == 1 else _peers.BATCHES,
            "stack": lambda: torch.stack((a, b), 2).flatten(1, 2).chunk(2, 1),
            "fastnets": lambda: shuffle_split(a, b),
        },
        halves(a.double(), b.double()),
        **cost(n, c, h),
    )

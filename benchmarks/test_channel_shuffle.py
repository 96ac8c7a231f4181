"""channel_shuffle and shuffle_split against PyTorch on the maps of ShuffleNet v1 (arXiv:1707.01083) and v2 (1807.11164)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastnets.ops import channel_shuffle, shuffle_split

# channels, height and width, groups: between the grouped convolutions of v1 (bottleneck: a quarter of the stage's
# channels), and after the concatenation of v2 x1.0.
V1 = [(50, 28, 2), (60, 28, 3), (120, 14, 3), (240, 7, 3), (68, 28, 4), (96, 28, 8), (192, 14, 8)]
V2 = [(116, 28, 2), (232, 14, 2), (464, 7, 2)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

# Bytes: 8 n c h² for both, each number read once and written once. Operations: none.


def by_hand(x, groups):
    """As torchvision's networks have it."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


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
            "fastnets": lambda: (channel_shuffle(x, groups),),
        },
        (F.channel_shuffle(x.double(), groups),),
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
            "torch": lambda: F.channel_shuffle(torch.cat((a, b), 1), 2).chunk(2, 1),
            "by hand": lambda: by_hand(torch.cat((a, b), 1), 2).chunk(2, 1),
            "stack": lambda: torch.stack((a, b), 2).flatten(1, 2).chunk(2, 1),
            "fastnets": lambda: shuffle_split(a, b),
        },
        F.channel_shuffle(torch.cat((a, b), 1).double(), 2).chunk(2, 1),
    )

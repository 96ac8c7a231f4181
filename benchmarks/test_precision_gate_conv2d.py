"""precision_gate_conv2d against F.conv2d and its emulations on layers of ResNet and ShuffleNetV2 at 224 x 224."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import fastnets
from fastnets.ops import precision_gate_conv2d

# input channels, output channels, height and width, kernel
RESNET = [  # 18 (3x3) and 50 (1x1)
    (64, 64, 56, 3), (128, 128, 28, 3), (256, 256, 14, 3), (512, 512, 7, 3),
    (64, 256, 56, 1), (512, 128, 28, 1), (1024, 256, 14, 1), (512, 2048, 7, 1),
]  # fmt: skip
SHUFFLENET_V2 = [(58, 58, 28, 1), (116, 116, 14, 1), (232, 232, 7, 1), (464, 1024, 7, 1)]  # x1.0
LAYERS = RESNET + SHUFFLENET_V2
LAST = torch.channels_last

# Bytes: 4 n (c + o) h² + 4 o c k², and 4 n c h² more to write and read the two parts. Operations: n c o h² k²
# multiply-adds for the high part, as many for the low part of tiles that have an open gate.


def layer(n, c, o, h, k):
    """An input of multiples of 16 / 255, so that the low part is 0: whether gates open, F.conv2d gives the same."""
    make = torch.Generator().manual_seed(0)
    q = torch.randn(n, c, h, h, generator=make).relu()
    x = (q / q.max() * 15).round() * 16 / 255
    w = torch.randn(o, c, k, k, generator=make)
    w = (w / w.abs().max() * 255).round() / 255
    return x.contiguous(memory_format=LAST), w, torch.randn(o, generator=make), torch.tensor(1.0)


def name(c, o, h, k):
    return f"{c}>{o} {h}x{h} {k}x{k}"


def thresholds(o, gates):
    """Channels whose gates are open: none, every other one of the blocks of 64 that a tile has, all."""
    blocks = torch.arange(o) // 64 % 2 == 0
    shut = {"shut": blocks | True, "half": blocks if o > 64 else torch.arange(o) % 2 == 0, "open": blocks & False}[
        gates
    ]
    return torch.where(shut, math.inf, -math.inf)


@pytest.mark.parametrize("gates", ("shut", "half", "open"))
@pytest.mark.parametrize("shape", LAYERS, ids=lambda s: name(*s))
@pytest.mark.parametrize("n", (1, 16))
def test_forward(race, n, shape, gates):
    x, w, b, scale = layer(n, *shape)
    padding, xc, wl = shape[3] // 2, x.contiguous(), w.contiguous(memory_format=LAST)
    threshold = thresholds(shape[1], gates)
    race(
        f"forward, batch {n}, gates {gates}",
        name(*shape),
        {
            "contiguous": lambda: (F.conv2d(xc, w, b, 1, padding),),
            "channels_last": lambda: (F.conv2d(x, wl, b, 1, padding),),
            "fastnets": lambda: (precision_gate_conv2d(x, w, threshold, b, 1, padding, scale=scale),),
        },
        (F.conv2d(x.double(), w.double(), b.double(), 1, padding),),
    )


def float_emulation(x, w, threshold, b, padding, scale):
    """In float32, whose sums are not exact: what one writes to train with it."""

    def quantised(t, s, step):
        q = (t.abs() / s).clamp(0, 1).mul(255).round()
        return torch.copysign(q.div(step).floor().mul(step), t) * (s / 255)

    x_high = quantised(x, scale, 16)
    w = quantised(w, w.abs().max(), 1)
    y = F.conv2d(x_high, w, None, 1, padding)
    low = F.conv2d(quantised(x, scale, 1) - x_high, w, None, 1, padding)
    return y + (y > threshold.view(-1, 1, 1)) * low + b.view(-1, 1, 1)


@pytest.mark.parametrize("shape", LAYERS, ids=lambda s: name(*s))
def test_against_the_emulations(race, shape):
    """Half of the gates open. `reference` is the exact one, in float64."""
    x, w, b, scale = layer(1, *shape)
    padding, threshold = shape[3] // 2, thresholds(shape[1], "half")

    def exact():
        with fastnets.use_backend("reference"):
            return (precision_gate_conv2d(x, w, threshold, b, 1, padding, scale=scale),)

    race(
        "emulations, batch 1",
        name(*shape),
        {
            "reference": exact,
            "float32": lambda: (float_emulation(x, w, threshold, b, padding, scale),),
            "fastnets": lambda: (precision_gate_conv2d(x, w, threshold, b, 1, padding, scale=scale),),
        },
        (F.conv2d(x.double(), w.double(), b.double(), 1, padding),),
    )

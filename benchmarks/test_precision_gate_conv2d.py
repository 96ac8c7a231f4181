"""precision_gate_conv2d against F.conv2d and its emulations on layers of ResNet and ShuffleNetV2 at 224 x 224."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import fastnets
from benchmarks import _shapes
from benchmarks._candidate import Local
from benchmarks._correct import check
from benchmarks._inputs import seeded
from fastnets.layers import PrecisionGateConv2d
from fastnets.ops import precision_gate_conv2d

LAYERS = [*_shapes.RESNET_CONVOLUTIONS.values(), *_shapes.SHUFFLENET_V2_POINTWISE.values()]
LAST = torch.channels_last

GATES = {"shut": 0, "half": 0.5, "open": 1}  # and the share of them that is open


def cost(n, c, o, h, k, gates):
    """x and w are read, y written. The high part takes c k² multiply-adds for each number of y, the low part as many
    where a gate is open; both are sums of products of bytes."""
    return {
        "nbytes": 4 * (n * (c + o) * h * h + o * c * k * k),
        "flops": int((1 + GATES[gates]) * 2 * n * c * o * h * h * k * k),
        "dtype": "int8",
    }


def layer(n, c, o, h, k, bits):
    """An input of so many bits. With 4 the low part is 0: whether gates open, F.conv2d gives the same."""
    make = seeded()
    q, most = torch.randn(n, c, h, h, generator=make).relu(), 2**bits - 1
    x = (q / q.max() * most).round() * 2 ** (8 - bits) / 255
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


def float_emulation(x, w, threshold, b, padding, scale):
    """What one writes to train with it; in float32 its sums are not exact."""

    def quantised(t, s, step):
        q = (t.abs() / s).clamp(0, 1).mul(255).round()
        return torch.copysign(q.div(step).floor().mul(step), t) * (s / 255)

    x_high = quantised(x, scale, 16)
    w = quantised(w, w.abs().max(), 1)
    y = F.conv2d(x_high, w, None, 1, padding)
    low = F.conv2d(quantised(x, scale, 1) - x_high, w, None, 1, padding)
    return y + (y > threshold.view(-1, 1, 1)) * low + b.view(-1, 1, 1)


def frozen(make, w, b, **ours):
    """A layer with these weights for inference; ``ours``: beside weight and bias."""
    o, c, k = w.shape[:3]
    layer = make(c, o, k, padding=k // 2).eval().requires_grad_(False)
    layer.load_state_dict({"weight": w, "bias": b, **ours})
    return layer


def check_gates(run, shape, gates):
    """On an input with a low part, which the race against F.conv2d cannot have: who ignores the gates is wrong."""
    x, w, b, scale = layer(1, *shape, bits=8)
    threshold = thresholds(shape[1], gates)
    exact = float_emulation(x.double(), w.double(), threshold, b.double(), shape[3] // 2, scale)
    check("fastnets", Local(lambda: (run(x, w, threshold, b, scale),)), (exact,))


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("shape", LAYERS, ids=lambda s: name(*s))
@pytest.mark.parametrize("n", (1, 16))
def test_forward(race, n, shape, gates):
    padding, threshold = shape[3] // 2, thresholds(shape[1], gates)
    check_gates(lambda x, w, t, b, scale: precision_gate_conv2d(x, w, t, b, 1, padding, scale=scale), shape, gates)
    x, w, b, scale = layer(n, *shape, bits=4)
    xc, wl = x.contiguous(), w.contiguous(memory_format=LAST)
    race(
        f"forward, batch {n}, gates {gates}",
        name(*shape),
        {
            "contiguous": lambda: (F.conv2d(xc, w, b, 1, padding),),
            "channels_last": lambda: (F.conv2d(x, wl, b, 1, padding),),
            "fastnets": lambda: (precision_gate_conv2d(x, w, threshold, b, 1, padding, scale=scale),),
        },
        (F.conv2d(x.double(), w.double(), b.double(), 1, padding),),
        **cost(n, *shape, gates),
    )


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("shape", LAYERS, ids=lambda s: name(*s))
@pytest.mark.parametrize("n", (1, 16))
def test_layer(race, n, shape, gates):
    """As a network has it: the weights are quantised and packed before."""

    def gated(w, threshold, b, scale):
        return frozen(PrecisionGateConv2d, w, b, threshold=threshold, scale=scale)

    threshold = thresholds(shape[1], gates)
    check_gates(lambda x, w, t, b, scale: gated(w, t, b, scale)(x), shape, gates)
    x, w, b, scale = layer(n, *shape, bits=4)
    xc, plain, ours = x.contiguous(), frozen(torch.nn.Conv2d, w, b), gated(w, threshold, b, scale)
    last = frozen(torch.nn.Conv2d, w, b).to(memory_format=LAST)
    race(
        f"layer, batch {n}, gates {gates}",
        name(*shape),
        {
            "contiguous": lambda: (plain(xc),),
            "channels_last": lambda: (last(x),),
            "fastnets": lambda: (ours(x),),
        },
        (F.conv2d(x.double(), w.double(), b.double(), 1, shape[3] // 2),),
        **cost(n, *shape, gates),
    )


@pytest.mark.parametrize("shape", LAYERS, ids=lambda s: name(*s))
def test_against_the_emulations(race, shape):
    """Half of the gates open. `reference` is the exact one, in float64."""
    x, w, b, scale = layer(1, *shape, bits=8)
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
        (float_emulation(x.double(), w.double(), threshold, b.double(), padding, scale),),
        **cost(1, *shape, "half"),
    )

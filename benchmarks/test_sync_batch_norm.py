"""batch_moments against torch.var_mean, sync_batch_norm in one process against F.batch_norm, on ResNet-50's maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks import _shapes
from benchmarks._inputs import seeded
from fastnets.ops import batch_moments, sync_batch_norm

RESNET50 = _shapes.RESNET50_NORMALISED.values()
MOMENTS = [("moments", shape) for shape in RESNET50]
MOMENTS += [("moments of few channels", shape) for shape in _shapes.FEW_CHANNELS_NORMALISED.values()]
BATCH = 16
LAST = torch.channels_last


def cost(c, h, tensors, operations):
    """Moments read x: 3 operations a number. A training step reads x and writes y, reads dy and x and writes dx: 5
    tensors where a channel stays in the caches between the two passes over it, 8 where it does not; 5 + 10 operations."""
    return {"nbytes": 4 * tensors * BATCH * c * h * h, "flops": operations * BATCH * c * h * h}


def name(c, h):
    return f"{c}x{h}x{h}"


def inputs(c, h):
    make = seeded()
    x = torch.randn(BATCH, c, h, h, generator=make)
    return x, x.contiguous(memory_format=LAST)


@pytest.mark.parametrize(("group", "shape"), MOMENTS, ids=str)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_moments(race, layout, group, shape):
    x, xl = inputs(*shape)
    exact, dims = torch.var_mean(x.double(), (0, 2, 3)), (0, 2, 3)
    mine = x if layout == "contiguous" else xl

    count = x.numel() // x.shape[1]

    def sums(x):
        mean = x.mean(dims)
        return (x.square().mean(dims) - mean.square()) * (count / (count - 1)), mean

    def update_stats(x):
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.1)
        return var * (count / (count - 1)), mean

    def ours():
        mean, m2, _ = batch_moments(mine)
        return m2 / (count - 1), mean

    race(
        f"{group}, {layout}",
        name(*shape),
        {
            "var_mean": lambda: torch.var_mean(x, dims),
            "var_mean last": lambda: torch.var_mean(xl, dims),
            "two means": lambda: sums(x),
            "two means last": lambda: sums(xl),
            "update_stats": lambda: update_stats(x),
            "update_stats last": lambda: update_stats(xl),
            "fastnets": ours,
        },
        exact,
        **cost(*shape, 1, 3),
    )


@pytest.mark.parametrize("shape", RESNET50, ids=lambda s: name(*s))
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_training_step(race, layout, shape):
    """Forward and backward, running statistics updated."""
    c = shape[0]
    x, xl = inputs(*shape)
    dy = torch.randn(x.shape, generator=seeded(1))
    w, b = torch.rand(c), torch.rand(c)

    def step(function, x, dtype=torch.float32):
        leaves = [t.to(dtype).detach().requires_grad_() for t in (x, w, b)]
        gradient = dy.to(dtype).contiguous(memory_format=LAST if x is xl else torch.contiguous_format)
        mean, var = torch.zeros(c, dtype=dtype), torch.ones(c, dtype=dtype)

        def run():
            with torch.enable_grad():
                y = function(leaves[0], mean, var, *leaves[1:], True)
            return torch.autograd.grad(y, leaves, gradient)

        return run

    race(
        f"training step, {layout}",
        name(*shape),
        {
            "contiguous": step(F.batch_norm, x),
            "channels_last": step(F.batch_norm, xl),
            "fastnets": step(sync_batch_norm, x if layout == "contiguous" else xl),
        },
        step(F.batch_norm, x, torch.float64)(),
        **cost(*shape, 5, 15),
    )

"""A training step of networks that fastnets.convert has been at: against eager PyTorch in both layouts."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastnets
from benchmarks._inputs import seeded
from benchmarks.test_networks import LAST, cost, network, photos

NETWORKS = ("mobilenet_v2", "shufflenet_v2_x1_0")
BATCHES = (16,)


def tolerance(model, x):
    """What float32 may be off by, over the largest value.

    Eager PyTorch sums a channel's n h w numbers one after the other in channels_last. Each addition rounds by up to
    2^-24, at random, so the sum is off by the root of their number; so add up the errors of the layers, twice: forward
    and backward. The first layers have the most numbers, at half the resolution of the photos.
    """
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return 2 * 2**-24 * (len(x) * x.shape[2] * x.shape[3] / 4 * norms) ** 0.5


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", BATCHES)
def test_training(race, name, n):
    """Forward and backward, running statistics updated; results are the logits and the classifier's gradients.

    The backward pass takes twice the operations of the forward pass. The optimizer's step, alike for all, is left out.
    """
    (model, missing), x = network(name), photos(name, n)
    target = torch.randint(0, 1000, (n,), generator=seeded())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # or each would drop others

    def step(model, x):
        last = list(model.parameters())[-2:]

        def run():
            model.zero_grad()
            with torch.enable_grad():
                y = model(x)
                F.cross_entropy(y, target).backward()
            return y.detach(), *(p.grad for p in last)

        return run

    xl = x.contiguous(memory_format=LAST)
    candidates = {
        "contiguous": step(copy.deepcopy(model).train(), x),
        "channels_last": step(copy.deepcopy(model).train().to(memory_format=LAST), xl),
        "fastnets": step(fastnets.convert(copy.deepcopy(model).train().to(memory_format=LAST)), xl),
    }
    exact = step(copy.deepcopy(model).train().double(), x.double())()
    forward = cost(model, x)
    costs = forward | {"flops": 3 * forward["flops"]}
    race(f"{name}, training", f"batch {n}", candidates | missing, exact, **costs, tolerance=tolerance(model, x))

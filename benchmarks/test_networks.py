"""Networks for photos of 224 x 224: fastnets.accelerate against eager PyTorch, compilers, runtimes and other libraries."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastnets
from benchmarks import _onnx, _peers
from benchmarks._candidate import Missing
from benchmarks._inputs import seeded
from fastnets.layers import Conv2d
from fastnets.models import model_info
from fastnets.models.count import count
from tests.models.peers import build_peer, build_settled, settle

NETWORKS = (
    "mobilenetv1_100", "mobilenet_v2", "efficientnet_lite0", "shufflenet_v2_x1_0", "squeezenet1_1", "resnext50_32x4d",
    "resnet50", "densenet121", "res2net50_26w_4s",
)  # fmt: skip
BATCHES = (1, 16)
OTHERS = (
    "mobilenet_v2", "shufflenet_v2_x1_0", "resnet50", "densenet121", "squeezenet1_1", "googlenet", "inception_v3",
    "resnext50_32x4d", "mobilenetv1_100", "res2net50_26w_4s", "nasnetalarge", "inception_v4",
)  # fmt: skip
LAST = torch.channels_last


def cost(model, x):
    """The photos and the weights are read, once: what lies between two layers could stay in the caches.

    Operations are those of the sums; 3x3 convolutions can do with fewer, so a network may come below this floor.
    """
    parameters, macs = count(model, x.shape[2])
    return {"nbytes": 4 * (x.numel() + parameters), "flops": 2 * len(x) * macs}


def eager(model):
    """The same network on torch.nn's own convolutions."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if type(module) is Conv2d:
            module.__class__ = nn.Conv2d
    return plain


def other_library(model, info):
    """The network as torchvision or timm builds it, with the same weights, or what is missing."""
    try:
        peer = build_peer(info.name, info.names_follow).eval()
    except pytest.skip.Exception as skipped:
        return Missing(str(skipped))
    peer.load_state_dict(model.state_dict())
    return peer


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", BATCHES)
def test_networks(race, name, n):
    info = model_info(name)
    model = settle(fastnets.create_model(name).eval())
    plain, fast = eager(model), fastnets.accelerate(model)
    size = info.input_size
    x = torch.randn(n, 3, size, size, generator=seeded())
    xl, last = x.contiguous(memory_format=LAST), copy.deepcopy(plain).to(memory_format=LAST)
    exact = copy.deepcopy(plain).double()(x.double()).detach()
    other = other_library(model, info)
    has_other = isinstance(other, nn.Module)
    other_last = copy.deepcopy(other).to(memory_format=LAST) if has_other else None
    candidates = {
        "contiguous": lambda: (plain(x),),
        "channels_last": lambda: (last(xl),),
        info.names_follow: (lambda: (other_last(xl),)) if has_other else other,
        "compile": _peers.compiled(other_last if has_other else last, xl),
        **_peers.runtimes(lambda: _onnx.exported(other if has_other else plain, x), {"x": x}),
        "fastnets": lambda: (fast(x),),
    }
    race(name, f"batch {n}", candidates, (exact,), **cost(model, x))


@pytest.mark.parametrize("name", OTHERS)
def test_accelerate(race, name):
    """What one call gives on torchvision's and timm's own modules, one photo at a time."""
    info = model_info(name)
    model = build_settled(lambda: build_peer(name, info.names_follow)).eval()
    fast, last = fastnets.accelerate(model), copy.deepcopy(model).to(memory_format=LAST)
    x = torch.randn(1, 3, info.input_size, info.input_size, generator=seeded())
    xl = x.contiguous(memory_format=LAST)
    candidates = {
        "contiguous": lambda: (model(x),),
        "channels_last": lambda: (last(xl),),
        "fastnets": lambda: (fast(x),),
    }
    exact = copy.deepcopy(model).double()(x.double()).detach()
    race(f"accelerate, {info.names_follow}", name, candidates, (exact,), **cost(model, x))

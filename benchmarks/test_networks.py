"""What fastnets.accelerate makes of networks of torchvision and timm: against eager PyTorch, compilers, runtimes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastnets
from benchmarks import _onnx, _peers
from benchmarks._candidate import Missing
from benchmarks._cost import fewest_macs
from benchmarks._inputs import seeded
from fastnets.layers import Conv2d
from fastnets.models import model_info
from tests.models.peers import build_peer, build_settled, settle

NETWORKS = (
    "mobilenetv1_100", "mobilenet_v2", "efficientnet_lite0", "shufflenet_v2_x1_0", "squeezenet1_1", "resnext50_32x4d",
    "resnet50", "densenet121", "res2net50_26w_4s",
)  # fmt: skip
IN_BFLOAT16 = NETWORKS[:5]
IN_INT8 = (*IN_BFLOAT16, "resnet50")
BATCHES = (1, 16)
SIZES = ((1, 160), (3, 197), (2, 320))  # photos, height and width
MANY = (64, 160)
OF_TIMM = ("efficientnet_b0", "mobilenetv3_large_100", "tf_efficientnet_lite0")  # SiLU, hardswish, TensorFlow's padding
MORE = ("googlenet", "inception_v3", "nasnetalarge", "inception_v4")  # against eager PyTorch
LAST = torch.channels_last
INT8 = 0.1  # the largest error over the largest logit; of these networks, whose weights are random, up to 0.06 in all runtimes


def cost(model, x, size=4):
    """The photos and the weights are read, once: what lies between two layers could stay in the caches.

    Operations are the fewest (``_cost``).
    """
    numbers = x.numel() + sum(p.numel() for p in model.parameters())
    return {"nbytes": size * numbers, "flops": 2 * fewest_macs(model, x)}


def network(name):
    """The network as torchvision or timm builds it, and what is missing: without them, ours on torch.nn's layers."""
    info = model_info(name)
    try:
        return build_settled(lambda: build_peer(name, info.names_follow)).eval(), {}
    except pytest.skip.Exception as skipped:
        model = settle(fastnets.create_model(name).eval())
        for module in model.modules():
            if type(module) is Conv2d:
                module.__class__ = nn.Conv2d
        return model, {info.names_follow: Missing(str(skipped))}


def eager_and_ours(model, x):
    """The candidates that all networks have, and the exact logits."""
    fast, last = fastnets.accelerate(model), copy.deepcopy(model).to(memory_format=LAST)
    xl = x.contiguous(memory_format=LAST)
    candidates = {
        "contiguous": lambda: (model(x),),
        "channels_last": lambda: (last(xl),),
        "fastnets": lambda: (fast(x),),
    }
    return candidates, copy.deepcopy(model).double()(x.double()).detach()


def everyone(model, x, runtimes=_peers.RUNTIMES):
    """These and the compilers and runtimes, and the exact logits."""
    candidates, exact = eager_and_ours(model, x)
    candidates |= _peers.runtimes(lambda: _onnx.exported(model, x), {"x": x}, runtimes)
    compiled = copy.deepcopy(model).to(memory_format=LAST)
    candidates["compile"] = _peers.compiled(compiled, x.contiguous(memory_format=LAST))
    return candidates, exact


def photos(name, n):
    size = model_info(name).input_size
    return torch.randn(n, 3, size, size, generator=seeded())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", BATCHES)
def test_networks(race, name, n):
    (model, missing), x = network(name), photos(name, n)
    candidates, exact = everyone(model, x)
    race(name, f"batch {n}", candidates | missing, (exact,), **cost(model, x))


@pytest.mark.parametrize("name", IN_BFLOAT16)
@pytest.mark.parametrize("n", BATCHES)
def test_bfloat16(race, name, n):
    """All in bfloat16. OpenVINO and ours are given float32 photos, which they convert."""
    (model, missing), x = network(name), photos(name, n)
    fast, half = fastnets.accelerate(model, dtype=torch.bfloat16), copy.deepcopy(model).bfloat16()
    last, xh = copy.deepcopy(half).to(memory_format=LAST), x.bfloat16()
    xl = xh.contiguous(memory_format=LAST)
    candidates = {
        "contiguous": lambda: (half(xh),),
        "channels_last": lambda: (last(xl),),
        "fastnets": lambda: (fast(x),),
        "compile": _peers.compiled(copy.deepcopy(last), xl),
    }
    candidates |= missing | _peers.runtimes(lambda: _onnx.exported(model, x), {"x": x}, ["openvino bfloat16"])
    exact = copy.deepcopy(model).double()(x.double()).detach()
    costs = cost(model, x, size=2)
    race(name, f"batch {n}", candidates, (exact,), **costs, dtype="bfloat16", op="networks in bfloat16")


@pytest.mark.parametrize("name", IN_INT8)
@pytest.mark.parametrize("n", BATCHES)
def test_int8(race, name, n):
    """Levels are told of the same photos in all. Eager PyTorch is in float32."""
    (model, missing), x, seen = network(name), photos(name, n), photos(name, max(BATCHES))
    candidates, exact = eager_and_ours(model, x)
    fast = fastnets.accelerate(model, seen, dtype=torch.int8)
    candidates |= {"fastnets": lambda: (fast(x),)} | missing
    model_in_int8 = lambda: _onnx.quantized(_onnx.exported(model, x), seen)
    candidates |= _peers.runtimes(model_in_int8, {"x": x}, ["onnxruntime", "openvino"])
    costs, op = cost(model, x, size=1), "networks in int8"
    race(name, f"batch {n}", candidates, (exact,), **costs, dtype="int8", op=op, tolerance=INT8)


@pytest.mark.parametrize(
    ("name", "n", "size"),
    [(name, *size) for name in NETWORKS for size in SIZES] + [(name, *MANY) for name in IN_BFLOAT16],
)
def test_other_sizes(race, name, n, size):
    """What accelerate has packed for one size runs at all: never slower than eager PyTorch's faster layout."""
    (model, missing), x = network(name), torch.randn(n, 3, size, size, generator=seeded())
    candidates, exact = eager_and_ours(model, x)
    op = "networks at other sizes"
    race(name, f"{n} of {size} x {size}", candidates | missing, (exact,), **cost(model, x), op=op)


@pytest.mark.parametrize("name", OF_TIMM)
@pytest.mark.parametrize("n", BATCHES)
def test_timm(race, name, n):
    """Networks that are not ours."""
    model, x = build_settled(lambda: build_peer(name, "timm")).eval(), torch.randn(n, 3, 224, 224, generator=seeded())
    candidates, exact = everyone(model, x, ["onnxruntime", "openvino"])
    race(name, f"batch {n}", candidates, (exact,), **cost(model, x), op="networks of timm")


@pytest.mark.parametrize("name", MORE)
def test_accelerate(race, name):
    model, missing = network(name)
    candidates, exact = eager_and_ours(model, x := photos(name, 1))
    race(name, "batch 1", candidates | missing, (exact,), **cost(model, x))

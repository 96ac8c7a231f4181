"""The ops that accelerate puts in networks, on weights packed once, against modules of torch.nn and other runtimes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import _onnx, _peers, _shapes
from benchmarks._cost import fewest_macs
from benchmarks._inputs import seeded
from fastnets import accelerate
from fastnets.layers import SPBlock

LAST = torch.channels_last


def settled(*layers):
    module = nn.Sequential(*layers).eval().requires_grad_(False)
    make = seeded()
    for p in module.parameters():
        p.normal_(0, max(1, p[0].numel()) ** -0.5, generator=make)
    return module


def cost(module, x, size=4):
    """The input and the weights are read and the last result is written; operations are the fewest (``_cost``)."""
    numbers = x.numel() + module(x).numel() + sum(p.numel() for p in module.parameters())
    return {"nbytes": size * numbers, "flops": 2 * fewest_macs(module, x)}


def race_module(race, group, name, module, x):
    fast, last, xl = accelerate(module), copy.deepcopy(module).to(memory_format=LAST), x.contiguous(memory_format=LAST)
    candidates = {
        "contiguous": lambda: (module(x),),
        "channels_last": lambda: (last(xl),),
        "compile": _peers.compiled(last, xl),
        **_peers.runtimes(lambda: _onnx.exported(module, x), {"x": x}),
        "fastnets": lambda: (fast(xl),),
    }
    race(group, name, candidates, (copy.deepcopy(module).double()(x.double()),), **cost(module, x))


@pytest.mark.parametrize("shape", _shapes.MOBILENET_V2_BLOCKS.values(), ids=_shapes.MOBILENET_V2_BLOCKS)
@pytest.mark.parametrize("n", (1, 16))
def test_inverted_residual(race, n, shape):
    c, hidden, o, h, stride = shape
    deep = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden)
    block = settled(nn.Conv2d(c, hidden, 1), nn.ReLU6(), deep, nn.ReLU6(), nn.Conv2d(hidden, o, 1))
    name = f"{c}-{hidden}-{o} x{h}x{h}/{stride}"
    race_module(race, f"inverted_residual, batch {n}", name, block, torch.randn(n, c, h, h, generator=seeded(1)))


@pytest.mark.parametrize("shape", _shapes.POINTWISE.values(), ids=_shapes.POINTWISE)
def test_pointwise_conv2d(race, shape):
    c, o, h = shape
    module = settled(nn.Conv2d(c, o, 1), nn.ReLU())
    race_module(race, "pointwise_conv2d", f"{c} to {o} x{h}x{h}", module, torch.randn(1, c, h, h, generator=seeded(1)))


@pytest.mark.parametrize("shape", _shapes.DENSE_3X3.values(), ids=_shapes.DENSE_3X3)
def test_winograd_conv2d(race, shape):
    c, o, h = shape
    module = settled(nn.Conv2d(c, o, 3, padding=1), nn.ReLU())
    race_module(race, "winograd_conv2d", f"{c} to {o} x{h}x{h}", module, torch.randn(1, c, h, h, generator=seeded(1)))


@pytest.mark.parametrize("shape", _shapes.SUB_PIXEL.values(), ids=_shapes.SUB_PIXEL)
def test_sub_pixel_conv2d(race, shape):
    c, o, r, h, w = shape
    module = settled(nn.Conv2d(c, o, 3, padding=1), nn.PixelShuffle(r))
    x = torch.randn(1, c, h, w, generator=seeded(1))
    race_module(race, "sub_pixel_conv2d", f"{c} to {o // r**2} x{h}x{w}, r = {r}", module, x)


@pytest.mark.parametrize("shape", _shapes.TRANSITIONS.values(), ids=_shapes.TRANSITIONS)
@pytest.mark.parametrize("n", (1, 16))
def test_preact_conv2d(race, n, shape):
    c, o, h = shape
    module = settled(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, o, 1, bias=False), nn.AvgPool2d(2))
    x = torch.randn(n, c, h, h, generator=seeded(1))
    race_module(race, f"preact_conv2d, batch {n}", f"{c} to {o} x{h}x{h}", module, x)


@pytest.mark.parametrize("shape", _shapes.SPNET_POOLED.values(), ids=_shapes.SPNET_POOLED)
@pytest.mark.parametrize("n", (1, 4))
def test_outer_sum_conv2d(race, n, shape):
    x = torch.randn(n, *shape, generator=seeded(1))
    name = "x".join(map(str, shape))
    race_module(race, f"outer_sum_conv2d, batch {n}", name, settled(Gated(shape[0])), x)


class Gated(SPBlock):
    """SPNet's block and the image that it gates, on PyTorch's own means, which are faster than its adaptive pooling."""

    def __init__(self, channels):
        super().__init__(channels, channels)

    def forward(self, x):
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True)
        strips = self.bn1(self.conv1(rows)) + self.bn2(self.conv2(columns))
        return x * self.conv3(F.relu(strips)).sigmoid()


@pytest.mark.parametrize("shape", _shapes.STEMS.values(), ids=_shapes.STEMS)
def test_direct_conv2d(race, shape):
    o, k, stride, padding = shape
    module = settled(nn.Conv2d(3, o, k, stride, padding), nn.ReLU())
    race_module(
        race, "direct_conv2d", f"{o} {k}x{k}/{stride}", module, torch.randn(1, 3, 224, 224, generator=seeded(1))
    )


@pytest.mark.parametrize("shape", _shapes.POOLED_STEMS.values(), ids=_shapes.POOLED_STEMS)
@pytest.mark.parametrize("n", (1, 16))
def test_direct_max_pool2d(race, n, shape):
    o, k, padding, pool_padding, ceil_mode = shape
    module = settled(nn.Conv2d(3, o, k, 2, padding), nn.ReLU(), nn.MaxPool2d(3, 2, pool_padding, ceil_mode=ceil_mode))
    x = torch.randn(n, 3, 224, 224, generator=seeded(1))
    race_module(race, f"direct_max_pool2d, batch {n}", f"{o} {k}x{k}/2, pool 3/2", module, x)


@pytest.mark.parametrize("shape", _shapes.DENSE_3X3.values(), ids=_shapes.DENSE_3X3)
def test_direct_conv2d_in_bfloat16(race, shape):
    """OpenVINO is given a float32 image, which it converts."""
    c, o, h = shape
    module, x = settled(nn.Conv2d(c, o, 3, padding=1), nn.ReLU()), torch.randn(1, c, h, h, generator=seeded(1))
    fast, half, xh = accelerate(module, dtype=torch.bfloat16), copy.deepcopy(module).bfloat16(), x.bfloat16()
    last, xl = copy.deepcopy(half).to(memory_format=LAST), xh.contiguous(memory_format=LAST)
    candidates = {
        "contiguous": lambda: (half(xh),),
        "channels_last": lambda: (last(xl),),
        "compile": _peers.compiled(last, xl),
        **_peers.runtimes(lambda: _onnx.exported(module, x), {"x": x}, ["openvino bfloat16"]),
        "fastnets": lambda: (fast(xl),),
    }
    exact, costs = copy.deepcopy(module).double()(x.double()), cost(module, x, size=2)
    race("direct_conv2d, bfloat16", f"{c} to {o} x{h}x{h}", candidates, (exact,), **costs, dtype="bfloat16")


@pytest.mark.parametrize("shape", _shapes.MB_CONV.values(), ids=_shapes.MB_CONV)
@pytest.mark.parametrize("n", (1, 16))
def test_squeezed_residual(race, n, shape):
    """Inverted residuals with squeeze and excitation, EfficientNet's."""
    c, hidden, o, h, k, stride, few = shape
    deep = nn.Conv2d(hidden, hidden, k, stride, k // 2, groups=hidden)
    first = nn.Sequential(nn.Conv2d(c, hidden, 1), nn.SiLU(), deep, nn.SiLU())
    block = settled(first, Squeeze(hidden, few), nn.Conv2d(hidden, o, 1))
    name = f"{c}-{hidden}-{o} x{h}x{h} {k}x{k}/{stride}, {few}"
    x = torch.randn(n, c, h, h, generator=seeded(1))
    race_module(race, f"inverted_residual with squeeze, batch {n}", name, block, x)


class Squeeze(nn.Module):
    """Squeeze and excitation as torchvision and timm spell it."""

    def __init__(self, channels, few):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, few, 1), nn.Conv2d(few, channels, 1)

    def forward(self, x):
        return x * self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()


@pytest.mark.parametrize("shape", _shapes.LINEAR.values(), ids=_shapes.LINEAR)
@pytest.mark.parametrize("n", (1, 16, 197))
def test_packed_linear(race, n, shape):
    """Rows of one, of a batch, of a transformer's tokens."""
    c, o = shape
    module, x = settled(nn.Linear(c, o)), torch.randn(n, c, generator=seeded(1))
    fast = accelerate(module)
    candidates = {
        "eager": lambda: (module(x),),
        "compile": _peers.compiled(module, x),
        **_peers.runtimes(lambda: _onnx.exported(module, x), {"x": x}),
        "fastnets": lambda: (fast(x),),
    }
    exact = copy.deepcopy(module).double()(x.double())
    costs = {"nbytes": 4 * (x.numel() + exact.numel() + c * o), "flops": 2 * n * c * o}
    race(f"linear, {n} rows", f"{c} to {o}", candidates, (exact,), **costs)


def test_pooled_linear(race):
    module = settled(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))
    race_module(race, "pooled_linear", "MobileNetV2", module, torch.randn(1, 1280, 7, 7, generator=seeded(1)))


@pytest.mark.parametrize("shape", _shapes.POOLS.values(), ids=_shapes.POOLS)
def test_pool2d(race, shape):
    kind, c, h, stride, padding = shape
    module = settled({"max": nn.MaxPool2d, "avg": nn.AvgPool2d}[kind](3, stride, padding))
    race_module(race, f"{kind}_pool2d", f"{c} x{h}x{h}/{stride}", module, torch.randn(1, c, h, h, generator=seeded(1)))

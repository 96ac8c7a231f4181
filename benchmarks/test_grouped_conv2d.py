"""grouped_conv2d against F.conv2d on the layers of ResNeXt-50 (32x4d) and ShuffleNet v1 (1x) at 224 x 224."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks import _peers, _shapes
from benchmarks._inputs import seeded
from fastnets.ops import grouped_conv2d

RESNEXT50_32X4D, POINTWISE = _shapes.RESNEXT50_32X4D.values(), _shapes.SHUFFLENET_POINTWISE.values()
CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last


def cost(x, w, stride=1, tensors=1, **_):
    """x is read, y written; each of y's numbers takes w[0] multiply-adds. The backward pass moves x, dy and dx."""
    y = len(x) * len(w) * (x.shape[2] // stride) * (x.shape[3] // stride)
    return {"nbytes": 4 * (tensors * x.numel() + y), "flops": tensors * 2 * y * w[0].numel()}


def layer(n, c, o, groups, h, k):
    make = seeded()
    x = torch.randn(n, c, h, h, generator=make)
    return x, torch.randn(o, c // groups, k, k, generator=make), torch.randn(o, generator=make)


def race_forward(race, group, name, tensors, kw, layout=LAST):
    x, w, b = tensors
    xl, wl = (t.contiguous(memory_format=LAST) for t in (x, w))
    xo, wo = (x, w) if layout == CONTIGUOUS else (xl, wl)
    candidates = {
        "contiguous": lambda: (F.conv2d(x, w, b, **kw),),
        "channels_last": lambda: (F.conv2d(xl, wl, b, **kw),),
        "fastnets": lambda: (grouped_conv2d(xo, wo, b, **kw),),
    }
    if layout == CONTIGUOUS:
        del candidates["channels_last"]
    else:
        candidates |= _peers.convolution(x, w, b, **kw)
    exact = (F.conv2d(x.double(), w.double(), b.double(), **kw),)
    race(group, name, candidates, exact, **cost(x, w, **kw))


def resnext(n, c, h, stride):
    name = f"{c}x{h}x{h} 3x3/{stride}"
    return name, layer(n, c, c, 32, h, 3), {"stride": stride, "padding": 1, "groups": 32}


@pytest.mark.parametrize("shape", RESNEXT50_32X4D, ids=str)
@pytest.mark.parametrize("n", (1, 16))
def test_resnext(race, n, shape):
    race_forward(race, f"ResNeXt-50, batch {n}", *resnext(n, *shape))


@pytest.mark.parametrize("shape", RESNEXT50_32X4D, ids=str)
@pytest.mark.parametrize("n", (1, 16))
def test_resnext_contiguous(race, n, shape):
    race_forward(race, f"ResNeXt-50, batch {n}, both contiguous", *resnext(n, *shape), layout=CONTIGUOUS)


@pytest.mark.parametrize("shape", RESNEXT50_32X4D, ids=str)
@pytest.mark.parametrize("n", (1, 16))
def test_resnext_bfloat16(race, n, shape):
    """Against eager PyTorch in bfloat16 alone: compilers and runtimes are not raced here."""
    name, tensors, kw = resnext(n, *shape)
    x, w, b = (t.bfloat16() for t in tensors)
    xl, wl = (t.contiguous(memory_format=LAST) for t in (x, w))
    candidates = {
        "contiguous": lambda: (F.conv2d(x, w, b, **kw),),
        "channels_last": lambda: (F.conv2d(xl, wl, b, **kw),),
        "fastnets": lambda: (grouped_conv2d(xl, wl, b, **kw),),
    }
    exact = (F.conv2d(x.double(), w.double(), b.double(), **kw),)
    costs = cost(x, w, **kw)
    costs["nbytes"] //= 2
    race(f"ResNeXt-50 in bfloat16, batch {n}", name, candidates, exact, **costs, dtype="bfloat16")


@pytest.mark.parametrize("shape", POINTWISE, ids=str)
@pytest.mark.parametrize("n", (1, 16))
def test_shufflenet(race, n, shape):
    groups, c, o, h = shape
    name, kw = f"{groups}: {c} to {o} x{h}x{h}", {"groups": groups}
    race_forward(race, f"ShuffleNet 1x1, batch {n}", name, layer(n, c, o, groups, h, 1), kw)


@pytest.mark.parametrize("shape", RESNEXT50_32X4D, ids=str)
@pytest.mark.parametrize("n", (1, 16))
def test_resnext_backward(race, n, shape):
    """Gradients of input, weight and bias, without the forward pass."""
    name, (x, w, b), kw = resnext(n, *shape)
    dy = torch.randn(F.conv2d(x[:1], w, b, **kw).shape[1:], generator=seeded(1))
    dy = dy.expand(n, *dy.shape).contiguous()
    xl, wl, dyl = (t.contiguous(memory_format=LAST) for t in (x, w, dy))
    geometry = [[kw["stride"]] * 2, [1, 1], [1, 1]]
    theirs, ours = torch.ops.aten.convolution_backward.default, torch.ops.fastnets.grouped_conv2d_backward.default
    rest = [[len(b)], *geometry, False, [0, 0], 32, [True] * 3]
    race(
        f"ResNeXt-50 backward, batch {n}",
        name,
        {
            "contiguous": lambda: theirs(dy, x, w, *rest),
            "channels_last": lambda: theirs(dyl, xl, wl, *rest),
            "fastnets": lambda: ours(dyl, xl, wl, *geometry, 32, True, True, True),
        },
        theirs(dy.double(), x.double(), w.double(), *rest),
        **cost(x, w, stride=kw["stride"], tensors=2),
    )

"""depthwise_conv2d against F.conv2d on the layers of MobileNetV2 and EfficientNet-Lite0 at 224 x 224, of MobileNetV2 at 320
x 320, of few channels, of other kernels than 3x3 and 5x5, and dilated."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks import _peers, _shapes
from benchmarks._inputs import seeded
from fastnets.ops import depthwise_conv2d

LAYERS = [*_shapes.MOBILENET_V2_DEPTHWISE.values(), *_shapes.EFFICIENTNET_LITE0_DEPTHWISE.values()]
FORWARD = [("forward", shape) for shape in LAYERS]
FORWARD += [("forward at 320 x 320", shape) for shape in _shapes.MOBILENET_V2_320_DEPTHWISE.values()]
FORWARD += [("forward of few channels", shape) for shape in _shapes.FEW_CHANNELS_DEPTHWISE.values()]
FORWARD += [("forward of other kernels", shape) for shape in _shapes.OTHER_DEPTHWISE.values()]
LAST = torch.channels_last


def cost(n, c, h, k, stride, dilation=1, tensors=1):
    """x is read, y written; each of y's numbers takes k² multiply-adds. The backward pass moves x, dy and dx."""
    oh = h // stride
    return {"nbytes": 4 * n * c * (tensors * h * h + oh * oh), "flops": tensors * 2 * k * k * n * c * oh * oh}


def layer(n, c, h, k, stride, dilation=1):
    make = seeded()
    x = torch.randn(n, c, h, h, generator=make)
    w, b = torch.randn(c, 1, k, k, generator=make), torch.randn(c, generator=make)
    return x, w, b, {"stride": stride, "padding": dilation * (k // 2), "dilation": dilation}


def name(c, h, k, stride, dilation=1):
    return f"{c}x{h}x{h} {k}x{k}/{stride}" + (f" dilated {dilation}" if dilation > 1 else "")


@pytest.mark.parametrize(("group", "shape"), FORWARD, ids=lambda v: v if isinstance(v, str) else name(*v))
@pytest.mark.parametrize("n", (1, 16))
def test_forward(race, n, group, shape):
    x, w, b, kw = layer(n, *shape)
    c = shape[0]
    xl, wl = x.contiguous(memory_format=LAST), w.contiguous(memory_format=LAST)
    exact = (F.conv2d(x.double(), w.double(), b.double(), **kw, groups=c),)
    race(
        f"{group}, batch {n}",
        name(*shape),
        {
            "contiguous": lambda: (F.conv2d(x, w, b, **kw, groups=c),),
            "channels_last": lambda: (F.conv2d(xl, wl, b, **kw, groups=c),),
            **_peers.convolution(x, w, b, **kw, groups=c),
            "fastnets": lambda: (depthwise_conv2d(xl, wl, b, **kw),),
        },
        exact,
        **cost(n, *shape),
    )


@pytest.mark.parametrize("shape", LAYERS, ids=lambda s: name(*s))
def test_forward_contiguous(race, shape):
    x, w, b, kw = layer(16, *shape)
    exact = (F.conv2d(x.double(), w.double(), b.double(), **kw, groups=shape[0]),)
    race(
        "forward, batch 16, both contiguous",
        name(*shape),
        {
            "contiguous": lambda: (F.conv2d(x, w, b, **kw, groups=shape[0]),),
            "fastnets": lambda: (depthwise_conv2d(x, w, b, **kw),),
        },
        exact,
        **cost(16, *shape),
    )


@pytest.mark.parametrize("shape", LAYERS, ids=lambda s: name(*s))
@pytest.mark.parametrize("n", (1, 16))
def test_backward(race, n, shape):
    """Gradients of input, weight and bias, without the forward pass."""
    x, w, b, kw = layer(n, *shape)
    c, pair = shape[0], lambda v: [v, v]
    dy = torch.randn(F.conv2d(x[:1], w, b, **kw, groups=c).shape[1:], generator=seeded(1))
    dy = dy.expand(n, *dy.shape).contiguous()
    xl, wl, dyl = (t.contiguous(memory_format=LAST) for t in (x, w, dy))
    geometry = [pair(kw["stride"]), pair(kw["padding"]), [1, 1]]
    theirs, ours = torch.ops.aten.convolution_backward.default, torch.ops.fastnets.depthwise_conv2d_backward.default
    rest = [*geometry, False, [0, 0], c, [True] * 3]
    exact = theirs(dy.double(), x.double(), w.double(), [c], *rest)
    race(
        f"backward, batch {n}",
        name(*shape),
        {
            "contiguous": lambda: theirs(dy, x, w, [c], *rest),
            "channels_last": lambda: theirs(dyl, xl, wl, [c], *rest),
            "fastnets": lambda: ours(dyl, xl, wl, *geometry, True, True, True),
        },
        exact,
        **cost(n, *shape, tensors=2),
    )

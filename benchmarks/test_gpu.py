"""Every op on a GPU, on tensors of 256 MB or more, against the fastest there is; collected only with --device=cuda."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import _peers, _shapes
from benchmarks._inputs import seeded
from benchmarks.test_corner_pool import cummax
from benchmarks.test_soft_nms import boxes_of_image, cost
from benchmarks.test_strip_pool import means
from fastnets import ops
from fastnets.layers import DepthwiseConv2d, PackedConv2d, PackedInvertedResidual
from fastnets.ops.corner_pool import CORNERS, DIRECTIONS

LARGE = 1 << 28  # bytes of the largest tensor
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = ("float32", "bfloat16")


@pytest.fixture(autouse=True)
def same_numbers_in_every_run():
    torch.manual_seed(0)


def maps(c, h, layout, dtype):
    """As many images as make a large tensor."""
    n = math.ceil(LARGE / (getattr(torch, dtype).itemsize * c * h * h))
    return (
        torch.randn(n, c, h, h, generator=seeded()).to(getattr(torch, dtype)).contiguous(memory_format=LAYOUTS[layout])
    )


def in_both(cases):
    """A test of every layout and type."""
    return pytest.mark.parametrize("dtype", DTYPES)(pytest.mark.parametrize("layout", LAYOUTS)(cases))


def convolution(layout, dtype):
    c, h, k, stride = _shapes.MOBILENET_V2_DEPTHWISE["features.3"]
    conv = nn.Conv2d(c, c, k, stride, k // 2, groups=c, bias=False, dtype=getattr(torch, dtype))
    return maps(c, h, layout, dtype), conv.requires_grad_(False).to(memory_format=LAYOUTS[layout])


@in_both
def test_depthwise_conv2d_forward(race, layout, dtype):
    """With batch norm and ReLU6, folded where the candidate folds."""
    x, conv = convolution(layout, dtype)
    norm = nn.BatchNorm2d(len(conv.weight), dtype=x.dtype)
    nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2.0), nn.init.normal_(norm.bias)
    block = nn.Sequential(conv, norm, nn.ReLU6()).eval()
    folded = nn.utils.fuse_conv_bn_eval(conv, norm)
    race(
        "depthwise_conv2d, forward with batch norm and ReLU6",
        f"{dtype}, {layout}",
        {
            "eager": lambda: (block(x),),
            "compile": _peers.compiled(block, x),
            "fastnets": lambda: (
                ops.depthwise_conv2d(x, folded.weight, folded.bias, 1, conv.padding, activation="relu6"),
            ),
        },
        (copy.deepcopy(block).double()(x.double()),),
        nbytes=2 * x.nbytes,
        flops=18 * x.numel(),
        dtype=dtype,
        op="depthwise_conv2d",
    )


@in_both
def test_depthwise_conv2d_backward(race, layout, dtype):
    x, conv = convolution(layout, dtype)
    dy, w, c = torch.randn_like(x), conv.weight, x.shape[1]
    geometry = [1, 1], [1, 1], [1, 1]
    theirs, ours = torch.ops.aten.convolution_backward.default, torch.ops.fastnets.depthwise_conv2d_backward.default
    rest = [*geometry, False, [0, 0], c, [True, True, False]]
    race(
        "depthwise_conv2d, both gradients",
        f"{dtype}, {layout}",
        {
            "eager": lambda: theirs(dy, x, w, None, *rest)[:2],
            "fastnets": lambda: ours(dy, x, w, *geometry, True, True, False)[:2],
        },
        theirs(dy.double(), x.double(), w.double(), None, *rest)[:2],
        nbytes=3 * x.nbytes,
        flops=36 * x.numel(),
        dtype=dtype,
        op="depthwise_conv2d",
    )


@pytest.mark.parametrize("shape", _shapes.MOBILENET_V2_BLOCKS.values(), ids=_shapes.MOBILENET_V2_BLOCKS)
def test_inverted_residual(race, quick, shape):
    """MobileNetV2's blocks on 256 images, with the residual where there is one."""
    c, hidden, o, h, stride = shape
    n, last = 1 if quick else 256, LAYOUTS["channels_last"]
    x = torch.randn(n, c, h, h, generator=seeded()).bfloat16().contiguous(memory_format=last)
    layers = (
        PackedConv2d(c, hidden, 1, activation="relu6"),
        DepthwiseConv2d(hidden, 3, stride, 1, activation="relu6"),
        PackedConv2d(hidden, o, 1),
    )
    ours = PackedInvertedResidual(*layers).eval().requires_grad_(False).bfloat16()
    convs = [nn.Conv2d(*conv.weight.shape[1::-1], 1) for conv in (ours.expand, ours.project)]
    convs.insert(1, nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden))
    block = nn.Sequential(convs[0], nn.ReLU6(), convs[1], nn.ReLU6(), convs[2]).eval().requires_grad_(False).bfloat16()
    for conv, layer in zip(convs, layers, strict=True):
        conv.load_state_dict(layer.state_dict())
    block = block.to(memory_format=last)
    residual = x if (c, stride) == (o, 1) else None

    def theirs(x):
        return block(x) if residual is None else block(x) + x

    exact = copy.deepcopy(block).double()(x.double())
    candidates = {
        "eager": lambda: (theirs(x),),
        "compile": _peers.compiled(theirs, x),
        "fastnets": lambda: (ours(x, residual),),
    }
    results = n * (h // stride) ** 2
    macs = n * h * h * c * hidden + results * hidden * (9 + o)
    race(
        "inverted_residual, 256 images",
        f"{c}-{hidden}-{o} x{h}x{h}/{stride}",
        candidates,
        (exact if residual is None else exact + x.double(),),
        nbytes=2 * (x.numel() + results * o),
        flops=2 * macs,
        dtype="bfloat16",
        op="inverted_residual",
    )


@in_both
@pytest.mark.parametrize("op", ("channel_shuffle", "pixel_shuffle", "pixel_unshuffle"))
def test_movement(race, op, layout, dtype):
    x, ours = maps(240, 56, layout, dtype), getattr(ops, op)
    number = 3 if op == "channel_shuffle" else 2
    candidates = {
        "torch": lambda: (getattr(F, op)(x, number),),
        "compile": _peers.compiled(getattr(F, op), x, number),
        "fastnets": lambda: (ours(x, number),),
    }
    exact, case = (getattr(F, op)(x.double(), number),), f"{dtype}, {layout}"
    file = op.replace("unshuffle", "shuffle")
    race(op, case, candidates, exact, nbytes=2 * x.nbytes, flops=0, dtype=dtype, op=file)


@in_both
@pytest.mark.parametrize("direction", ("top", "right"))
def test_corner_pool(race, direction, layout, dtype):
    x = maps(*_shapes.CORNERNET_POOLED[:2], layout, dtype)
    candidates = {"cummax": lambda: (cummax(x, direction),), "fastnets": lambda: (ops.corner_pool(x, direction),)}
    exact, case = (cummax(x, direction).double(),), f"{direction}, {dtype}, {layout}"
    moved = {"nbytes": 2 * x.nbytes, "flops": x.numel()}
    race("corner_pool", case, candidates, exact, **moved, dtype=dtype, op="corner_pool")


@in_both
def test_corner_pool_sum(race, layout, dtype):
    a = maps(*_shapes.CORNERNET_POOLED[:2], layout, dtype)
    b = a.flip(0)
    vertical, horizontal = CORNERS["top_left"]
    exact = (cummax(a, vertical).double() + cummax(b, horizontal).double(),)
    candidates = {
        "cummax": lambda: (cummax(a, vertical) + cummax(b, horizontal),),
        "fastnets": lambda: (ops.corner_pool_sum(a, b, "top_left"),),
    }
    moved = {"nbytes": 3 * a.nbytes, "flops": 3 * a.numel()}
    race("corner_pool_sum", f"{dtype}, {layout}", candidates, exact, **moved, dtype=dtype, op="corner_pool")


@in_both
@pytest.mark.parametrize("direction", ("top", "left"))
def test_corner_pool_backward(race, direction, layout, dtype):
    x = maps(*_shapes.CORNERNET_POOLED[:2], layout, dtype)
    dy, dim = torch.randn_like(x), DIRECTIONS[direction][0]
    index, ours = x.flip(dim).cummax(dim)[1], torch.ops.fastnets.corner_pool_backward.default

    def scatter(dy):
        return torch.zeros_like(dy).scatter_add_(dim, index, dy.flip(dim)).flip(dim)

    candidates = {"scatter": lambda: (scatter(dy),), "fastnets": lambda: (ours(dy, x, direction, "last"),)}
    exact, case = (scatter(dy.double()),), f"{direction}, {dtype}, {layout}"
    moved = {"nbytes": 3 * x.nbytes, "flops": 2 * x.numel()}
    race("corner_pool, gradient", case, candidates, exact, **moved, dtype=dtype, op="corner_pool")


@in_both
def test_strip_pool(race, layout, dtype):
    x = maps(256, 128, layout, dtype)
    candidates = {
        "torch": lambda: means(x),
        "compile": _peers.compiled(means, x),
        "fastnets": lambda: ops.strip_pool(x),
    }
    moved = {"nbytes": x.nbytes, "flops": 2 * x.numel()}
    race("strip_pool", f"{dtype}, {layout}", candidates, means(x.double()), **moved, dtype=dtype, op="strip_pool")


@in_both
def test_strip_pool_backward(race, layout, dtype):
    x = maps(256, 128, layout, dtype)
    rows, columns = means(x)
    ours = torch.ops.fastnets.strip_pool_backward.default

    def spread(rows, columns):
        return rows / x.shape[3] + columns / x.shape[2]

    candidates = {
        "torch": lambda: (spread(rows, columns),),
        "compile": _peers.compiled(spread, rows, columns),
        "fastnets": lambda: (ours(rows, columns, layout == "channels_last"),),
    }
    exact, moved = (spread(rows.double(), columns.double()),), {"nbytes": x.nbytes, "flops": x.numel()}
    race("strip_pool, gradient", f"{dtype}, {layout}", candidates, exact, **moved, dtype=dtype, op="strip_pool")


@in_both
def test_batch_moments(race, layout, dtype):
    x, dims = maps(240, 56, layout, dtype), (0, 2, 3)

    def ours():
        mean, m2, count = ops.batch_moments(x)
        return m2 / (count - 1), mean

    candidates = {"torch": lambda: torch.var_mean(x, dims), "fastnets": ours}
    moved, exact = {"nbytes": x.nbytes, "flops": 3 * x.numel()}, torch.var_mean(x.double(), dims)
    race("batch_moments", f"{dtype}, {layout}", candidates, exact, **moved, dtype=dtype, op="batch_moments")


@in_both
def test_sync_batch_norm(race, layout, dtype):
    """A training step: forward and backward of one process."""
    x = maps(240, 56, layout, dtype).requires_grad_()
    dy, w, b = torch.randn_like(x), torch.rand(240), torch.rand(240)

    def step(function, x, dy, w, b):
        def run():
            with torch.enable_grad():
                y = function(x, torch.zeros_like(w), torch.ones_like(w), w, b, True)
            return torch.autograd.grad(y, [x], dy)

        return run

    doubles = (x.detach().double().requires_grad_(), dy.double(), w.double(), b.double())
    candidates = {"torch": step(F.batch_norm, x, dy, w, b), "fastnets": step(ops.sync_batch_norm, x, dy, w, b)}
    exact, moved = step(F.batch_norm, *doubles)(), {"nbytes": 8 * x.nbytes, "flops": 15 * x.numel()}
    race("sync_batch_norm", f"{dtype}, {layout}", candidates, exact, **moved, dtype=dtype, op="sync_batch_norm")


def categories(problems, each):
    n = problems * each
    boxes, _ = boxes_of_image(n)
    scores = torch.randperm(n, generator=seeded(1)) / n  # no two alike: peers put those in any order
    return boxes, scores, torch.arange(n) % problems


@pytest.mark.parametrize("method", ("linear", "gaussian"))
def test_soft_nms(race, method):
    """640 categories of 500 boxes, against ours on the processor."""
    inputs = categories(640, 500)
    there = [t.cpu() for t in inputs]

    def on_cpu():
        return tuple(t.to(inputs[0].device) for t in ops.batched_soft_nms(*there, method=method))

    candidates = {"cpu": on_cpu, "fastnets": lambda: ops.batched_soft_nms(*inputs, method=method)}
    of_all = {k: 640 * v for k, v in cost(500, method).items()}
    race("batched_soft_nms", method, candidates, [t.double() for t in on_cpu()], **of_all, op="soft_nms")


@pytest.mark.parametrize("problems, each", ((1, _shapes.ANCHORS), (640, 500)))
def test_nms(race, problems, each):
    boxes, scores, ids = categories(problems, each)

    def ours():
        return (ops.batched_nms(boxes, scores, ids, 0.5) if problems > 1 else ops.nms(boxes, scores, 0.5),)

    exact = (ops.batched_nms(boxes.cpu(), scores.cpu(), ids.cpu(), 0.5).double().to(boxes.device),)
    of_all = {"nbytes": 24 * len(boxes), "flops": 20 * problems * each * each // 2}
    peer = _peers.torchvision_op("batched_nms", boxes, scores, ids, 0.5)
    candidates = {"torchvision": peer, "fastnets": ours}
    race("nms", f"{problems} x {each} boxes", candidates, exact, **of_all, op="nms")

"""nms against NonMaxSuppression in ONNX, torchvision's, and a loop of tensor ops, on the boxes of one image."""

from __future__ import annotations

import pytest
import torch

from benchmarks import _peers, _shapes
from benchmarks._inputs import seeded
from fastnets.ops import batched_nms, nms


def cost(n, kept):
    """Boxes and scores are read, places written. Each box that is not kept is compared with one that suppresses it, in 16
    operations; boxes that lie apart need not be compared at all."""
    return {"nbytes": 20 * n + 8 * kept, "flops": 16 * (n - kept)}


def boxes_of_image(n: int, widest: float):
    """In quarters of a pixel, whose areas are exact in float32, shifted far apart as well: nobody is off by rounding."""
    make = seeded()
    center, size = torch.rand(n, 2, generator=make) * 800, 8 + torch.rand(n, 2, generator=make) * widest
    scores = torch.randperm(n, generator=make) / n  # no two alike: peers put those in any order
    # A third of the areas a and b of two boxes in common is an overlap of exactly 0.5, which OpenVINO suppresses and
    # others keep. Sides of 3 i + 1 have areas of 3 j + 1, and no two of them add up to a multiple of 3.
    sides = size.mul(4 / 3).round() * 3 + 1
    low = (center - size / 2).mul(4).round()
    return torch.cat([low, low + sides], 1) / 4, scores


def onnx(boxes, scores, threshold):
    """NonMaxSuppression, whose third column is what ours returns."""
    constants = {
        "most": torch.tensor([len(boxes)]),
        "iou": torch.tensor([threshold]),
        "no": torch.tensor([float("-inf")]),
        "place": torch.tensor(2),
    }
    nodes = [
        ("NonMaxSuppression", "boxes scores most iou no", "triples", {}),
        ("Gather", "triples place", "y", {"axis": 1}),
    ]
    return _peers.onnx_op(nodes, {"boxes": boxes[None], "scores": scores[None, None]}, "y", constants)


def loop_of_tensor_ops(boxes, scores, threshold):
    """Each kept box against all that remain."""
    areas, keep = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), []
    order = scores.argsort(descending=True, stable=True)
    while len(order):
        best, rest = order[0], order[1:]
        keep.append(best)
        low, high = torch.maximum(boxes[best, :2], boxes[rest, :2]), torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        both = (high - low).clamp_(min=0).prod(1)
        order = rest[both <= threshold * (areas[best] + areas[rest] - both)]
    return (torch.stack(keep),)


@pytest.mark.parametrize("n", (_shapes.PROPOSALS, _shapes.ANCHORS))
@pytest.mark.parametrize("widest", (200, 60, 10))
def test_nms(race, n, widest):
    """Wide boxes overlap a lot, narrow ones hardly."""
    boxes, scores = boxes_of_image(n, widest)
    candidates = {
        **onnx(boxes, scores, 0.5),
        "torchvision": _peers.torchvision_op("nms", boxes, scores, 0.5),
        "fastnets": lambda: (nms(boxes, scores, 0.5),),
    }
    if n == _shapes.PROPOSALS:
        candidates["loop"] = lambda: loop_of_tensor_ops(boxes, scores, 0.5)
    exact = loop_of_tensor_ops(boxes.double(), scores.double(), 0.5)[0].double()
    race("nms", f"{n} boxes up to {widest} wide", candidates, (exact,), **cost(n, len(exact)))


def test_batched_nms(race):
    """80 classes of 125 boxes, as a detector leaves them in one image."""
    n, classes = _shapes.ANCHORS, _shapes.CLASSES
    boxes, scores = boxes_of_image(n, 200)
    ids = torch.arange(n) % classes
    shifted = boxes + ids[:, None] * (boxes.max() + 201)  # torchvision's way, outside the timed part
    candidates = {
        **onnx(shifted, scores, 0.5),
        "torchvision": _peers.torchvision_op("batched_nms", boxes, scores, ids, 0.5),
        "fastnets": lambda: (batched_nms(boxes, scores, ids, 0.5),),
    }
    members = [(ids == i).nonzero()[:, 0] for i in range(classes)]
    kept = torch.cat([m[loop_of_tensor_ops(boxes[m].double(), scores[m].double(), 0.5)[0]] for m in members]).sort()[0]
    exact = kept[scores[kept].argsort(descending=True, stable=True)].double()
    # Boxes of two classes are never compared.
    one = cost(n // classes, len(exact) // classes)
    race("batched nms", "80 x 125 boxes", candidates, (exact,), **{name: classes * each for name, each in one.items()})

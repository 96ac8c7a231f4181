"""soft_nms against loops of tensor ops, on the boxes of one image."""

from __future__ import annotations

import pytest
import torch

from benchmarks import _shapes
from benchmarks._inputs import seeded
from fastnets.ops import batched_soft_nms, soft_nms
from fastnets.ops.soft_nms import METHODS


def cost(n, method):
    """Boxes and scores are read, places and scores written. Each pick is compared with all that remain, n²/2 times if
    all are kept: 20 operations each, and 50 more for the exponential."""
    return {"nbytes": 20 * n + 12 * n, "flops": (70 if method == "gaussian" else 20) * n * n // 2}


def boxes_of_image(n: int):
    make = seeded()
    center, size = torch.rand(n, 2, generator=make) * 800, 10 + torch.rand(n, 2, generator=make) * 200
    return torch.cat([center - size / 2, center + size / 2], 1), torch.rand(n, generator=make)


def loop(boxes, scores, method, shrink):
    """Each pick over all boxes, or (`shrink`) over those that remain, which costs the copies."""
    index, s = torch.arange(len(scores)), scores.clone()
    x1, y1, x2, y2 = boxes.T.contiguous()
    areas, keep, decayed = (x2 - x1) * (y2 - y1), [], []
    while len(s):
        best, at = s.max(0)
        if best < 1e-3:
            break
        keep.append(index[at])
        decayed.append(best)
        w = (torch.minimum(x2, x2[at]) - torch.maximum(x1, x1[at])).clamp_(min=0)
        h = (torch.minimum(y2, y2[at]) - torch.maximum(y1, y1[at])).clamp_(min=0)
        both = w * h
        iou = both / (areas + areas[at] - both)
        if method == "gaussian":
            s = s * torch.exp(-(iou * iou) / 0.5)
        else:
            s = torch.where(iou > 0.3, s * (1 - iou) if method == "linear" else 0.0, s)
        s[at] = -1
        if shrink:
            rest = s >= 1e-3
            x1, y1, x2, y2, areas, index, s = (t[rest] for t in (x1, y1, x2, y2, areas, index, s))
    return torch.stack(keep), torch.stack(decayed)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", (100, _shapes.PROPOSALS))
def test_soft_nms(race, n, method):
    boxes, scores = boxes_of_image(n)
    exact = [t.double() for t in loop(boxes, scores, method, False)]
    race(
        "soft_nms",
        f"{method}, {n} boxes",
        {
            "loop": lambda: loop(boxes, scores, method, False),
            "shrinking loop": lambda: loop(boxes, scores, method, True),
            "fastnets": lambda: soft_nms(boxes, scores, method=method),
        },
        exact,
        **cost(len(exact[0]), method),
    )


def test_batched_soft_nms(race):
    """80 classes of 25 boxes, against a loop over the classes that is ours in each."""
    boxes, scores = boxes_of_image(2000)
    ids = torch.arange(2000) % _shapes.CLASSES

    def each(one):
        members = [(ids == i).nonzero()[:, 0] for i in range(_shapes.CLASSES)]
        taken = [one(boxes[m], scores[m]) for m in members]
        decayed, order = torch.cat([d for _, d in taken]).sort(descending=True, stable=True)
        return torch.cat([m[k] for m, (k, _) in zip(members, taken, strict=True)])[order], decayed

    exact = [t.double() for t in each(lambda boxes, scores: loop(boxes, scores, "linear", False))]
    candidates = {
        "call for each class": lambda: each(soft_nms),
        "fastnets": lambda: batched_soft_nms(boxes, scores, ids),
    }
    race("batched_soft_nms", "80 x 25 boxes", candidates, exact, **{k: 80 * v for k, v in cost(25, "linear").items()})

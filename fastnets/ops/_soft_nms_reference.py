"""Soft-NMS of one category in PyTorch ops: the meaning of ops.soft_nms, and of the code it can be compatible with."""

from __future__ import annotations

from math import e, factorial, inf, log2
from typing import NamedTuple

import torch
from torch import Tensor

from fastnets.ops._boxes import overlap, row


class Rule(NamedTuple):
    """How scores decay."""

    iou_threshold: float
    sigma: float
    min_score: float
    method: str
    compat: str | None


def exponential(x: Tensor) -> Tensor:
    """exp of a double x <= 0, by the steps of the kernels (csrc/soft_nms.h): they give these bits."""
    k = (x * log2(e) + 1.5 * 2.0**52) - 1.5 * 2.0**52
    r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
    p = torch.full_like(x, 1 / factorial(13))
    for j in reversed(range(13)):
        p = p * r + 1 / factorial(j)
    return torch.where(x < -708.0, 0.0, p * torch.exp2(k))


def ious(taken: Tensor, boxes: Tensor, compat: str | None) -> Tensor:
    """Intersection over union of a box (4) with boxes (n, 4)."""
    if compat == "paper":
        # Its own max and min: the second number, if either is NaN. Widths count the last pixel.
        low = torch.where(taken[:2] >= boxes[:, :2], taken[:2], boxes[:, :2])
        high = torch.where(taken[2:] <= boxes[:, 2:], taken[2:], boxes[:, 2:])
        w, h = ((high - low) + 1).unbind(1)
        area, area_of_taken = (((b[..., 2:] - b[..., :2]) + 1).prod(-1) for b in (boxes, taken))
        both = w * h
        return torch.where((w > 0) & (h > 0), both / ((area_of_taken + area) - both), 0.0)
    both, either = overlap(taken, boxes)
    return both / either if compat == "mmcv" else torch.where(both > 0, both / either, 0.0)


def weights(taken: Tensor, boxes: Tensor, rule: Rule) -> Tensor:
    """What the scores of boxes (n, 4) are multiplied by when a box (4) is taken."""
    iou = ious(taken, boxes, rule.compat)
    if rule.method == "gaussian":
        q = (iou * iou) / iou.new_full((), rule.sigma)  # a tensor: a GPU would multiply by a number's reciprocal
        return exponential(-q.double()).to(iou.dtype)
    over = iou >= rule.iou_threshold if rule.compat == "mmcv" else iou > rule.iou_threshold
    return torch.where(over, 1 - iou if rule.method == "linear" else 0.0, 1.0).to(iou.dtype)


def step(boxes: Tensor, scores: Tensor, idxs: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Takes one box: the scores after it, its index (-1: none is good enough), its score."""
    best, at = torch.where(scores.isnan(), -inf, scores).max(0)
    weight = weights(row(boxes, at), boxes, rule)
    if idxs is not None:
        weight = torch.where(idxs == row(idxs, at), weight, 1.0)
    decayed = torch.where(torch.arange(len(scores), device=at.device) == at, -inf, scores * weight)
    taken = best >= rule.min_score
    return torch.where(taken, decayed, scores), torch.where(taken, at, -1), best


def soft_nms_in_order(boxes: Tensor, scores: Tensor, most: int, rule: Rule) -> tuple[Tensor, Tensor]:
    """Indices and scores in the order taken."""
    keep, decayed = [scores.new_empty(0, dtype=torch.int64)], [scores[:0]]
    for _ in range(min(most, len(scores))):
        scores, at, best = step(boxes, scores, None, rule)
        if at < 0:
            break
        keep.append(at[None])
        decayed.append(best[None])
    return torch.cat(keep), torch.cat(decayed)


def soft_nms_scanned(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, most: int, rule: Rule
) -> tuple[Tensor, Tensor]:
    """The same as a loop that can be exported: as many steps as may be needed, and -1 where nothing was taken."""
    from torch._higher_order_ops.scan import scan

    def body(scores: Tensor, _: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        scores, at, best = step(boxes, scores, idxs, rule)
        return scores, (at, best)

    _, taken = scan(body, scores, torch.arange(most, device=scores.device))
    return taken


def soft_nms_by_swaps(boxes: Tensor, scores: Tensor, most: int, rule: Rule) -> tuple[Tensor, Tensor]:
    """The loop of mmcv and of the paper's authors, whose swaps decide which of equal scores comes first."""
    order, scores, n, i = torch.arange(len(scores), device=scores.device), scores.clone(), len(scores), 0
    while i < min(n, most):
        # A NaN in the first place is taken, because no score is higher.
        if not scores[i].isnan():
            swap(order, scores, i, i + int(torch.where(scores[i:n].isnan(), -inf, scores[i:n]).argmax()))
        rest = slice(i + 1, n)
        scores[rest] *= weights(boxes[order[i]], boxes[order[rest]], rule)
        for hole in (i + 1 + (scores[rest] < rule.min_score).nonzero()[:, 0]).tolist():
            while n > hole and scores[n - 1] < rule.min_score:
                n -= 1
            if hole < n:
                n -= 1
                swap(order, scores, hole, n)
        i += 1
    return order[:i], scores[:i]


def swap(order: Tensor, scores: Tensor, i: int, j: int) -> None:
    for t in (order, scores):
        t[[i, j]] = t[[j, i]]

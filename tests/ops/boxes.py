"""Random and degenerate sets of boxes, for the tests of nms and soft_nms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

KINDS = ("random", "pixels", "identical", "zero area", "negative sizes", "NaN", "equal scores", "hopeless", "huge")


def box_set(kind: str, n: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """n boxes that overlap, and their scores."""
    make = torch.Generator().manual_seed(seed)
    center, size = torch.rand(n, 2, generator=make) * 60, torch.rand(n, 2, generator=make) * 30
    boxes, scores = torch.cat([center - size / 2, center + size / 2], 1), torch.rand(n, generator=make)
    some = torch.rand(n, generator=make) < 0.3
    if kind == "pixels":
        boxes, scores = boxes.round(), (scores * 8).round() / 8
    elif kind == "identical":
        boxes[some] = torch.tensor([3.0, 4.0, 20.0, 25.0])
    elif kind == "zero area":
        boxes[some, 2:] = boxes[some, :2]
    elif kind == "negative sizes":
        boxes[some] = boxes[some].flip(1)
    elif kind == "NaN":
        scores[some] = math.nan
        boxes[torch.rand(n, generator=make) < 0.1, int(seed) % 4] = math.nan
    elif kind == "equal scores":
        scores[some] = 0.5
    elif kind == "hopeless":
        scores *= 1e-4
    elif kind == "huge":
        boxes[some] *= 1e20
    return boxes.to(dtype), scores.to(dtype)


def some_ids(n: int, seed: int) -> Tensor:
    """Categories in no order, far from each other."""
    names = torch.tensor([-(2**62), -1, 0, 7, 2**40])
    return names[torch.randint(5, (n,), generator=torch.Generator().manual_seed(seed))]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, and NaN in the same places."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())

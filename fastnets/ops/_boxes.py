"""Arguments of the ops on boxes, and how their overlap is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnets.ops._convolution import FLOATS


def check_boxes(boxes: Tensor, scores: Tensor, idxs: Tensor | None, name: str) -> None:
    """Raises what torchvision's nms raises."""
    if boxes.dim() != 2:
        raise RuntimeError(f"boxes should be a 2d tensor, got {boxes.dim()}D")
    if boxes.shape[1] != 4:
        raise RuntimeError(f"boxes should have 4 elements in dimension 1, got {boxes.shape[1]}")
    if scores.dim() != 1:
        raise RuntimeError(f"scores should be a 1d tensor, got {scores.dim()}D")
    if boxes.shape[0] != scores.shape[0]:
        raise RuntimeError(
            "boxes and scores should have same number of elements in dimension 0, "
            f"got {boxes.shape[0]} and {scores.shape[0]}"
        )
    if boxes.dtype not in FLOATS:
        scalar = {torch.bool: "Bool", torch.uint8: "Byte", torch.int8: "Char", torch.int16: "Short"}
        scalar |= {torch.int32: "Int", torch.int64: "Long"}
        raise NotImplementedError(f"\"{name}_kernel\" not implemented for '{scalar.get(boxes.dtype, boxes.dtype)}'")
    if boxes.dtype != scores.dtype:
        raise RuntimeError("dets should have the same type as scores")
    if boxes.device != scores.device:
        raise RuntimeError(f"boxes and scores should be on one device, got {boxes.device} and {scores.device}")
    if idxs is not None and (idxs.shape != scores.shape or idxs.dtype != torch.int64 or idxs.device != boxes.device):
        raise RuntimeError(
            f"idxs should be integers of shape {tuple(scores.shape)} on {boxes.device}, "
            f"got {idxs.dtype} of shape {tuple(idxs.shape)} on {idxs.device}"
        )


def integer_ids(idxs: Tensor) -> Tensor:
    """Categories of any integer type as int64; another type stays, to be refused."""
    return idxs if idxs.dtype == torch.int64 or idxs.is_floating_point() or idxs.is_complex() else idxs.long()


def decay_type(t: Tensor) -> torch.dtype:
    """The type in which overlaps are computed and scores decay."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


# Kernels compute overlaps with these operations, in this order, each rounded on its own: every backend gets the same
# bits. The larger and the smaller of two are those of std::max(a, b) and std::min(a, b): a, if either is NaN.


def larger(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a < b, b, a)


def smaller(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b < a, b, a)


def row(t: Tensor, i: Tensor) -> Tensor:
    """t[i], which a tracer would read as a number."""
    return t.index_select(0, i[None])[0]


def areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of box a (4) with boxes b (n, 4)."""
    zero = a.new_zeros(())
    w = smaller(a[2], b[:, 2]) - larger(a[0], b[:, 0])
    h = smaller(a[3], b[:, 3]) - larger(a[1], b[:, 1])
    both = larger(zero, w) * larger(zero, h)
    return both, (areas(a) + areas(b)) - both


def best_first(scores: Tensor) -> Tensor:
    """The order of scores that fall, equal ones by their index, NaN first: on a GPU, which sorts NaN by its sign."""
    return scores.masked_fill(scores.isnan(), torch.nan).argsort(descending=True, stable=True)


def categories(ids: Tensor) -> tuple[Tensor, Tensor]:
    """For kernels: the order of n boxes by their ids, in which category k lies from begins[k] to begins[k + 1], and
    begins (n + 1), n from where there are no more."""
    ids, order = ids.sort(stable=True)
    ranks = torch.nn.functional.pad((ids[1:] != ids[:-1]).cumsum(0), (1, 0))
    return order, torch.searchsorted(ranks, torch.arange(len(ids) + 1, device=ids.device))


def in_order(boxes: Tensor, order: Tensor) -> Tensor:
    """Boxes in that order and in the type of their overlaps: what kernels read, and may change."""
    return boxes.detach()[order].to(decay_type(boxes)).contiguous()

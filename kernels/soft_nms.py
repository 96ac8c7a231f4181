"""Soft-NMS of one category in one program; the rules are in ``_soft_nms.py``.

Taking a box is one pass over the boxes, BLOCK at a time: scores decay, and the best is found, in each lane and then over
the lanes. A pass reads 20 bytes (of float) a box and writes 4, mostly in L1 or L2. A category that begins at i ends at
ends[i]; where none begins, that is i, and the program has nothing to do.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from ._boxes import NO_FUSION, load_box, number, number_bits
from ._launch import Launch, sum_type
from ._soft_nms import decay, iou
from ._soft_nms_swaps import _soft_nms_swaps_kernel

NUMBERS = ["n", "most", "threshold", "sigma", "min_score", "prune"]


@triton.jit
def _best(scores, at):
    """The highest of the scores, and the lowest `at` of those."""
    score = tl.max(scores, 0)
    return score, tl.min(tl.where(scores == score, at, 2**62), 0)


@triton.jit(do_not_specialize=NUMBERS)
def _soft_nms_kernel(
    boxes_ptr, scores_ptr, index_ptr, ends_ptr, keep_ptr, decayed_ptr, n, most, threshold, sigma, min_score, prune,
    METHOD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    threshold, sigma = number(threshold, ACC), number(sigma, ACC)
    min_score, prune = number(min_score, ACC), number(prune, ACC)
    begin = tl.program_id(0).to(tl.int64)
    n = n.to(tl.int64)
    end = n
    if ends_ptr is not None:
        end = tl.load(ends_ptr + begin)
    lanes = tl.arange(0, BLOCK)
    highest = tl.full((BLOCK,), float("-inf"), ACC)
    places = tl.full((BLOCK,), 2**62, tl.int64)
    for start in range(begin, end, BLOCK):
        j = start + lanes
        score = tl.load(scores_ptr + j, j < end, other=float("nan"))
        higher = (score >= prune) & (score > highest)
        highest, places = tl.where(higher, score, highest), tl.where(higher, j, places)
    best, at = _best(highest, places)
    slot = begin
    while (slot < end) & (slot - begin < most) & (best >= min_score):
        tl.store(keep_ptr + slot, tl.load(index_ptr + at))
        tl.store(decayed_ptr + slot, best)
        x1, y1, x2, y2 = load_box(boxes_ptr, n, at, True)
        highest = tl.full((BLOCK,), float("-inf"), ACC)
        places = tl.full((BLOCK,), 2**62, tl.int64)
        for start in range(begin, end, BLOCK):
            j = start + lanes
            bx1, by1, bx2, by2 = load_box(boxes_ptr, n, j, j < end)
            overlaps = iou(x1, y1, x2, y2, bx1, by1, bx2, by2, None)
            score = tl.load(scores_ptr + j, j < end, other=float("nan"))
            score = decay(score, overlaps, threshold, sigma, METHOD, None)
            score = tl.where((score >= prune) & (j != at), score, float("nan"))  # given up, or taken
            tl.store(scores_ptr + j, score, j < end)
            higher = score > highest
            highest, places = tl.where(higher, score, highest), tl.where(higher, j, places)
        best, at = _best(highest, places)
        slot += 1


def soft_nms_categories(
    boxes: Tensor, scores: Tensor, index: Tensor, ends: Tensor | None, keep: Tensor, decayed: Tensor,
    iou_threshold: float, sigma: float, min_score: float, method: str, most: int, compat: str | None,
) -> None:  # fmt: skip
    """Writes index and score of what is taken of ``boxes`` (4, n), from the beginning of its category on."""
    tensors = boxes, scores, index, ends, keep, decayed
    for launch in soft_nms_launches(*tensors, iou_threshold, sigma, min_score, method, most, compat):
        launch.run()


def soft_nms_launches(
    boxes: Tensor, scores: Tensor, index: Tensor, ends: Tensor | None, keep: Tensor, decayed: Tensor,
    iou_threshold: float, sigma: float, min_score: float, method: str, most: int, compat: str | None,
) -> list[Launch]:  # fmt: skip
    """One program, or one for each position at which a category may begin; none without boxes."""
    n = len(scores)
    if n == 0:
        return []
    warps = 8 if ends is None else 1
    block = 512 * warps // boxes.element_size()  # 16 bytes a thread
    constants = {"METHOD": method, "ACC": sum_type(boxes), "BLOCK": block, "num_warps": warps, **NO_FUSION}
    numbers = [number_bits(x) for x in (iou_threshold, sigma, min_score)]
    args = boxes, scores, index, ends, keep, decayed, n, most, *numbers
    grid = (1 if ends is None else n,)
    if compat is not None:
        return [Launch(_soft_nms_swaps_kernel, grid, args, constants | {"COMPAT": compat})]
    # A negative score may rise to 0 as it decays. Where that could be enough, nothing is given up.
    prune = number_bits(min_score if min_score > 0 else -math.inf)
    return [Launch(_soft_nms_kernel, grid, (*args, prune), constants)]

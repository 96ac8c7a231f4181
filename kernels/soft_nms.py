"""Soft-NMS of one category in one program; the rules are in ``_soft_nms.py``.

Taking a box is one pass over the boxes, BLOCK at a time: scores decay, and the best is found, in each lane and then
over the lanes. The first BLOCK boxes stay in registers. A pass reads 20 bytes (of float) of each other box and writes 4,
mostly in L1 or L2. Programs go through the categories in turn.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from ._boxes import NO_FUSION, category, load_box, number, number_bits, programs
from ._launch import Launch, sum_type
from ._soft_nms import decay, iou
from ._soft_nms_swaps import _soft_nms_swaps_kernel

NUMBERS = ["n", "most", "threshold", "sigma", "min_score", "prune"]


@triton.jit
def _best(scores, prune):
    """The highest of the scores that are not given up, and the first of its places."""
    return tl.max(tl.where(scores >= prune, scores, float("-inf")), 0, return_indices=True)


@triton.jit
def _lower(scores, x1, y1, x2, y2, bx1, by1, bx2, by2, threshold, sigma, METHOD: tl.constexpr):
    """What a box leaves of others' scores."""
    return decay(scores, iou(x1, y1, x2, y2, bx1, by1, bx2, by2, None), threshold, sigma, METHOD, None)


@triton.jit(do_not_specialize=NUMBERS)
def _soft_nms_kernel(
    boxes_ptr, scores_ptr, begins_ptr, keep_ptr, decayed_ptr, n, most, threshold, sigma, min_score, prune,
    METHOD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    threshold, sigma = number(threshold, ACC), number(sigma, ACC)
    min_score, prune = number(min_score, ACC), number(prune, ACC)
    n = n.to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    k = tl.program_id(0).to(tl.int64)
    begin, end = category(begins_ptr, k, n)
    while begin < n:
        j = begin + lanes
        hx1, hy1, hx2, hy2 = load_box(boxes_ptr, n, j, j < end)
        held = tl.load(scores_ptr + j, j < end, other=float("nan"))
        x1, y1, x2, y2 = load_box(boxes_ptr, n, begin, False)  # no area, before one is taken
        at, step, going = -1, begin, True
        while going:
            held = _lower(held, x1, y1, x2, y2, hx1, hy1, hx2, hy2, threshold, sigma, METHOD)
            held = tl.where((held >= prune) & (lanes != at), held, float("nan"))  # given up, or taken
            best, place = _best(held, prune)
            for start in range(begin + BLOCK, end, BLOCK):
                j = start + lanes
                bx1, by1, bx2, by2 = load_box(boxes_ptr, n, j, j < end)
                scores = tl.load(scores_ptr + j, j < end, other=float("nan"))
                scores = _lower(scores, x1, y1, x2, y2, bx1, by1, bx2, by2, threshold, sigma, METHOD)
                scores = tl.where((scores >= prune) & (j - begin != at), scores, float("nan"))
                tl.store(scores_ptr + j, scores, j < end)
                score, other = _best(scores, prune)
                place = tl.where(score > best, other + (start - begin).to(tl.int32), place)
                best = tl.where(score > best, score, best)
            at = place
            going = (step - begin < most) & (best >= min_score)
            tl.store(keep_ptr + step, begin + at, going)
            tl.store(decayed_ptr + step, best, going)
            x1, y1, x2, y2 = load_box(boxes_ptr, n, begin + at, going)
            step += 1
        k += tl.num_programs(0)
        begin, end = category(begins_ptr, k, n)


def soft_nms_categories(
    boxes: Tensor, scores: Tensor, index: Tensor, begins: Tensor | None, keep: Tensor, decayed: Tensor,
    iou_threshold: float, sigma: float, min_score: float, method: str, most: int, compat: str | None,
) -> None:  # fmt: skip
    """Writes place and score of what is taken of ``boxes`` (n, 4), from the beginning of its category on."""
    tensors = boxes.T.contiguous(), scores, index, begins, keep, decayed
    for launch in soft_nms_launches(*tensors, iou_threshold, sigma, min_score, method, most, compat):
        launch.run()


def soft_nms_launches(
    boxes: Tensor, scores: Tensor, index: Tensor, begins: Tensor | None, keep: Tensor, decayed: Tensor,
    iou_threshold: float, sigma: float, min_score: float, method: str, most: int, compat: str | None,
) -> list[Launch]:  # fmt: skip
    """One launch, of ``boxes`` (4, n); none without boxes."""
    n = len(scores)
    if n == 0:
        return []
    warps = 8 if begins is None else 4
    block = 512 * warps // boxes.element_size()  # 16 bytes a thread
    constants = {"METHOD": method, "ACC": sum_type(boxes), "BLOCK": block, "num_warps": warps, **NO_FUSION}
    numbers = [number_bits(x) for x in (iou_threshold, sigma, min_score)]
    if compat is not None:
        args = boxes, scores, index, begins, keep, decayed, n, most, *numbers
        return [Launch(_soft_nms_swaps_kernel, programs(n, begins), args, constants | {"COMPAT": compat})]
    # A negative score may rise to 0 as it decays. Where that could be enough, nothing is given up.
    prune = number_bits(min_score if min_score > 0 else -math.inf)
    args = boxes, scores, begins, keep, decayed, n, most, *numbers, prune
    return [Launch(_soft_nms_kernel, programs(n, begins), args, constants)]

"""The loop of mmcv and of the paper's authors, place by place; see ``csrc/cpu/soft_nms_kernels.h``.

Programs go through the categories in turn. The best box changes places with the first that remains; each box whose score
has fallen under min_score makes room for the last one. Those moves are scalar, with barriers between: this loop is for
comparison.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._boxes import category, load_box, number
from ._soft_nms import decay, iou


@triton.jit
def _move(boxes_ptr, scores_ptr, index_ptr, n, source, target):
    for plane in tl.static_range(4):
        tl.store(boxes_ptr + plane * n + target, tl.load(boxes_ptr + plane * n + source))
    tl.store(scores_ptr + target, tl.load(scores_ptr + source))
    tl.store(index_ptr + target, tl.load(index_ptr + source))


@triton.jit
def _swap(boxes_ptr, scores_ptr, index_ptr, n, i, j):
    x1, y1, x2, y2 = load_box(boxes_ptr, n, i, True)
    score, index = tl.load(scores_ptr + i), tl.load(index_ptr + i)
    tl.debug_barrier()
    _move(boxes_ptr, scores_ptr, index_ptr, n, j, i)
    tl.debug_barrier()
    tl.store(boxes_ptr + j, x1)
    tl.store(boxes_ptr + n + j, y1)
    tl.store(boxes_ptr + 2 * n + j, x2)
    tl.store(boxes_ptr + 3 * n + j, y2)
    tl.store(scores_ptr + j, score)
    tl.store(index_ptr + j, index)
    tl.debug_barrier()


@triton.jit
def _first_highest(scores_ptr, begin, end, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """The first place of the highest score, or `begin`."""
    highest = tl.full((BLOCK,), float("-inf"), ACC)
    places = tl.full((BLOCK,), 2**62, tl.int64)
    for start in range(begin, end, BLOCK):
        j = start + tl.arange(0, BLOCK)
        score = tl.load(scores_ptr + j, j < end, other=float("-inf"))
        higher = score > highest
        highest, places = tl.where(higher, score, highest), tl.where(higher, j, places)
    at = tl.min(tl.where(highest == tl.max(highest, 0), places, 2**62), 0)
    return tl.where(at < end, at, begin)


@triton.jit(do_not_specialize=["n", "most", "threshold", "sigma", "min_score"])
def _soft_nms_swaps_kernel(
    boxes_ptr, scores_ptr, index_ptr, begins_ptr, keep_ptr, decayed_ptr, n, most, threshold, sigma, min_score,
    METHOD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, COMPAT: tl.constexpr,
):  # fmt: skip
    threshold, sigma, min_score = number(threshold, ACC), number(sigma, ACC), number(min_score, ACC)
    n = n.to(tl.int64)
    k = tl.program_id(0).to(tl.int64)
    begin, end = category(begins_ptr, k, n)
    while begin < n:
        i = begin
        while (i < end) & (i - begin < most):
            first = tl.load(scores_ptr + i)
            if first >= float("-inf"):  # a NaN there is taken, because no score is higher
                at = _first_highest(scores_ptr, i, end, ACC, BLOCK)
                _swap(boxes_ptr, scores_ptr, index_ptr, n, i, at)
            tl.store(keep_ptr + i, tl.load(index_ptr + i))
            tl.store(decayed_ptr + i, tl.load(scores_ptr + i))
            x1, y1, x2, y2 = load_box(boxes_ptr, n, i, True)
            fallen = tl.zeros((BLOCK,), tl.int32)
            for start in range(i + 1, end, BLOCK):
                j = start + tl.arange(0, BLOCK)
                bx1, by1, bx2, by2 = load_box(boxes_ptr, n, j, j < end)
                score = tl.load(scores_ptr + j, j < end, other=float("nan"))
                overlaps = iou(x1, y1, x2, y2, bx1, by1, bx2, by2, COMPAT)
                score = decay(score, overlaps, threshold, sigma, METHOD, COMPAT)
                tl.store(scores_ptr + j, score, j < end)
                fallen += (score < min_score).to(tl.int32)
            tl.debug_barrier()
            hole = i + 1
            if tl.sum(fallen, 0) == 0:
                hole = end
            while hole < end:
                if tl.load(scores_ptr + hole) < min_score:
                    end -= 1
                    while (end > hole) & (tl.load(scores_ptr + end) < min_score):
                        end -= 1
                    tl.debug_barrier()  # all have read what one changes now
                    _move(boxes_ptr, scores_ptr, index_ptr, n, end, hole)
                hole += 1
            tl.debug_barrier()
            i += 1
        k += tl.num_programs(0)
        begin, end = category(begins_ptr, k, n)

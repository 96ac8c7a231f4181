"""How scores decay in Soft-NMS, by the rules of ops.soft_nms (COMPAT None), mmcv or the paper's authors."""

from __future__ import annotations

import triton
import triton.language as tl

from ._boxes import divide, overlap


@triton.jit
def exponential(x, ACC: tl.constexpr):
    """exp of a double x <= 0: see ``csrc/soft_nms.h``."""
    shifted = x * 1.4426950408889634 + 6755399441055744.0
    k = shifted - 6755399441055744.0
    r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
    p = tl.full(x.shape, 1 / 3628800, tl.float64)
    if ACC == tl.float64:
        p = tl.full(x.shape, 1 / 6227020800, tl.float64)
        p = p * r + 1 / 479001600
        p = p * r + 1 / 39916800
        p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 1 / 2
    p = p * r + 1.0
    p = p * r + 1.0
    power = (shifted.to(tl.int64, bitcast=True) << 52) + 4607182418800017408  # 1023 << 52
    return tl.where(x < -708.0, 0.0, p * power.to(tl.float64, bitcast=True))


@triton.jit
def paper_extent(low, lower, high, higher):
    """The released code's own max and min (b, if either is NaN); widths count the last pixel."""
    return (tl.where(high <= higher, high, higher) - tl.where(low >= lower, low, lower)) + 1


@triton.jit
def iou(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, COMPAT: tl.constexpr):
    """Intersection over union of the box that is taken with others."""
    if COMPAT == "paper":
        w, h = paper_extent(ax1, bx1, ax2, bx2), paper_extent(ay1, by1, ay2, by2)
        both = w * h
        areas = ((ax2 - ax1) + 1) * ((ay2 - ay1) + 1) + ((bx2 - bx1) + 1) * ((by2 - by1) + 1)
        return tl.where((w > 0) & (h > 0), divide(both, areas - both), 0.0)
    else:
        both, either = overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2)
        quotient = divide(both, either)
        return quotient if COMPAT == "mmcv" else tl.where(both > 0, quotient, 0.0)


@triton.jit
def decay(score, iou, threshold, sigma, METHOD: tl.constexpr, COMPAT: tl.constexpr):
    if METHOD == "gaussian":
        q = divide(iou * iou, tl.zeros_like(iou) + sigma)
        return score * exponential(-q.to(tl.float64), iou.dtype).to(iou.dtype)
    else:
        over = iou >= threshold if COMPAT == "mmcv" else iou > threshold
        return score * tl.where(over, 1 - iou if METHOD == "linear" else 0.0, 1.0)

"""Overlap of boxes, as nms and soft_nms compute it: the operations of ``csrc/cpu/box_overlap.h`` in the same order.

Kernels that use it are launched with ``enable_fp_fusion=False``, so that each operation is rounded on its own, and get
their numbers as the bits of a double: Triton would make a Python float a float32.
"""

from __future__ import annotations

import struct

import triton
import triton.language as tl
from torch import Tensor

NO_FUSION = {"enable_fp_fusion": False}


def number_bits(x: float) -> int:
    """What `number` reads."""
    return struct.unpack("<q", struct.pack("<d", x))[0]


@triton.jit
def number(bits, ACC: tl.constexpr):
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(ACC)


@triton.jit
def category(begins_ptr, k, n):
    """Where category k begins and ends: n, from where there are no more. Without begins, all boxes are one."""
    begin, end = tl.where(k == 0, 0, n), n
    if begins_ptr is not None:
        begin, end = tl.load(begins_ptr + tl.minimum(k, n)), tl.load(begins_ptr + tl.minimum(k + 1, n))
    return begin, end


@triton.jit
def divide(a, b):
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def larger(a, b):
    """As std::max(a, b): a, if either is NaN."""
    return tl.where(a < b, b, a)


@triton.jit
def smaller(a, b):
    return tl.where(b < a, b, a)


@triton.jit
def load_box(boxes_ptr, n, i, mask):
    """The box at i, of four planes of n numbers."""
    x1 = tl.load(boxes_ptr + i, mask, other=0)
    y1 = tl.load(boxes_ptr + n + i, mask, other=0)
    x2 = tl.load(boxes_ptr + 2 * n + i, mask, other=0)
    y2 = tl.load(boxes_ptr + 3 * n + i, mask, other=0)
    return x1, y1, x2, y2


@triton.jit
def overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2):
    """Intersection and union."""
    w = larger(0.0, smaller(ax2, bx2) - larger(ax1, bx1))
    h = larger(0.0, smaller(ay2, by2) - larger(ay1, by1))
    both = w * h
    areas = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)
    return both, areas - both


def programs(n: int, begins: Tensor | None) -> tuple[int]:
    """The grid of programs that take categories of n boxes in turn, whose number the host does not know."""
    return (1 if begins is None else min(n, 2048),)

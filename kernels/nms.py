"""NMS of one category, sorted best first, in one program.

A program goes through its boxes in order; one that is still alive is tested with all behind it, BLOCK at a time. Memory
is a byte a box, never n² bits. For each box that stays, 17 bytes (of float) are read for each one behind it, mostly from
L1 or L2. A category that begins at i ends at ends[i]; where none begins, that is i, and the program has nothing to do.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, int8

from ._boxes import NO_FUSION, divide, load_box, number, number_bits, overlap
from ._launch import Launch, sum_type


@triton.jit(do_not_specialize=["n", "threshold"])
def _nms_kernel(boxes_ptr, ends_ptr, alive_ptr, n, threshold, ACC: tl.constexpr, BLOCK: tl.constexpr):
    threshold = number(threshold, ACC)
    begin = tl.program_id(0).to(tl.int64)
    n = n.to(tl.int64)
    end = n
    if ends_ptr is not None:
        end = tl.load(ends_ptr + begin)
    for i in range(begin, end):
        if tl.load(alive_ptr + i) != 0:
            x1, y1, x2, y2 = load_box(boxes_ptr, n, i, True)
            for start in range(i + 1, end, BLOCK):
                j = start + tl.arange(0, BLOCK)
                bx1, by1, bx2, by2 = load_box(boxes_ptr, n, j, j < end)
                both, either = overlap(x1, y1, x2, y2, bx1, by1, bx2, by2)
                tl.store(alive_ptr + j, tl.zeros((BLOCK,), tl.int8), (j < end) & (divide(both, either) > threshold))
            tl.debug_barrier()  # what one thread has suppressed, all must see


def nms_categories(boxes: Tensor, ends: Tensor | None, alive: Tensor, iou_threshold: float) -> None:
    """Makes ``alive`` (n) false where a box of ``boxes`` (4, n) is suppressed."""
    for launch in nms_launches(boxes, ends, alive, iou_threshold):
        launch.run()


def nms_launches(boxes: Tensor, ends: Tensor | None, alive: Tensor, iou_threshold: float) -> list[Launch]:
    """One program, or one for each position at which a category may begin; none without boxes."""
    n = len(alive)
    if n == 0:
        return []
    warps = 8 if ends is None else 1
    block = 512 * warps // boxes.element_size()  # 16 bytes a thread
    constants = {"ACC": sum_type(boxes), "BLOCK": block, "num_warps": warps, **NO_FUSION}
    args = boxes, ends, alive.view(int8), n, number_bits(iou_threshold)
    return [Launch(_nms_kernel, (1 if ends is None else n,), args, constants)]

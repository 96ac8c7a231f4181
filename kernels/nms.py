"""NMS of boxes that are sorted best first.

Of several categories, programs go through them in turn, and through the boxes of one in order: one that is still alive
is tested with all behind it, BLOCK at a time.

A single category is gone through in panels of 32 GROUPS boxes, one launch each. All programs have, a bit for each pair,
which boxes of the panel suppress which, and find out for themselves which stay; they share out the boxes behind, which
they test against those, and find the suppressors within the next panel.

Memory is a byte a box and the bits of two panels, 64 kB, never n² bits. A test reads 16 bytes (of float), mostly from
L1 or L2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, int8

from ._boxes import NO_FUSION, category, divide, load_box, number, number_bits, overlap, programs
from ._launch import Launch, sum_type


@triton.jit(do_not_specialize=["n", "threshold"])
def _nms_kernel(boxes_ptr, begins_ptr, alive_ptr, n, threshold, ACC: tl.constexpr, BLOCK: tl.constexpr):
    threshold = number(threshold, ACC)
    n = n.to(tl.int64)
    k = tl.program_id(0).to(tl.int64)
    begin, end = category(begins_ptr, k, n)
    while begin < n:
        for i in range(begin, end):
            if tl.load(alive_ptr + i) != 0:
                x1, y1, x2, y2 = load_box(boxes_ptr, n, i, True)
                for start in range(i + 1, end, BLOCK):
                    j = start + tl.arange(0, BLOCK)
                    bx1, by1, bx2, by2 = load_box(boxes_ptr, n, j, j < end)
                    both, either = overlap(x1, y1, x2, y2, bx1, by1, bx2, by2)
                    gone = divide(both, either) > threshold
                    tl.store(alive_ptr + j, tl.zeros((BLOCK,), tl.int8), (j < end) & gone)
                tl.debug_barrier()  # what one thread has suppressed, all must see
        k += tl.num_programs(0)
        begin, end = category(begins_ptr, k, n)


@triton.jit
def _suppress(boxes_ptr, n, rows, columns, threshold):
    """Which of the boxes at `rows` suppress which at `columns`."""
    x1, y1, x2, y2 = load_box(boxes_ptr, n, rows[:, None], rows[:, None] < n)
    bx1, by1, bx2, by2 = load_box(boxes_ptr, n, columns[None, :], columns[None, :] < n)
    both, either = overlap(x1, y1, x2, y2, bx1, by1, bx2, by2)
    return divide(both, either) > threshold


@triton.jit
def _bits(flags, GROUPS: tl.constexpr):
    """A word of each 32 flags."""
    return tl.sum(tl.reshape(flags.to(tl.int32), (GROUPS, 32)) << tl.arange(0, 32)[None, :], 1)


@triton.jit
def _any_of(word, bits):
    """Which columns of words (GROUPS, ...) have one of the bits."""
    return tl.max(((word & bits[:, None]) != 0).to(tl.int32), 0) != 0


@triton.jit(do_not_specialize=["n", "panel", "threshold"])
def _nms_panel_kernel(
    boxes_ptr, words_ptr, alive_ptr, n, panel, threshold, ACC: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    SIZE: tl.constexpr = 32 * GROUPS
    threshold = number(threshold, ACC)
    n, panel = n.to(tl.int64), panel.to(tl.int64)
    lanes, groups, behind = tl.arange(0, 32), tl.arange(0, GROUPS), panel + SIZE
    here_ptr = words_ptr + (panel // SIZE & 1) * GROUPS * SIZE
    next_ptr = words_ptr + (behind // SIZE & 1) * GROUPS * SIZE
    # Before the first panel no box is there. Another program may have written who stays: the outcome is the same.
    i = panel + tl.arange(0, SIZE)
    there = (i >= 0) & (i < n)
    word = tl.load(here_ptr + groups[:, None] * SIZE + tl.arange(0, SIZE)[None, :], there[None, :], other=0)
    undecided = tl.load(alive_ptr + i, there, other=0) != 0
    stay = undecided & False
    while tl.max(undecided.to(tl.int32), 0) != 0:
        # Whom none suppresses that is undecided, stays; whom those suppress, goes. Chains of these steps are short.
        sure = undecided & (_any_of(word, _bits(undecided, GROUPS)) == 0)
        stay = stay | sure
        undecided = undecided & (sure == 0) & (_any_of(word, _bits(sure, GROUPS)) == 0)
    tl.store(alive_ptr + i, stay.to(tl.int8), there)
    tl.debug_barrier()  # each thread reads what others wrote
    for start in range(behind + tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK):
        columns = start + tl.arange(0, BLOCK)
        gone = tl.zeros((BLOCK,), tl.int32)
        for first in range(tl.maximum(panel, 0), behind, 32):
            rows = first + lanes
            stays = (tl.load(alive_ptr + rows, rows < n, other=0) != 0)[:, None]
            found = (_suppress(boxes_ptr, n, rows, columns, threshold) & stays).to(tl.int32)
            gone = tl.maximum(gone, tl.max(found, 0))
        tl.store(alive_ptr + columns, tl.zeros((BLOCK,), tl.int8), (columns < n) & (gone != 0))
    for task in range(tl.program_id(0), GROUPS * (SIZE // BLOCK), tl.num_programs(0)):
        group, place = task % GROUPS, task // GROUPS * BLOCK + tl.arange(0, BLOCK)
        rows, columns = behind + group * 32 + lanes, behind + place
        if behind + group * 32 < n:
            before = rows[:, None] < columns[None, :]
            found = (_suppress(boxes_ptr, n, rows, columns, threshold) & before).to(tl.int32) << lanes[:, None]
            tl.store(next_ptr + group * SIZE + place, tl.sum(found, 0), columns < n)


def nms_categories(boxes: Tensor, begins: Tensor | None, alive: Tensor, iou_threshold: float) -> None:
    """Makes ``alive`` (n) false where a box of ``boxes`` (n, 4) is suppressed."""
    for launch in nms_launches(boxes.T.contiguous(), begins, alive, iou_threshold):
        launch.run()


def nms_launches(boxes: Tensor, begins: Tensor | None, alive: Tensor, iou_threshold: float) -> list[Launch]:
    """Of ``boxes`` (4, n): one launch, or one for each panel of a single category; none without boxes."""
    n, threshold = len(alive), number_bits(iou_threshold)
    if n == 0:
        return []
    constants = {"ACC": sum_type(boxes), **NO_FUSION}
    if begins is not None:
        constants |= {"BLOCK": 512 // boxes.element_size(), "num_warps": 1}  # 16 bytes a thread
        return [Launch(_nms_kernel, programs(n, begins), (boxes, begins, alive.view(int8), n, threshold), constants)]
    groups, block = 16, 32
    size = 32 * groups
    words = alive.new_empty(2 * groups * size, dtype=torch.int32)
    constants |= {"GROUPS": groups, "BLOCK": block, "num_warps": 8}
    return [
        Launch(
            _nms_panel_kernel,
            (max(1, triton.cdiv(n - panel - size, block)),),
            (boxes, words, alive.view(int8), n, panel, threshold),
            constants,
        )
        for panel in range(-size, n, size)
    ]

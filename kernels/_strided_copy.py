"""A copy between two strided arrays: all that an op is which only moves data.

A program writes BLOCK elements in the order of the result's memory: a piece of the flat index of the three innermost axes,
at one place of the others. So stores are contiguous; what neighbouring lanes read lies in a few runs, whose cache lines are
used whole by programs of the same time. Bytes: each element once read, once written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Launch, index_type

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Axis(NamedTuple):
    """One loop of a copy; strides in elements."""

    size: int
    source: int
    result: int


def simplified(axes: list[Axis]) -> list[Axis]:
    """The same loops, as few as possible, in the order of the result's memory."""
    few: list[Axis] = []
    for axis in sorted(axes, key=lambda axis: -axis.result):
        if axis.size == 1:
            continue
        if few and few[-1].source == axis.size * axis.source and few[-1].result == axis.size * axis.result:
            few[-1] = Axis(few[-1].size * axis.size, axis.source, axis.result)
        else:
            few.append(axis)
    return few


def inverted(axes: list[Axis]) -> list[Axis]:
    """The loops of the copy that undoes this one."""
    return [Axis(axis.size, axis.result, axis.source) for axis in axes]


def as_integers(t: Tensor) -> tuple[Tensor, int]:
    """The same memory as integers that Triton knows, and how many of these make an element."""
    return (torch.view_as_real(t).view(torch.int64), 2) if t.itemsize == 16 else (t.view(INTEGERS[t.itemsize]), 1)


@triton.jit(do_not_specialize=["outer_0", "outer_1", "rows", "columns"])
def _strided_copy_kernel(
    x_ptr, y_ptr, outer_0, outer_1, rows, columns, depth, x_stride, y_stride,
    INDEX: tl.constexpr, QUANTISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, tiles = tl.program_id(0).to(INDEX), tl.cdiv(rows * columns * depth, BLOCK)
    place = program // tiles
    outer = (place // outer_1 // outer_0, place // outer_1 % outer_0, place % outer_1)
    for axis in tl.static_range(3):
        x_ptr += outer[axis] * x_stride[axis]
        y_ptr += outer[axis] * y_stride[axis]
    k = program % tiles * BLOCK + tl.arange(0, BLOCK)
    row, column, d = k // depth // columns, k // depth % columns, k % depth
    inside = row < rows
    x = tl.load(x_ptr + row * x_stride[3] + column * x_stride[4] + d * x_stride[5], inside)
    if QUANTISE:
        x = _quantise(x)
    tl.store(y_ptr + row * y_stride[3] + column * y_stride[4] + d * y_stride[5], x, inside)


@triton.jit
def _quantise(x):
    # As x.clamp(0, 1).mul(255).round(): the product is rounded to x's type. NaN becomes 0: it fails the comparison.
    wide = x if x.dtype == tl.float64 else x.to(tl.float32)
    wide = tl.where(wide > 0, wide, 0.0)
    wide = (tl.where(wide < 1, wide, 1.0) * 255).to(x.dtype).to(wide.dtype)
    whole = wide.to(tl.int32)
    rest = wide - whole
    up = (rest > 0.5) | ((rest == 0.5) & (whole % 2 == 1))  # half to even
    return (whole + up.to(tl.int32)).to(tl.uint8)


def copy_launches(x: Tensor, y: Tensor, axes: list[Axis], quantise: bool = False) -> list[Launch]:
    """The kernel that copies x to y, unless that is empty; with ``quantise``, numbers in [0, 1] to bytes."""
    if not quantise:
        (x, parts), (y, _) = as_integers(x), as_integers(y)
        axes = [Axis(size, parts * source, parts * result) for size, source, result in axes] + [Axis(parts, 1, 1)]
    axes = simplified(axes)
    axes = [Axis(1, 0, 0)] * (6 - len(axes)) + axes
    sizes, x_stride, y_stride = zip(*axes, strict=True)
    inner, outer = sizes[3] * sizes[4] * sizes[5], sizes[0] * sizes[1] * sizes[2]
    if inner * outer == 0:
        return []
    block = min(1024, triton.next_power_of_2(inner))
    args = x, y, *sizes[1:], x_stride, y_stride
    # Fused with the subtraction behind it, the product of _quantise would not be rounded.
    constants = {"INDEX": index_type(x, y), "QUANTISE": quantise, "BLOCK": block, "enable_fp_fusion": not quantise}
    return [Launch(_strided_copy_kernel, (triton.cdiv(inner, block) * outer,), args, constants)]

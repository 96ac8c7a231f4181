"""A copy between two strided arrays: all that an op is which only moves data.

A program writes BLOCK elements of the result in packs of V neighbours, 16 bytes, gathered from their places in the
source. It finds the places once and keeps them for some steps along the longest axis. Its packs make runs of 128 bytes
or more of the result and go on along the axes that are closest in the source, so it uses lines of both whole. Bytes:
each element once read, once written.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Launch, index_type

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
MOST_AXES, MOST_COLUMNS, MOST_STEPS = 8, 3, 16  # of a tensor of four dimensions 6 axes, a part, and half a number


class Axis(NamedTuple):
    """One loop of a copy; strides in elements."""

    size: int
    source: int
    result: int


def simplified(axes: list[Axis]) -> list[Axis]:
    """The same loops, as few as possible, in the order of the result's memory."""
    few: list[Axis] = []
    for axis in sorted(axes, key=lambda axis: -abs(axis.result)):
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


@triton.jit(do_not_specialize=["count", "apart", "steps", *(f"size_{axis}" for axis in range(MOST_AXES))])
def _strided_copy_kernel(
    x_ptr, y_ptr, count, apart, steps,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, x_strides, y_strides,
    AXES: tl.constexpr, V: tl.constexpr, RUN: tl.constexpr,
    INDEX: tl.constexpr, QUANTISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sizes = size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7
    number = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    k, source, result = number, tl.zeros([BLOCK], INDEX), tl.zeros([BLOCK], INDEX)
    for axis in tl.static_range(AXES - 1):
        i = k % sizes[axis]
        k //= sizes[axis]
        source += i * x_strides[axis]
        result += i * y_strides[axis]
    source += k * x_strides[AXES - 1]
    result += k * y_strides[AXES - 1]
    left = tl.where(number < count, sizes[AXES - 1] - k, 0)  # of the longest axis
    for step in range(steps):
        on = (step * apart).to(INDEX)
        inside = tl.max_constancy(on < left, V)
        x_places = tl.max_contiguous(tl.multiple_of(source + on * x_strides[AXES - 1], RUN), RUN)
        y_places = tl.max_contiguous(tl.multiple_of(result + on * y_strides[AXES - 1], V), V)
        x = tl.load(x_ptr + x_places, inside)
        tl.store(y_ptr + y_places, _quantise(x) if QUANTISE else x, inside)


@triton.jit
def _quantise(x):
    # As x.clamp(0, 1).mul(255).round(): the product is rounded to x's type. NaN becomes 0: it fails the comparison.
    wide = x if x.dtype == tl.float64 else x.to(tl.float32)
    wide = tl.where(wide > 0, wide, 0.0)
    wide = (tl.where(wide < 1, wide, 1.0) * 255).to(x.dtype).to(wide.dtype)
    # From this power of two on, numbers have no fraction: the sum is rounded, half to even, and ends in the whole.
    if x.dtype == tl.float64:
        bits = (wide + 2.0**52).to(tl.int64, bitcast=True)
    else:
        bits = (wide + 2.0**23).to(tl.int32, bitcast=True)
    return bits.to(tl.uint8)


def _part(size: int, count: int, least: int, v: int) -> int:
    """How much of an axis to put beside columns: what makes at least so many, in whole packs; or all of it."""
    unit = v // math.gcd(v, count)
    first = -(-least // (count * unit)) * unit
    return next((part for part in range(first, min(size, first + 64 * unit), unit) if size % part == 0), size)


def _columns(axes: list[Axis], least: int, v: int) -> tuple[list[Axis], list[Axis], int]:
    """The innermost axes, innermost first; the rest; v, or 1 where packs of v would have gaps in the result."""
    columns: list[Axis] = []
    rest, count = list(axes), 1
    while rest and len(columns) < MOST_COLUMNS and (count % v or count < least):
        if v > 1 and rest[-1].result != count:
            break
        size, source, result = rest.pop()
        part = _part(size, count, least, v)
        columns.append(Axis(part, source, result))
        count *= part
        if part < size:
            rest.append(Axis(size // part, part * source, part * result))
    fits = count % v == 0 and all(axis.result % v == 0 for axis in rest)
    return (columns, rest, v) if fits else _columns(axes, least, 1)


def _numbered(axes: list[Axis], least: int, v: int) -> tuple[list[Axis], int]:
    """The loops in the order in which elements are numbered, fastest first and the longest last; v of `_columns`."""
    columns, others, v = _columns(axes, least, v)
    others = sorted(others, key=lambda axis: abs(axis.source)) or [Axis(1, 0, 0)]
    longest = max(others, key=lambda axis: axis.size)
    others.remove(longest)
    return [*columns, *others, longest], v


def copy_launches(x: Tensor, y: Tensor, axes: list[Axis], quantise: bool = False) -> list[Launch]:
    """The kernel that copies x to y, unless that is empty; with ``quantise``, numbers in [0, 1] to bytes."""
    if not quantise:
        (x, parts), (y, _) = as_integers(x), as_integers(y)
        axes = [Axis(size, parts * source, parts * result) for size, source, result in axes] + [Axis(parts, 1, 1)]
    total = math.prod(axis.size for axis in axes)
    if total == 0:
        return []
    v = 16 // y.itemsize if y.data_ptr() % 16 == 0 else 1
    axes, v = _numbered(simplified(axes), 128 // y.itemsize, v)
    # Neighbours in the source, which a vector loads.
    run = math.gcd(v, axes[0].size, *(axis.source for axis in axes[1:])) if axes[0].source == 1 else 1
    block = max(1024, 128 * v)
    # Fewer steps where they would leave multiprocessors without work.
    steps = min(max(total // (2048 * block), 1), MOST_STEPS)
    apart = -(-axes[-1].size // steps)
    count = total // axes[-1].size * apart
    block = min(block, triton.next_power_of_2(count))
    sizes, *strides = zip(*axes, strict=True)
    reach = max(sum((size - 1) * abs(stride) for size, stride in zip(sizes, of, strict=True)) for of in strides)
    constants = {
        "AXES": len(axes),
        "V": v,
        "RUN": run,
        # As of a tensor of so many elements: its rule knows no distances between tensors.
        "INDEX": index_type(torch.empty(max(reach, total), device="meta")),
        # Fused with the sum behind it, the product of _quantise would not be rounded.
        "QUANTISE": quantise,
        "BLOCK": block,
        "enable_fp_fusion": not quantise,
    }
    args = x, y, count, apart, steps, *sizes, *[1] * (MOST_AXES - len(sizes)), *strides
    return [Launch(_strided_copy_kernel, (triton.cdiv(count, block),), args, constants)]

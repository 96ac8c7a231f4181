"""Mean and sum of squared deviations of every channel, in two kernels and without atomics.

parts: a program walks over its tiles (_batch_norm_tiles.py) and adds up x - p and (x - p)² in each of its lanes, with
the mean p of its first tile as pivot; then over the lanes. It stores both sums about the channel's first value o, in
float64: s of x - o, q of (x - o)². Reads x once, b * n * c * l bytes.

merge: a program adds up the parts of 8 channels. As o is one of the n values, q is at most n times m2 = q - s² / n:
what is rounded in q is at most about n * 2**-53 of m2. The number of parts depends on shapes and layout alone, and so
does every bit of the result.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._batch_norm_tiles import (
    MERGING,
    SIZES,
    column_of,
    store_part,
    sum_lanes,
    sum_parts,
    tile,
    tiles,
    values_before,
)
from ._launch import Launch


@triton.jit
def _origin(x_ptr, c, channels, space, values, LAST: tl.constexpr, INDEX: tl.constexpr):
    """The first value of channels c, from which means are told: a large one is rounded to more than parts differ by."""
    at = c.to(INDEX) if LAST else c.to(INDEX) * space
    return tl.load(x_ptr + at, (c < channels) & (values > 0), other=0.0).to(tl.float64)


@triton.jit(do_not_specialize=SIZES)
def _batch_moments_parts_kernel(
    x_ptr, parts_ptr, rows, channels, space, steps,
    LAST: tl.constexpr, VECTOR: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    part, column, c = column_of(tl.program_id(0), channels, LAST, BLOCK_W)
    first = part * steps
    at, inside = tile(first, column, rows, channels, space, LAST, VECTOR, INDEX, BLOCK_R, BLOCK_W)
    x = tl.load(x_ptr + at, inside, other=0.0).to(ACC)
    begin = values_before(first.to(INDEX) * BLOCK_R, rows, space, LAST, BLOCK_W)
    end = values_before((first + 1).to(INDEX) * BLOCK_R, rows, space, LAST, BLOCK_W)
    pivot = sum_lanes(x, LAST) / (end - begin).to(ACC)
    s = tl.zeros((BLOCK_R, BLOCK_W), ACC)
    q = tl.zeros((BLOCK_R, BLOCK_W), ACC)
    for step in tl.range(steps, loop_unroll_factor=2):
        at, inside = tile(first + step, column, rows, channels, space, LAST, VECTOR, INDEX, BLOCK_R, BLOCK_W)
        x = tl.load(x_ptr + at, inside, other=0.0).to(ACC)
        d = tl.where(inside, x - pivot, 0.0)
        s += d
        q += d * d
    end = values_before((first + steps).to(INDEX) * BLOCK_R, rows, space, LAST, BLOCK_W)
    d = pivot.to(tl.float64) - _origin(x_ptr, c, channels, space, rows, LAST, INDEX)
    shift = d * (end - begin).to(tl.float64)
    sum_d = sum_lanes(s, LAST).to(tl.float64)
    store_part(parts_ptr, part, channels, c, sum_d + shift, sum_lanes(q, LAST) + d * (2 * sum_d + shift))


@triton.jit(do_not_specialize=[*SIZES, "values"])
def _batch_moments_merge_kernel(
    x_ptr, parts_ptr, mean_ptr, m2_ptr, values, channels, space, parts,
    LAST: tl.constexpr, VARIANCE: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    s, q = sum_parts(parts_ptr, parts, channels, c, BLOCK_P)
    n = tl.maximum(values, 1).to(tl.float64)
    shift = s / n
    m2 = q - s * shift
    m2 = tl.where(m2 < 0, 0.0, m2)
    tl.store(mean_ptr + c, _origin(x_ptr, c, channels, space, values, LAST, INDEX) + shift, c < channels)
    tl.store(m2_ptr + c, m2 / n if VARIANCE else m2, c < channels)


def batch_moments_fwd(x: Tensor, mean: Tensor, m2: Tensor, *, as_variance: bool = False) -> None:
    """Writes mean and m2 of a dense x; ``as_variance``: m2 over the count."""
    for launch in fwd_launches(x, mean, m2, as_variance=as_variance):
        launch.run()


def fwd_launches(x: Tensor, mean: Tensor, m2: Tensor, *, as_variance: bool = False) -> list[Launch]:
    """Both kernels; without values only the second, without channels none."""
    t = tiles(x)
    if t.channels == 0:
        return []
    parts = t.empty_parts(x)
    merged = {k: t.constants[k] for k in ("LAST", "INDEX")} | {"VARIANCE": as_variance} | MERGING
    args = x, parts, mean, m2, x.numel() // t.channels, t.channels, t.space, t.parts
    return [
        *([Launch(_batch_moments_parts_kernel, t.grid, (x, parts, *t.sizes), t.constants)] if t.parts else []),
        Launch(_batch_moments_merge_kernel, t.merging, args, merged),
    ]

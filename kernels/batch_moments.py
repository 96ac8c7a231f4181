"""Mean and sum of squared deviations of every channel, in two kernels and without atomics.

parts: a program owns [STEPS * BLOCK_R rows, BLOCK_C channels] of x, where a row is what one pixel, or 1024 neighbouring
ones, has of the channels. It adds up s = sum(x - p) and q = sum((x - p)²) of each tile with the mean p of the tiles
before as pivot (of the first tile: its own): mean += s / n, m2 += q - s² / n. Reads x once, b * n * c * l bytes.

merge: a program merges the parts of BLOCK_C channels by Chan's formula, in their order. The number of parts depends on
shapes and layout alone, and so does every bit of the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ._launch import Launch, index_type, sum_type

SIZES = ["values", "space", "steps", "parts"]


class Tiles(NamedTuple):
    """How the values of a dense x (n, c, ...) are dealt to programs: tiles [block_r values, block_c channels]."""

    values: int  # of a channel
    channels: int
    space: int
    last: bool  # whether channels are neighbours in memory
    block_r: int
    block_c: int
    parts: int
    steps: int

    @property
    def grid(self) -> tuple[int, int]:
        return triton.cdiv(max(1, self.channels), self.block_c), self.parts

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.values, self.channels, self.space

    def constants(self, *tensors: Tensor | None) -> dict[str, Any]:
        first = next(t for t in tensors if t is not None)
        compiled = {"LAST": self.last, "INDEX": index_type(*tensors), "ACC": sum_type(first)}
        return compiled | {"BLOCK_R": self.block_r, "BLOCK_C": self.block_c, "num_warps": 4}


def tiles(x: Tensor) -> Tiles:
    """The tiles of x: 2048 values each, in about 1024 programs of 4 tiles or more."""
    channels, space = x.shape[1], x.numel() // max(1, x.shape[0] * x.shape[1])
    values, space = x.shape[0] * space, max(1, space)
    last = space == 1 or not x.is_contiguous()
    block_c = min(64, triton.next_power_of_2(max(1, channels))) if last else 1
    block_r = min(2048 // block_c, max(16, triton.next_power_of_2(max(1, values))))
    count, columns = triton.cdiv(max(1, values), block_r), triton.cdiv(max(1, channels), block_c)
    parts = min(triton.cdiv(count, 4), max(1, 1024 // columns))
    return Tiles(values, channels, space, last, block_r, block_c, parts, triton.cdiv(count, parts))


@triton.jit
def offsets(i, c, channels, space, INDEX: tl.constexpr, LAST: tl.constexpr):
    """Where value i of channel c lies."""
    if LAST:
        return i.to(INDEX) * channels + c
    return (i // space).to(INDEX) * (channels * space) + c * space + i % space


@triton.jit(do_not_specialize=SIZES)
def _batch_moments_parts_kernel(
    x_ptr, parts_ptr, values, channels, space, steps, parts,
    LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    part = tl.program_id(1).to(INDEX)
    # Means are counted from the channel's first value: a large one would be rounded to more than parts differ by.
    origin = tl.load(x_ptr + (c if LAST else c * space), (c < channels) & (values > 0), other=0.0).to(ACC)
    mean = tl.zeros((1, BLOCK_C), ACC)
    m2 = tl.zeros((1, BLOCK_C), ACC)
    count = tl.zeros((), ACC)
    for step in range(steps):
        first = (part * steps + step) * BLOCK_R
        i = first + tl.arange(0, BLOCK_R)[:, None].to(INDEX)
        inside = (i < values) & (c < channels)
        x = tl.load(x_ptr + offsets(i, c, channels, space, INDEX, LAST), inside, other=0.0).to(ACC)
        x = tl.where(inside, x - origin, 0.0)
        more = tl.minimum(tl.maximum(values - first, 0), BLOCK_R).to(ACC)
        if step == 0:
            mean = tl.sum(x, axis=0)[None, :] / tl.maximum(more, 1.0)
        d = tl.where(inside, x - mean, 0.0)
        s = tl.sum(d, axis=0)[None, :]
        q = tl.sum(d * d, axis=0)[None, :]
        count += more
        shift = s / tl.maximum(count, 1.0)
        mean += shift
        m2 += q - s * shift
    at = parts_ptr + 2 * part * channels + c
    tl.store(at, mean, c < channels)
    tl.store(at + channels, tl.where(m2 < 0, 0.0, m2), c < channels)


@triton.jit(do_not_specialize=SIZES)
def _batch_moments_merge_kernel(
    x_ptr, parts_ptr, mean_ptr, m2_ptr, values, channels, space, part_values, parts,
    LAST: tl.constexpr, VARIANCE: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    # Each merge rounds, and there may be a thousand.
    mean = tl.zeros((BLOCK_C,), tl.float64)
    m2 = tl.zeros((BLOCK_C,), tl.float64)
    count = tl.zeros((), tl.float64)
    rest = tl.zeros((), tl.int64) + values
    parts_ptr += c
    for _ in range(parts):
        more = tl.minimum(rest, part_values).to(tl.float64)
        part_mean = tl.load(parts_ptr, c < channels, other=0.0)
        part_m2 = tl.load(parts_ptr + channels, c < channels, other=0.0)
        weight = more / tl.maximum(count + more, 1.0)
        delta = part_mean - mean
        mean += delta * weight
        m2 += part_m2 + delta * delta * (count * weight)
        count += more
        rest -= tl.minimum(rest, part_values)
        parts_ptr += 2 * channels
    at = c.to(INDEX) if LAST else c.to(INDEX) * space
    mean += tl.load(x_ptr + at, (c < channels) & (values > 0), other=0.0).to(tl.float64)
    tl.store(mean_ptr + c, mean, c < channels)
    tl.store(m2_ptr + c, m2 / tl.maximum(count, 1.0) if VARIANCE else m2, c < channels)


def batch_moments_fwd(x: Tensor, mean: Tensor, m2: Tensor, *, as_variance: bool = False) -> None:
    """Writes mean and m2 of a dense x; ``as_variance``: m2 over the count."""
    for launch in fwd_launches(x, mean, m2, as_variance=as_variance):
        launch.run()


def fwd_launches(x: Tensor, mean: Tensor, m2: Tensor, *, as_variance: bool = False) -> list[Launch]:
    """Both kernels, unless there are no channels."""
    t = tiles(x)
    if t.channels == 0:
        return []
    parts = mean.new_empty((t.parts, 2, t.channels))
    constants = t.constants(x, parts)
    block = min(128, triton.next_power_of_2(t.channels))
    merged = {k: constants[k] for k in ("LAST", "INDEX", "num_warps")}
    merged |= {"VARIANCE": as_variance, "BLOCK_C": block}
    args = x, parts, mean, m2, *t.sizes, t.steps * t.block_r, t.parts
    return [
        Launch(_batch_moments_parts_kernel, t.grid, (x, parts, *t.sizes, t.steps, t.parts), constants),
        Launch(_batch_moments_merge_kernel, (triton.cdiv(t.channels, block),), args, merged),
    ]

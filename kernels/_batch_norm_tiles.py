"""How batch_moments and sync_batch_norm deal a dense x (n, c, ...) to programs, and add up the parts of a channel.

A tile has BLOCK_R rows of BLOCK_W neighbours in memory: in channels_last a row is BLOCK_W channels of one pixel,
otherwise BLOCK_W pixels of one plane, so that there is one division for a row, not for a value. A program owns `steps`
tiles below each other: a part of a column, which is BLOCK_W channels or one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import index_type, sum_type

MERGING = {"BLOCK_P": 256, "BLOCK_C": 8, "num_warps": 8}  # of the kernels that merge: parts and channels of a tile
SIZES = ["rows", "channels", "space", "steps", "parts"]


class Tiles(NamedTuple):
    """The cut of x into tiles. It depends on shape, type and layout alone."""

    rows: int
    channels: int
    space: int
    steps: int
    columns: int
    parts: int
    constants: dict[str, Any]

    @property
    def grid(self) -> tuple[int]:
        return (self.columns * self.parts,)

    @property
    def merging(self) -> tuple[int]:
        """The grid of a kernel that merges."""
        return (triton.cdiv(self.channels, MERGING["BLOCK_C"]),)

    def empty_parts(self, x: Tensor) -> Tensor:
        return torch.empty((self.parts, 2, self.channels), dtype=torch.float64, device=x.device)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.rows, self.channels, self.space, self.steps


def tiles(x: Tensor) -> Tiles:
    """The tiles of x: 2048 values each, 1024 of float64, in about 4096 programs of 4 to 32 tiles, or in more."""
    batch, channels = x.shape[0], x.shape[1]
    space = x.numel() // max(1, batch * channels)
    last = space <= 1 or not x.is_contiguous()
    width = channels if last else space
    block_w = min(64, triton.next_power_of_2(max(1, width)))
    across = triton.cdiv(width, block_w)
    columns, rows = (across, batch * space) if last else (channels, batch * across)
    block_r = min(8192 // max(4, x.itemsize) // block_w, max(16, triton.next_power_of_2(max(1, rows))))
    count = triton.cdiv(rows, block_r)
    steps = min(32, max(4, triton.cdiv(count * columns, 4096)))
    vector = 16 // x.itemsize
    constants = {
        "LAST": last,
        "VECTOR": vector if width % vector == 0 else 1,
        "INDEX": index_type(x),
        "ACC": sum_type(x),
        "BLOCK_R": block_r,
        "BLOCK_W": block_w,
        "num_warps": 4,
    }
    return Tiles(rows, channels, space, steps, columns, triton.cdiv(count, steps), constants)


@triton.jit
def column_of(program, channels, LAST: tl.constexpr, BLOCK_W: tl.constexpr):
    """A program's part and column, and the channels of that (1, BLOCK_W or 1)."""
    columns = tl.cdiv(channels, BLOCK_W) if LAST else channels
    column = program % columns
    WIDTH: tl.constexpr = BLOCK_W if LAST else 1
    return program // columns, column, column * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def tile(
    index, column, rows, channels, space,
    LAST: tl.constexpr, VECTOR: tl.constexpr, INDEX: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Where the values of a tile lie, and which of them there are."""
    r = index.to(INDEX) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    lane = tl.arange(0, BLOCK_W)[None, :]
    # The compiler sees what is divisible by VECTOR, and moves as many values in one access.
    if LAST:
        channels = channels // VECTOR * VECTOR
        c = column * BLOCK_W + lane
        return r * channels + c, (r < rows) & (c < channels)
    space = space // VECTOR * VECTOR
    across = tl.cdiv(space, BLOCK_W)
    plane = r // across
    pixel = (r - plane * across) * BLOCK_W + lane
    return (plane * channels + column) * space + pixel, (r < rows) & (pixel < space)


@triton.jit
def values_before(row, rows, space, LAST: tl.constexpr, BLOCK_W: tl.constexpr):
    """How many values of a channel lie in the rows before this one."""
    row = tl.minimum(row, rows)
    if LAST:
        return row
    across = tl.cdiv(space, BLOCK_W)
    return row // across * space + row % across * BLOCK_W  # a plane's last row is the only one that is not full


@triton.jit
def sum_lanes(x, LAST: tl.constexpr):
    """The sums of a tile's values over each of its channels (1, BLOCK_W or 1)."""
    sums = tl.sum(x, axis=0)[None, :]
    return sums if LAST else tl.sum(sums, axis=1)[:, None]


@triton.jit
def store_part(parts_ptr, part, channels, c, s, q):
    """Stores both sums of channels c in parts [part][2][channels]."""
    at = parts_ptr + 2 * part.to(tl.int64) * channels + c
    tl.store(at, s, c < channels)
    tl.store(at + channels, q, c < channels)


@triton.jit
def sum_parts(parts_ptr, parts, channels, c, BLOCK_P: tl.constexpr):
    """The totals of both sums of channels c (1, BLOCK_C) over all parts."""
    s = tl.zeros((BLOCK_P, c.shape[1]), tl.float64)
    q = tl.zeros((BLOCK_P, c.shape[1]), tl.float64)
    for first in range(0, parts, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)[:, None]
        at = parts_ptr + 2 * p.to(tl.int64) * channels + c
        inside = (p < parts) & (c < channels)
        s += tl.load(at, inside, other=0.0)
        q += tl.load(at + channels, inside, other=0.0)
    return tl.sum(s, axis=0)[None, :], tl.sum(q, axis=0)[None, :]

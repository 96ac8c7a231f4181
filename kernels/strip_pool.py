"""Strip pooling: the means of an image's rows and columns, and their gradient.

A program takes some rows and columns of an image, BLOCK_H rows at a time: in channels_last of BLOCK_C channels, which
are 128 bytes, else of one. fwd: it writes what it has of each row, goes on to the next rows, and adds up the columns in
registers. Most images are one program's rows and columns; otherwise the sums go to a scratch tensor, which a second
kernel adds up. x is read once, the scratch is written and read, 4 bytes for each row and column of a program. bwd: it
has the columns' part in registers, and writes dx once. No atomics: a result's bits never change.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Launch, index_type, sum_type

SIZES = ["height", "width", "chunks", "bands", "band", "row_length", "column_length", "parts", "count", "length"]


class Tiles(NamedTuple):
    """How an image's rows and columns are dealt to programs."""

    chunks: int  # of block_w columns
    bands: int
    band: int  # rows
    grid: tuple[int]
    constants: dict[str, Any]


def tiles(x: Tensor, last: bool) -> Tiles:
    """As many rows to a program as leave 65536 threads to the GPU; more than 64 tiles' sums would lose digits."""
    n, c, h, w = x.shape
    block_w = min(128 if last else 512, triton.next_power_of_2(max(1, w)))
    block_c = min(128 // x.itemsize, triton.next_power_of_2(max(1, c))) if last else 1
    # Few channels that lie apart: more warps for each.
    warps = min(8, max(2, triton.next_power_of_2(2048 // max(1, n * c))))
    block_h = 2 if last else min(warps * 2048 // x.itemsize // block_w, triton.next_power_of_2(max(1, h)))
    if last:
        warps = max(1, block_h * block_w * block_c * x.itemsize // 2048)  # 16 bytes, four times, to a thread
    across = n * triton.cdiv(c, block_c) * triton.cdiv(w, block_w)
    band = min(max(h * across * warps * 32 // 65536, 8), 64 * block_h)
    band = triton.cdiv(band, block_h) * block_h
    bands = triton.cdiv(h, band)
    constants = {"CHANNELS_LAST": last, "ALIGN": 1 if last else _alignment(x), "ACC": sum_type(x), "num_warps": warps}
    constants |= {"BLOCK_H": block_h, "BLOCK_W": block_w, "BLOCK_C": block_c}
    return Tiles(triton.cdiv(w, block_w), bands, band, (across * bands,), constants)


def _alignment(x: Tensor) -> int:
    """Of how many numbers, at most 16 bytes, every row of x has a multiple, and every stride."""
    align = 16 // x.itemsize if x.stride(3) == 1 else 1
    while any(step % align for step in (*x.stride()[:3], x.shape[3])):
        align //= 2
    return align


@triton.jit
def _place(
    pid, channels, width, chunks, bands, band, ALIGN: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr
):
    """A program's image, channels, columns, chunk, band and first row; and where channels and columns are any."""
    groups = tl.cdiv(channels, BLOCK_C)
    c = pid % groups * BLOCK_C + tl.arange(0, BLOCK_C)[None, None, :]
    chunk = pid // groups % chunks
    part = pid // groups // chunks % bands
    n = pid // groups // chunks // bands
    w = chunk * BLOCK_W + tl.arange(0, BLOCK_W)[None, :, None]
    # A multiple of ALIGN, to the compiler's knowledge: it loads and stores as many numbers at once.
    return n, c, w, chunk, part, part * band, (c < channels) & (w < width // ALIGN * ALIGN)


@triton.jit(do_not_specialize=SIZES)
def _strip_pool_fwd_kernel(
    x_ptr, rows_ptr, columns_ptr, channels, height, width, chunks, bands, band, row_length, column_length,
    x_stride, rows_stride, columns_stride, rows_count, columns_count,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(INDEX)
    n, c, w, chunk, part, first, inside = _place(pid, channels, width, chunks, bands, band, ALIGN, BLOCK_W, BLOCK_C)
    end = tl.minimum(first + band, height)
    rows_ptr += chunk * rows_count + n * rows_stride[0] + c * rows_stride[1]
    # In channels_last a thread has all rows of a tile, else another has each row.
    total = tl.zeros((1 if CHANNELS_LAST else BLOCK_H, BLOCK_W, BLOCK_C), ACC)
    for start in tl.range(first, end, BLOCK_H, num_stages=3 if CHANNELS_LAST else 1):
        h = start + tl.arange(0, BLOCK_H)[:, None, None]
        at = (n * x_stride[0] + c * x_stride[1] + h * x_stride[2]) // ALIGN * ALIGN + w * x_stride[3]
        x = tl.load(x_ptr + at, inside & (h < end), other=0).to(ACC)
        total += tl.sum(x, 0, keep_dims=True) if CHANNELS_LAST else x
        row = tl.sum(x, 1, keep_dims=True) / row_length
        tl.store(rows_ptr + h * rows_stride[2], row.to(rows_ptr.dtype.element_ty), (c < channels) & (h < end))
    column = tl.sum(total, 0, keep_dims=True) / column_length
    columns_ptr += part * columns_count + n * columns_stride[0] + c * columns_stride[1] + w * columns_stride[3]
    tl.store(columns_ptr, column.to(columns_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=SIZES)
def _strip_pool_finish_kernel(sums_ptr, means_ptr, length, parts, count, INDEX: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)  # there may be thousands, and a long sum of floats would lose digits
    for _ in range(parts):
        total += tl.load(sums_ptr + i, i < count, other=0)
        sums_ptr += count
    tl.store(means_ptr + i, (total / length).to(sums_ptr.dtype.element_ty).to(means_ptr.dtype.element_ty), i < count)


@triton.jit(do_not_specialize=SIZES)
def _strip_pool_bwd_kernel(
    drows_ptr, dcolumns_ptr, dx_ptr, channels, height, width, chunks, bands, band,
    drows_stride, dcolumns_stride, dx_stride,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(INDEX)
    n, c, w, _, _, first, inside = _place(pid, channels, width, chunks, bands, band, ALIGN, BLOCK_W, BLOCK_C)
    end = tl.minimum(first + band, height)
    drows_ptr += n * drows_stride[0] + c * drows_stride[1]
    dcolumns_ptr += n * dcolumns_stride[0] + c * dcolumns_stride[1] + w * dcolumns_stride[3]
    column = tl.load(dcolumns_ptr, inside, other=0).to(ACC) / height
    for start in range(first, end, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)[:, None, None]
        row = tl.load(drows_ptr + h * drows_stride[2], (c < channels) & (h < end), other=0).to(ACC) / width
        at = (n * dx_stride[0] + c * dx_stride[1] + h * dx_stride[2]) // ALIGN * ALIGN + w * dx_stride[3]
        tl.store(dx_ptr + at, (row + column).to(dx_ptr.dtype.element_ty), inside & (h < end))


def strip_pool_fwd(x: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Writes the means of x along its columns to rows, and along its rows to columns."""
    for launch in fwd_launches(x, rows, columns):
        launch.run()


def strip_pool_bwd(drows: Tensor, dcolumns: Tensor, dx: Tensor) -> None:
    """Writes dx, the gradient of sum(drows * rows) + sum(dcolumns * columns)."""
    for launch in bwd_launches(drows, dcolumns, dx):
        launch.run()


def fwd_launches(x: Tensor, rows: Tensor, columns: Tensor) -> list[Launch]:
    """The kernels that write rows and columns, unless those are empty."""
    _, c, h, w = x.shape
    t = tiles(x, columns.stride(1) <= columns.stride(3))
    to, lengths, finish = [], [], []
    for means, parts, length in ((rows, t.chunks, w), (columns, t.bands, h)):
        if parts == 1:
            to.append(means)
            lengths.append(length)
            continue
        sums = means.new_empty(parts * means.numel(), dtype=torch.promote_types(x.dtype, torch.float32))
        to.append(sums)
        lengths.append(1)
        constants = {"INDEX": index_type(sums), "BLOCK": 256, "num_warps": 4}
        grid, args = (triton.cdiv(means.numel(), 256),), (sums, means, length, parts, means.numel())
        finish.append(Launch(_strip_pool_finish_kernel, grid, args, constants))
    strides = x.stride(), rows.stride(), columns.stride()
    args = x, *to, c, h, w, t.chunks, t.bands, t.band, *lengths, *strides, rows.numel(), columns.numel()
    launches = [Launch(_strip_pool_fwd_kernel, t.grid, args, t.constants | {"INDEX": index_type(x, *to)}), *finish]
    return [launch for launch in launches if launch.grid[0] > 0]


def bwd_launches(drows: Tensor, dcolumns: Tensor, dx: Tensor) -> list[Launch]:
    """The kernel that writes dx, unless that is empty."""
    if dx.numel() == 0:
        return []
    _, c, h, w = dx.shape
    t = tiles(dx, dx.stride(1) <= dx.stride(3))
    args = drows, dcolumns, dx, c, h, w, t.chunks, t.bands, t.band, drows.stride(), dcolumns.stride(), dx.stride()
    constants = t.constants | {"INDEX": index_type(drows, dcolumns, dx)}
    return [Launch(_strip_pool_bwd_kernel, t.grid, args, constants)]

"""Weight and bias gradient of the grouped convolution, in two kernels and without atomics.

A pair is an output channel and one of its group's input channels, the latter fastest; depthwise: an output channel.

dw: reads x and dy once from memory. A program owns [steps * BLOCK_P pixels, BLOCK_C pairs] and ROWS rows of the kernel. It keeps a tile of sums for each of its ROWS * KW taps, and one for db, in registers; every
tile of dy is loaded once and meets the x of each tap, which after the first tap comes from the caches. At the end
the tiles are summed over their pixels and stored in partial [splits, columns, pairs], a column per tap, the last
one for db.

sum: adds the splits up, each program for 32 of the columns * pairs. The number of splits depends on shapes and
layout alone, and so does every bit of the result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._convolution import SIZES, Pair, block, constants, coordinates, pixels, sizes
from ._launch import Launch, index_type, sum_type


@triton.jit(do_not_specialize=SIZES)
def _grouped_conv2d_dw_kernel(
    dy_ptr, x_ptr, partial_ptr, batch, height, width, out_height, out_width, pairs, columns, steps,
    dy_stride, x_stride,
    DEPTH: tl.constexpr, M: tl.constexpr, ROWS: tl.constexpr, KW: tl.constexpr, NEED_DB: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    o = pair // DEPTH
    split = tl.program_id(1).to(INDEX)
    first_row = tl.program_id(2) * ROWS
    dy_ptr += o * dy_stride[1]
    x_ptr += (o // M * DEPTH + pair % DEPTH) * x_stride[1]
    sums = (tl.zeros((BLOCK_P, BLOCK_C), ACC),) * (ROWS * KW + NEED_DB)
    for step in range(steps):
        p = (split * steps + step) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
        n, i, j = coordinates(p, out_height, out_width)
        inside = (n < batch) & (pair < pairs)
        dy = tl.load(dy_ptr + n * dy_stride[0] + i * dy_stride[2] + j * dy_stride[3], inside, other=0.0).to(ACC)
        new = sums[:0]
        for kh in tl.static_range(ROWS):
            row = i * STRIDE[0] - PADDING[0] + (first_row + kh) * DILATION[0]
            in_row = inside & (row >= 0) & (row < height)
            for kw in tl.static_range(KW):
                column = j * STRIDE[1] - PADDING[1] + kw * DILATION[1]
                valid = in_row & (column >= 0) & (column < width)
                at = n * x_stride[0] + row * x_stride[2] + column * x_stride[3]
                x = tl.load(x_ptr + at, valid, other=0.0).to(ACC)
                acc = sums[kh * KW + kw]
                new += (tl.where(valid, acc + x * dy, acc),)
        if NEED_DB:
            new += (sums[ROWS * KW] + dy,)
        sums = new
    partial_ptr += split * columns * pairs + pair
    for tap in tl.static_range(ROWS * KW):
        total = tl.sum(sums[tap], axis=0)[None, :]
        tl.store(partial_ptr + (first_row * KW + tap) * pairs, total, pair < pairs)
    if NEED_DB:
        # Every group of rows has summed it: the first one stores it.
        total = tl.sum(sums[ROWS * KW], axis=0)[None, :]
        tl.store(partial_ptr + (columns - 1) * pairs, total, (pair < pairs) & (first_row == 0))


@triton.jit(do_not_specialize=SIZES)
def _grouped_conv2d_sum_kernel(
    partial_ptr, dw_ptr, db_ptr, splits, columns, pairs, dw_stride,
    DEPTH: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    size = columns * pairs
    acc = tl.zeros((BLOCK_S, BLOCK), ACC)
    for first in range(0, splits, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)[:, None]
        acc += tl.load(partial_ptr + s.to(INDEX) * size + k[None, :], (s < splits) & (k < size)[None, :], other=0.0)
    total = tl.sum(acc, axis=0)
    column, pair = k // pairs, k % pairs
    o = pair // DEPTH
    if dw_ptr is not None:
        # The last group of rows may reach below the kernel.
        at = o * dw_stride[0] + pair % DEPTH * dw_stride[1] + column // KW * dw_stride[2] + column % KW * dw_stride[3]
        tl.store(dw_ptr + at, total, column < KH * KW)
    if db_ptr is not None:
        tl.store(db_ptr + o, total, (column == columns - 1) & (pair % DEPTH == 0))


def dw_launches(
    dy: Tensor, x: Tensor, w: Tensor, dw: Tensor | None, db: Tensor | None,
    stride: Pair, padding: Pair, dilation: Pair,
) -> list[Launch]:  # fmt: skip
    """Both kernels, for dw, db or both."""
    outputs, _, kh, kw = w.shape
    depth = 1 if dw is None else w.shape[1]
    pairs = outputs * depth
    # The sums of at most 49 taps (7 x 7) fit a thread's registers; a larger kernel is cut into groups of rows.
    rows = 0 if dw is None else min(kh, max(1, 49 // kw))
    groups = 1 if dw is None else triton.cdiv(kh, rows)
    columns = groups * rows * kw + (db is not None)
    # Four warps; a thread has four elements of each tile while the sums leave registers for it, else two or one.
    registers = rows * kw * (2 if x.dtype == torch.float64 else 1)
    block_p, block_c = block(dy, x, 512 if registers <= 16 else 256 if registers <= 32 else 128)
    # About 1024 programs, a few for every multiprocessor of today's largest GPUs, of 8 tiles or more.
    tiles_c = triton.cdiv(pairs, block_c)
    tiles_p = triton.cdiv(max(1, pixels(dy)), block_p)
    splits = min(triton.cdiv(tiles_p, 8), max(1, 1024 // (tiles_c * groups)))
    partial = x.new_empty((splits, columns, pairs), dtype=torch.promote_types(x.dtype, torch.float32))

    steps = triton.cdiv(tiles_p, splits)
    sum_taps = Launch(
        _grouped_conv2d_dw_kernel,
        (tiles_c, splits, groups),
        (dy, x, partial, *sizes(x, dy), pairs, columns, steps, dy.stride(), x.stride()),
        constants(x, w, stride, padding, dilation)
        | {"DEPTH": depth, "ROWS": rows, "NEED_DB": db is not None, "INDEX": index_type(dy, x, partial)}
        | {"BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": 4},
    )
    sum_splits = Launch(
        _grouped_conv2d_sum_kernel,
        (triton.cdiv(columns * pairs, 32),),
        (partial, dw, db, splits, columns, pairs, None if dw is None else dw.stride()),
        {"DEPTH": depth, "KH": kh, "KW": kw, "INDEX": index_type(dw, partial), "ACC": sum_type(x)}
        | {"BLOCK_S": min(64, triton.next_power_of_2(splits)), "BLOCK": 32},
    )
    return [sum_taps, sum_splits]

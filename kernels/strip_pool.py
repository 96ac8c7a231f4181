"""Strip pooling: the means of an image's rows and columns, and their gradient.

fwd: a program takes BLOCK_H rows of an image, in channels_last of BLOCK_C channels, else of one. It goes along the
columns, adds up the rows in registers, and writes what its rows add to each column to a scratch tensor, which a second
kernel adds up. x is read once, the scratch is written and read: 4 bytes a number of x / BLOCK_H. bwd: a program owns
BLOCK numbers of dx, and writes them once. No atomics: a result's bits never change.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Launch, index_type, sum_type

SIZES = ["height", "width", "strips", "count"]
BLOCK_H = 16


@triton.jit(do_not_specialize=SIZES)
def _strip_pool_fwd_kernel(
    x_ptr, rows_ptr, scratch_ptr, channels, height, width, strips, x_stride, rows_stride, columns_stride, columns,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # A tile is [BLOCK_H, BLOCK_W, BLOCK_C]; BLOCK_W or BLOCK_C is 1.
    pid = tl.program_id(0).to(INDEX)
    groups = tl.cdiv(channels, BLOCK_C)
    c = pid % groups * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    strip = pid // groups % strips
    n = pid // groups // strips
    h = strip * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    x_ptr += n * x_stride[0] + c * x_stride[1] + h * x_stride[2]
    scratch_ptr += strip * columns + n * columns_stride[0] + c * columns_stride[1]
    total = tl.zeros((BLOCK_H, BLOCK_C), ACC)
    for block in range(0, width, BLOCK_W * 64):  # a long sum, taken one after another, would lose digits
        part = tl.zeros((BLOCK_H, BLOCK_C), ACC)
        for start in range(block, min(block + BLOCK_W * 64, width), BLOCK_W):
            w = start + tl.arange(0, BLOCK_W)[None, :]
            inside = (c < channels) & (h < height) & (w < width)
            x = tl.load(x_ptr + w.to(INDEX) * x_stride[3], inside, other=0).to(ACC)
            at = scratch_ptr + w.to(INDEX) * columns_stride[3]
            tl.store(at, tl.sum(x, 0, keep_dims=True), (c < channels) & (w < width))
            part += x if CHANNELS_LAST else tl.sum(x, 1, keep_dims=True)
        total += part
    rows_ptr += n * rows_stride[0] + c * rows_stride[1] + h * rows_stride[2]
    tl.store(rows_ptr, (total / width).to(rows_ptr.dtype.element_ty), (c < channels) & (h < height))


@triton.jit(do_not_specialize=SIZES)
def _strip_pool_finish_kernel(
    scratch_ptr, columns_ptr, height, strips, count, INDEX: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), ACC)
    for _ in range(strips):
        total += tl.load(scratch_ptr + i, i < count, other=0)
        scratch_ptr += count
    tl.store(columns_ptr + i, (total / height).to(columns_ptr.dtype.element_ty), i < count)


@triton.jit(do_not_specialize=SIZES)
def _strip_pool_bwd_kernel(
    drows_ptr, dcolumns_ptr, dx_ptr, channels, height, width, count, drows_stride, dcolumns_stride,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    if CHANNELS_LAST:
        c = i % channels
        pixel = i // channels
    else:
        c = i // (height * width) % channels
        pixel = i
    w = pixel % width
    h = pixel // width % height
    n = i // (channels * height * width)
    drows_ptr += n * drows_stride[0] + c * drows_stride[1] + h * drows_stride[2]
    dcolumns_ptr += n * dcolumns_stride[0] + c * dcolumns_stride[1] + w * dcolumns_stride[3]
    row = tl.load(drows_ptr, i < count, other=0).to(ACC) / width
    column = tl.load(dcolumns_ptr, i < count, other=0).to(ACC) / height
    tl.store(dx_ptr + i, (row + column).to(dx_ptr.dtype.element_ty), i < count)


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
    n, c, h, w = x.shape
    last = columns.stride(1) <= columns.stride(3)
    strips, count = triton.cdiv(h, BLOCK_H), columns.numel()
    scratch = x.new_empty(strips * count, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    shared = {"INDEX": index_type(x, scratch), "ACC": sum_type(x), "num_warps": 4}
    block_c = min(64, triton.next_power_of_2(c)) if last else 1
    block_w = 1 if last else min(128, triton.next_power_of_2(max(1, w)))
    tile = {"CHANNELS_LAST": last, "BLOCK_H": BLOCK_H, "BLOCK_W": block_w, "BLOCK_C": block_c}
    args = x, rows, scratch, c, h, w, strips, x.stride(), rows.stride(), columns.stride(), count
    grid, launches = (n * strips * triton.cdiv(c, block_c),), []
    if grid[0] > 0:
        launches.append(Launch(_strip_pool_fwd_kernel, grid, args, shared | tile))
    if count > 0:
        args = scratch, columns, h, strips, count
        launches.append(Launch(_strip_pool_finish_kernel, (triton.cdiv(count, 256),), args, shared | {"BLOCK": 256}))
    return launches


def bwd_launches(drows: Tensor, dcolumns: Tensor, dx: Tensor) -> list[Launch]:
    """The kernel that writes dx, unless that is empty."""
    if dx.numel() == 0:
        return []
    _, c, h, w = dx.shape
    args = drows, dcolumns, dx, c, h, w, dx.numel(), drows.stride(), dcolumns.stride()
    constants = {"CHANNELS_LAST": dx.stride(1) <= dx.stride(3), "INDEX": index_type(drows, dcolumns, dx)}
    constants |= {"ACC": sum_type(dx), "BLOCK": 1024, "num_warps": 4}
    return [Launch(_strip_pool_bwd_kernel, (triton.cdiv(dx.numel(), 1024),), args, constants)]

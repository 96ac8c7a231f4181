"""Corner pooling: running maxima along one dimension of an image, or along both and added up, and their gradient.

A program owns a tile [BLOCK_L lanes, BLOCK_S places]: places are what is scanned, lanes what is not. It goes along the
scan tile by tile, with the running maximum of each lane in registers. fwd reads x and writes y once, 2 * bytes a number
(3 where it adds to y, as the second scan of a sum does).

sum walks over the rows of BLOCK_P planes, with the maxima of their columns in registers: 3 * bytes a number.

bwd reads x and dy once and writes each dx once, 3 * bytes. Where what is scanned lies side by side, a tile has whole
lanes: one scan finds where the maximum of each place is, another adds up, from the far end, the dy of places that have
the same. Else bwd goes place by place: when a maximum ends, the sum of its dy goes to its place; the other places
receive 0. No atomics: the same bits on every run.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ._launch import Launch, index_type, sum_type

SIZES = ["lanes", "channels", "width", "length"]
LONGEST = 2048  # rows that a tile has as a whole


@triton.jit
def _later(m, x):
    # The running maximum m after x: once NaN, it stays NaN.
    return tl.maximum(m, x, tl.PropagateNan.ALL)


# The maximum after another, with its place; -1 is the place of what is no number of a lane.
@triton.jit
def _first_maximum(m, m_place, x, x_place):
    takes = (m_place < 0) | ((x_place >= 0) & ((x > m) | ((x != x) & (m == m))))
    return tl.where(takes, x, m), tl.where(takes, x_place, m_place)


@triton.jit
def _last_maximum(m, m_place, x, x_place):
    takes = (m_place < 0) | ((x_place >= 0) & ((x >= m) | (x != x)))
    return tl.where(takes, x, m), tl.where(takes, x_place, m_place)


@triton.jit
def _add_up_alike(key, total, x_key, x):
    return x_key, tl.where(key == x_key, total + x, x)


@triton.jit
def _offset(lane, channels, width, stride, VERTICAL: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    # A lane is one of n * c * width, width being that of the dimension not scanned; neighbours are so in memory too.
    if CHANNELS_LAST:
        c = lane % channels
        i = lane // channels % width
    else:
        c = lane // width % channels
        i = lane % width
    n = lane // (channels * width)
    return n * stride[0] + c * stride[1] + i * (stride[3] if VERTICAL else stride[2])


@triton.jit(do_not_specialize=SIZES)
def _corner_pool_fwd_kernel(
    x_ptr, y_ptr, lanes, channels, width, length, x_stride, y_stride, lowest,
    VERTICAL: tl.constexpr, REVERSE: tl.constexpr, ADD: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0).to(INDEX) * BLOCK_L + tl.arange(0, BLOCK_L)[:, None]
    x_ptr += _offset(lane, channels, width, x_stride, VERTICAL, CHANNELS_LAST)
    y_ptr += _offset(lane, channels, width, y_stride, VERTICAL, CHANNELS_LAST)
    x_step = x_stride[2] if VERTICAL else x_stride[3]
    y_step = y_stride[2] if VERTICAL else y_stride[3]
    m = tl.full((BLOCK_L, 1), lowest, ACC)
    for start in range(0, length, BLOCK_S):
        begin = (tl.cdiv(length, BLOCK_S) - 1) * BLOCK_S - start if REVERSE else start
        place = (begin + tl.arange(0, BLOCK_S)[None, :]).to(INDEX)
        inside = (lane < lanes) & (place // VEC < length // VEC)
        x = tl.load(x_ptr + place * x_step, inside, other=0).to(ACC)
        x = tl.where(inside, x, lowest)
        y = _later(m, tl.associative_scan(x, 1, _later, REVERSE) if BLOCK_S > 1 else x)
        if BLOCK_S > 1:  # take the last place of the tile
            last = tl.arange(0, BLOCK_S)[None, :] == (0 if REVERSE else BLOCK_S - 1)
            m = tl.sum(tl.where(last, y, 0), 1, keep_dims=True)
        else:
            m = y
        if ADD:
            y += tl.load(y_ptr + place * y_step, inside, other=0).to(ACC)
        tl.store(y_ptr + place * y_step, y.to(y_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["planes", "channels", "height", "width"])
def _corner_pool_sum_kernel(
    v_ptr, h_ptr, y_ptr, planes, channels, height, width, v_stride, h_stride, y_stride, lowest,
    REVERSE: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    column = tl.arange(0, BLOCK_S)[None, :].to(INDEX)
    inside = (plane < planes) & (column // VEC < width // VEC)
    n = plane // channels
    c = plane % channels
    v_ptr += n * v_stride[0] + c * v_stride[1] + column * v_stride[3]
    h_ptr += n * h_stride[0] + c * h_stride[1] + column * h_stride[3]
    y_ptr += n * y_stride[0] + c * y_stride[1] + column * y_stride[3]
    down = tl.full((BLOCK_P, BLOCK_S), lowest, ACC)
    for step in range(height):
        row = tl.cast(height - 1 - step if REVERSE else step, INDEX)
        v = tl.load(v_ptr + row * v_stride[2], inside, other=0).to(ACC)
        h = tl.load(h_ptr + row * h_stride[2], inside, other=0).to(ACC)
        down = _later(down, v)
        y = down + tl.associative_scan(tl.where(inside, h, lowest), 1, _later, REVERSE)
        tl.store(y_ptr + row * y_stride[2], y.to(y_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=SIZES)
def _corner_pool_bwd_kernel(
    dy_ptr, x_ptr, dx_ptr, lanes, channels, width, length, dy_stride, x_stride, dx_stride,
    VERTICAL: tl.constexpr, REVERSE: tl.constexpr, FIRST: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0).to(INDEX) * BLOCK_L + tl.arange(0, BLOCK_L)
    inside = lane < lanes
    dy_ptr += _offset(lane, channels, width, dy_stride, VERTICAL, CHANNELS_LAST)
    x_ptr += _offset(lane, channels, width, x_stride, VERTICAL, CHANNELS_LAST)
    dx_ptr += _offset(lane, channels, width, dx_stride, VERTICAL, CHANNELS_LAST)
    dy_step = dy_stride[2] if VERTICAL else dy_stride[3]
    x_step = x_stride[2] if VERTICAL else x_stride[3]
    dx_step = dx_stride[2] if VERTICAL else dx_stride[3]
    zero = tl.zeros((BLOCK_L,), INDEX)
    begin = zero + (length - 1 if REVERSE else 0)  # where the maximum so far is
    m = tl.load(x_ptr + begin * x_step, inside, other=0).to(ACC)
    sums = tl.load(dy_ptr + begin * dy_step, inside, other=0).to(ACC)
    for step in range(1, length):
        place = zero + (length - 1 - step if REVERSE else step)
        x = tl.load(x_ptr + place * x_step, inside, other=0).to(ACC)
        dy = tl.load(dy_ptr + place * dy_step, inside, other=0).to(ACC)
        # NaN exceeds all else and equals NaN.
        if FIRST:
            takes = (x > m) | ((x != x) & (m == m))
        else:
            takes = (x >= m) | (x != x)
        at = tl.where(takes, begin, place)
        tl.store(dx_ptr + at * dx_step, tl.where(takes, sums, 0).to(dx_ptr.dtype.element_ty), inside)
        begin = tl.where(takes, place, begin)
        sums = tl.where(takes, dy, sums + dy)
        m = tl.where(takes, x, m)
    tl.store(dx_ptr + begin * dx_step, sums.to(dx_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=SIZES)
def _corner_pool_bwd_rows_kernel(
    dy_ptr, x_ptr, dx_ptr, lanes, channels, width, length, dy_stride, x_stride, dx_stride,
    VERTICAL: tl.constexpr, REVERSE: tl.constexpr, FIRST: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0).to(INDEX) * BLOCK_L + tl.arange(0, BLOCK_L)[:, None]
    place = tl.arange(0, BLOCK_S)[None, :]
    inside = (lane < lanes) & (place // VEC < length // VEC)
    dy_ptr += _offset(lane, channels, width, dy_stride, VERTICAL, CHANNELS_LAST)
    x_ptr += _offset(lane, channels, width, x_stride, VERTICAL, CHANNELS_LAST)
    dx_ptr += _offset(lane, channels, width, dx_stride, VERTICAL, CHANNELS_LAST)
    x = tl.load(x_ptr + place.to(INDEX) * x_stride[3], inside, other=0).to(ACC)
    dy = tl.load(dy_ptr + place.to(INDEX) * dy_stride[3], inside, other=0).to(ACC)
    known = tl.where(inside, place, -1)
    if FIRST:
        _, at = tl.associative_scan((x, known), 1, _first_maximum, REVERSE)
    else:
        _, at = tl.associative_scan((x, known), 1, _last_maximum, REVERSE)
    _, total = tl.associative_scan((at, dy), 1, _add_up_alike, not REVERSE)
    dx = tl.where(at == place, total, 0)
    tl.store(dx_ptr + place.to(INDEX) * dx_stride[3], dx.to(dx_ptr.dtype.element_ty), inside)


def corner_pool_fwd(x: Tensor, y: Tensor, dim: int, reverse: bool, add: bool = False) -> None:
    """Writes, or adds, the running maxima of x along dim 2 or 3 to y."""
    for launch in fwd_launches(x, y, dim, reverse, add):
        launch.run()


def corner_pool_sum_fwd(vertical: Tensor, horizontal: Tensor, y: Tensor, reverse: bool) -> None:
    """Writes the running maxima of one tensor along dim 2, plus those of another along dim 3, to y."""
    for launch in sum_launches(vertical, horizontal, y, reverse):
        launch.run()


def corner_pool_bwd(dy: Tensor, x: Tensor, dx: Tensor, dim: int, reverse: bool, first: bool) -> None:
    """Writes dx, the gradient of sum(dy * running maxima of x); of equal ones, the first or last receives it."""
    for launch in bwd_launches(dy, x, dx, dim, reverse, first):
        launch.run()


def fwd_launches(x: Tensor, y: Tensor, dim: int, reverse: bool, add: bool = False) -> list[Launch]:
    """The kernel that writes y, unless that is empty."""
    constants = _constants(x, y, dim, reverse) | {"ADD": add}
    if y.stride(dim) == 1:  # what is scanned lies side by side
        block_s = min(128, max(2, triton.next_power_of_2(x.shape[dim])))
        constants |= {"VEC": _vector(y), "BLOCK_L": max(1, 1024 // block_s), "BLOCK_S": block_s}
    else:
        constants |= {"VEC": 1, "BLOCK_L": 128, "BLOCK_S": 1}
    return _launches(_corner_pool_fwd_kernel, (x, y), y, dim, (_lowest(x),), constants)


def sum_launches(vertical: Tensor, horizontal: Tensor, y: Tensor, reverse: bool) -> list[Launch]:
    """The kernel that writes y, unless that is empty; for very long rows, the two that write and add."""
    n, c, h, w = y.shape
    if w > LONGEST:
        return fwd_launches(vertical, y, 2, reverse) + fwd_launches(horizontal, y, 3, reverse, True)
    if y.numel() == 0:
        return []
    block_s = max(2, triton.next_power_of_2(w))
    # Tiles of 16 KiB, or smaller, of 256 programs, whose runs of channels have 32 bytes.
    least = 1 if y.stride(3) == 1 else 32 // y.element_size()
    block_p = max(least, min(2**14 // (y.element_size() * block_s), triton.next_power_of_2(n * c) // 256), 1)
    constants = {"REVERSE": reverse, "INDEX": index_type(vertical, horizontal, y), "ACC": _acc(y), "VEC": _vector(y)}
    constants |= {"BLOCK_P": block_p, "BLOCK_S": block_s, "num_warps": 8 if block_p * block_s > 2048 else 4}
    tensors = vertical, horizontal, y
    args = *tensors, n * c, c, h, w, *(t.stride() for t in tensors), _lowest(y)
    return [Launch(_corner_pool_sum_kernel, (triton.cdiv(n * c, block_p),), args, constants)]


def bwd_launches(dy: Tensor, x: Tensor, dx: Tensor, dim: int, reverse: bool, first: bool) -> list[Launch]:
    """The kernel that writes dx, unless that is empty."""
    constants = _constants(x, dx, dim, reverse) | {"FIRST": first}
    tensors = dy, x, dx
    if dim == 3 and dx.stride(3) == 1 and dx.shape[3] <= LONGEST:
        block_s = max(2, triton.next_power_of_2(dx.shape[3]))
        constants |= {"VEC": _vector(dx), "BLOCK_L": max(1, 1024 // block_s), "BLOCK_S": block_s}
        return _launches(_corner_pool_bwd_rows_kernel, tensors, dx, dim, (), constants)
    return _launches(_corner_pool_bwd_kernel, tensors, dx, dim, (), constants | {"BLOCK_L": 128})


def _vector(y: Tensor) -> int:
    """How many columns a thread may take at once, so that their masks are the same."""
    size = 16 // y.element_size()
    return size if y.shape[3] % size == 0 else 1


def _constants(x: Tensor, y: Tensor, dim: int, reverse: bool) -> dict[str, Any]:
    last = y.stride(1) <= y.stride(3)
    return {"VERTICAL": dim == 2, "REVERSE": reverse, "CHANNELS_LAST": last, "ACC": _acc(x)}


def _acc(x: Tensor) -> tl.dtype:
    return sum_type(x) if x.is_floating_point() else tl.int64 if x.element_size() == 8 else tl.int32


def _lowest(x: Tensor) -> float | int:
    if x.is_floating_point():
        return float("-inf")
    return -(2**63) if x.element_size() == 8 else -(2**31)


def _launches(
    kernel: triton.JITFunction, tensors: tuple[Tensor, ...], y: Tensor, dim: int, more: tuple, constants: dict[str, Any]
) -> list[Launch]:
    """A kernel with a program for each BLOCK_L lanes."""
    if y.numel() == 0:
        return []
    lanes = y.numel() // y.shape[dim]
    sizes = lanes, y.shape[1], y.shape[5 - dim], y.shape[dim]
    args = *tensors, *sizes, *(t.stride() for t in tensors), *more
    grid = (triton.cdiv(lanes, constants["BLOCK_L"]),)
    return [Launch(kernel, grid, args, constants | {"INDEX": index_type(*tensors), "num_warps": 4})]

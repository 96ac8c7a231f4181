"""Batch normalisation and the activation after it: y of x; sums over dy and x; dx of both.

A program walks over its tiles (_batch_norm_tiles.py) with its channels' numbers in registers. fwd: reads x and writes
y once, 2 b n c l bytes. dx: the same, out of dy and x, 3 b n c l bytes. reduce: reads dy and x, 2 b n c l bytes, adds up
in each of its lanes, then over those, and stores two sums per channel; a second kernel adds up the parts, in an order
that depends on shapes and layout alone.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._activation import activate, activate_backward
from ._batch_norm_tiles import MERGING, SIZES, column_of, store_part, sum_lanes, sum_parts, tile, tiles
from ._launch import Launch


@triton.jit
def _vector(ptr, c, channels, otherwise, ACC: tl.constexpr):
    """A vector's values of channels c; `otherwise` where there is no vector."""
    if ptr is None:
        values = tl.full(c.shape, otherwise, ACC)
    else:
        values = tl.load(ptr + c, c < channels, other=0.0).to(ACC)
    return values


@triton.jit
def _r(var_ptr, c, channels, EPS: tl.constexpr, ACC: tl.constexpr):
    var = _vector(var_ptr, c, channels, 1.0, ACC) + EPS
    if ACC == tl.float64:  # whose sqrt is exactly rounded, as sqrt_rn is of float32
        root = tl.sqrt(var)
    else:
        root = tl.sqrt_rn(var)
    return 1.0 / root


@triton.jit
def _program_from_end():
    """The second pass over x goes from its end to its begin: what the first read last may still be in the L2 cache."""
    return tl.num_programs(0) - 1 - tl.program_id(0)


@triton.jit(do_not_specialize=SIZES)
def _sync_batch_norm_fwd_kernel(
    x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, y_ptr, rows, channels, space, steps,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, LAST: tl.constexpr, VECTOR: tl.constexpr, INDEX: tl.constexpr,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    part, column, c = column_of(_program_from_end(), channels, LAST, BLOCK_W)
    mean = _vector(mean_ptr, c, channels, 0.0, ACC)
    scale = _r(var_ptr, c, channels, EPS, ACC) * _vector(weight_ptr, c, channels, 1.0, ACC)
    bias = _vector(bias_ptr, c, channels, 0.0, ACC)
    for step in range(steps):
        at, inside = tile(part * steps + step, column, rows, channels, space, LAST, VECTOR, INDEX, BLOCK_R, BLOCK_W)
        z = (tl.load(x_ptr + at, inside, other=0.0).to(ACC) - mean) * scale + bias
        tl.store(y_ptr + at, activate(z, ACTIVATION), inside)


@triton.jit(do_not_specialize=SIZES)
def _sync_batch_norm_reduce_kernel(
    dy_ptr, x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, parts_ptr, rows, channels, space, steps,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, LAST: tl.constexpr, VECTOR: tl.constexpr, INDEX: tl.constexpr,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    part, column, c = column_of(tl.program_id(0), channels, LAST, BLOCK_W)
    mean = _vector(mean_ptr, c, channels, 0.0, ACC)
    r = _r(var_ptr, c, channels, EPS, ACC)
    scale = r * _vector(weight_ptr, c, channels, 1.0, ACC)
    bias = _vector(bias_ptr, c, channels, 0.0, ACC)
    sum_dz = tl.zeros((BLOCK_R, BLOCK_W), ACC)
    sum_dz_d = tl.zeros((BLOCK_R, BLOCK_W), ACC)
    for step in range(steps):
        at, inside = tile(part * steps + step, column, rows, channels, space, LAST, VECTOR, INDEX, BLOCK_R, BLOCK_W)
        dy = tl.load(dy_ptr + at, inside, other=0.0).to(ACC)
        d = tl.load(x_ptr + at, inside, other=0.0).to(ACC) - mean
        dz = tl.where(inside, activate_backward(dy, d * scale + bias, ACTIVATION), 0.0)
        sum_dz += dz
        sum_dz_d += tl.where(inside, dz * d, 0.0)
    store_part(parts_ptr, part, channels, c, sum_lanes(sum_dz, LAST), sum_lanes(sum_dz_d, LAST) * r)


@triton.jit(do_not_specialize=SIZES)
def _sync_batch_norm_sum_kernel(parts_ptr, sums_ptr, channels, parts, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    sum_dz, sum_dz_xhat = sum_parts(parts_ptr, parts, channels, c, BLOCK_P)
    tl.store(sums_ptr + c, sum_dz, c < channels)
    tl.store(sums_ptr + channels + c, sum_dz_xhat, c < channels)


@triton.jit(do_not_specialize=SIZES)
def _sync_batch_norm_dx_kernel(
    dy_ptr, x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, sums_ptr, count, dx_ptr, rows, channels, space, steps,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, LAST: tl.constexpr, VECTOR: tl.constexpr, INDEX: tl.constexpr,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr, COUNT_IS_TENSOR: tl.constexpr,
):  # fmt: skip
    part, column, c = column_of(_program_from_end(), channels, LAST, BLOCK_W)
    n = tl.load(count) if COUNT_IS_TENSOR else tl.zeros((), ACC) + count
    # z = w xhat + b with mean and var functions of x: dx = w r (dz - mean(dz) - xhat mean(dz xhat)).
    mean = _vector(mean_ptr, c, channels, 0.0, ACC)
    r = _r(var_ptr, c, channels, EPS, ACC)
    scale = r * _vector(weight_ptr, c, channels, 1.0, ACC)
    bias = _vector(bias_ptr, c, channels, 0.0, ACC)
    shift = _vector(sums_ptr, c, channels, 0.0, ACC) / n
    slope = r * (_vector(sums_ptr + channels, c, channels, 0.0, ACC) / n)
    for step in range(steps):
        at, inside = tile(part * steps + step, column, rows, channels, space, LAST, VECTOR, INDEX, BLOCK_R, BLOCK_W)
        dy = tl.load(dy_ptr + at, inside, other=0.0).to(ACC)
        d = tl.load(x_ptr + at, inside, other=0.0).to(ACC) - mean
        dz = activate_backward(dy, d * scale + bias, ACTIVATION)
        tl.store(dx_ptr + at, (dz - shift - d * slope) * scale, inside)


def sync_batch_norm_fwd(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, y: Tensor, eps: float,
    activation: str | None,
) -> None:  # fmt: skip
    """Writes y = activation((x - mean) / sqrt(var + eps) * weight + bias)."""
    for launch in fwd_launches(x, mean, var, weight, bias, y, eps, activation):
        launch.run()


def sync_batch_norm_reduce(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, sums: Tensor,
    eps: float, activation: str | None,
) -> None:  # fmt: skip
    """Writes sums (2, c): of dz, and of dz * xhat."""
    for launch in reduce_launches(dy, x, mean, var, weight, bias, sums, eps, activation):
        launch.run()


def sync_batch_norm_dx(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, sums: Tensor,
    count: Tensor | int, dx: Tensor, eps: float, activation: str | None,
) -> None:  # fmt: skip
    """Writes dx, out of the sums over all `count` values."""
    for launch in dx_launches(dy, x, mean, var, weight, bias, sums, count, dx, eps, activation):
        launch.run()


def _adjacent(*vectors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in vectors]


def fwd_launches(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, y: Tensor, eps: float,
    activation: str | None,
) -> list[Launch]:  # fmt: skip
    """The kernel that writes y, unless that is empty."""
    if y.numel() == 0:
        return []
    t = tiles(x)
    args = x, *_adjacent(mean, var, weight, bias), y, *t.sizes
    return [Launch(_sync_batch_norm_fwd_kernel, t.grid, args, t.constants | {"EPS": eps, "ACTIVATION": activation})]


def reduce_launches(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, sums: Tensor,
    eps: float, activation: str | None,
) -> list[Launch]:  # fmt: skip
    """Both kernels; without values only the second, without channels none."""
    t = tiles(x)
    if t.channels == 0:
        return []
    parts = t.empty_parts(x)
    args = dy, x, *_adjacent(mean, var, weight, bias), parts, *t.sizes
    constants = t.constants | {"EPS": eps, "ACTIVATION": activation}
    return [
        *([Launch(_sync_batch_norm_reduce_kernel, t.grid, args, constants)] if t.parts else []),
        Launch(_sync_batch_norm_sum_kernel, t.merging, (parts, sums, t.channels, t.parts), MERGING),
    ]


def dx_launches(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, sums: Tensor,
    count: Tensor | int, dx: Tensor, eps: float, activation: str | None,
) -> list[Launch]:  # fmt: skip
    """The kernel that writes dx, unless that is empty."""
    if dx.numel() == 0:
        return []
    t = tiles(x)
    args = dy, x, *_adjacent(mean, var, weight, bias), sums, count, dx, *t.sizes
    constants = {"EPS": eps, "ACTIVATION": activation, "COUNT_IS_TENSOR": isinstance(count, Tensor)}
    return [Launch(_sync_batch_norm_dx_kernel, t.grid, args, t.constants | constants)]

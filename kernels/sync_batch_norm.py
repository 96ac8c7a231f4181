"""Batch normalisation and the activation after it: y of x; sums over dy and x; dx of both.

fwd: a program owns a tile [BLOCK_R values, BLOCK_C channels] of y: reads x and writes y once, 2 b n c l bytes. dx: the
same, out of dy and x, 3 b n c l bytes. reduce: a program adds up STEPS tiles of dy and x, 2 b n c l bytes, and stores
two sums per channel; a second kernel adds up the parts, in an order that depends on shapes and layout alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activation import activate, activate_backward
from ._launch import Launch
from .batch_moments import SIZES, offsets, tiles


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


@triton.jit(do_not_specialize=SIZES)
def _sync_batch_norm_fwd_kernel(
    x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, y_ptr, values, channels, space,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    i = tl.program_id(1).to(INDEX) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    inside = (i < values) & (c < channels)
    at = offsets(i, c, channels, space, INDEX, LAST)
    x = tl.load(x_ptr + at, inside, other=0.0).to(ACC)
    scale = _r(var_ptr, c, channels, EPS, ACC) * _vector(weight_ptr, c, channels, 1.0, ACC)
    z = (x - _vector(mean_ptr, c, channels, 0.0, ACC)) * scale + _vector(bias_ptr, c, channels, 0.0, ACC)
    tl.store(y_ptr + at, activate(z, ACTIVATION), inside)


@triton.jit(do_not_specialize=SIZES)
def _sync_batch_norm_reduce_kernel(
    dy_ptr, x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, parts_ptr, values, channels, space, steps,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    part = tl.program_id(1).to(INDEX)
    mean = _vector(mean_ptr, c, channels, 0.0, ACC)
    r = _r(var_ptr, c, channels, EPS, ACC)
    scale = r * _vector(weight_ptr, c, channels, 1.0, ACC)
    bias = _vector(bias_ptr, c, channels, 0.0, ACC)
    sum_dz = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    sum_dz_xhat = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    for step in range(steps):
        i = (part * steps + step) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None].to(INDEX)
        inside = (i < values) & (c < channels)
        at = offsets(i, c, channels, space, INDEX, LAST)
        dy = tl.load(dy_ptr + at, inside, other=0.0).to(ACC)
        d = tl.load(x_ptr + at, inside, other=0.0).to(ACC) - mean
        dz = tl.where(inside, activate_backward(dy, d * scale + bias, ACTIVATION), 0.0)
        sum_dz += dz
        sum_dz_xhat += tl.where(inside, dz * d, 0.0)
    at = parts_ptr + 2 * part * channels + c
    tl.store(at, tl.sum(sum_dz, axis=0)[None, :], c < channels)
    tl.store(at + channels, tl.sum(sum_dz_xhat, axis=0)[None, :] * r, c < channels)


@triton.jit(do_not_specialize=SIZES)
def _sync_batch_norm_sum_kernel(parts_ptr, sums_ptr, parts, size, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr):
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    acc = tl.zeros((BLOCK_P, BLOCK), sums_ptr.dtype.element_ty)
    for first in range(0, parts, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)[:, None]
        acc += tl.load(parts_ptr + p.to(tl.int64) * size + k, (p < parts) & (k < size), other=0.0)
    tl.store(sums_ptr + k, tl.sum(acc, axis=0)[None, :], k < size)


@triton.jit(do_not_specialize=SIZES)
def _sync_batch_norm_dx_kernel(
    dy_ptr, x_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, sums_ptr, count, dx_ptr, values, channels, space,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, COUNT_IS_TENSOR: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    i = tl.program_id(1).to(INDEX) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    inside = (i < values) & (c < channels)
    at = offsets(i, c, channels, space, INDEX, LAST)
    n = tl.load(count) if COUNT_IS_TENSOR else tl.zeros((), ACC) + count
    # z = w xhat + b with mean and var functions of x: dx = w r (dz - mean(dz) - xhat mean(dz xhat)).
    r = _r(var_ptr, c, channels, EPS, ACC)
    scale = r * _vector(weight_ptr, c, channels, 1.0, ACC)
    shift = _vector(sums_ptr, c, channels, 0.0, ACC) / n
    slope = r * (_vector(sums_ptr + channels, c, channels, 0.0, ACC) / n)
    dy = tl.load(dy_ptr + at, inside, other=0.0).to(ACC)
    d = tl.load(x_ptr + at, inside, other=0.0).to(ACC) - _vector(mean_ptr, c, channels, 0.0, ACC)
    dz = activate_backward(dy, d * scale + _vector(bias_ptr, c, channels, 0.0, ACC), ACTIVATION)
    dx = (dz - shift - d * slope) * scale
    tl.store(dx_ptr + at, dx, inside)


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
    grid = t.grid[0], triton.cdiv(t.values, t.block_r)
    constants = t.constants(x, y) | {"EPS": eps, "ACTIVATION": activation}
    return [Launch(_sync_batch_norm_fwd_kernel, grid, args, constants)]


def reduce_launches(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, sums: Tensor,
    eps: float, activation: str | None,
) -> list[Launch]:  # fmt: skip
    """Both kernels, unless there are no channels."""
    t = tiles(x)
    if t.channels == 0:
        return []
    size = 2 * t.channels
    parts = torch.empty((t.parts, size), dtype=sums.dtype, device=x.device)
    args = dy, x, *_adjacent(mean, var, weight, bias), parts, *t.sizes, t.steps
    constants = t.constants(x, parts) | {"EPS": eps, "ACTIVATION": activation}
    blocks = {"BLOCK_P": min(64, triton.next_power_of_2(t.parts)), "BLOCK": 32}
    return [
        Launch(_sync_batch_norm_reduce_kernel, t.grid, args, constants),
        Launch(_sync_batch_norm_sum_kernel, (triton.cdiv(size, 32),), (parts, sums, t.parts, size), blocks),
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
    grid = t.grid[0], triton.cdiv(t.values, t.block_r)
    constants = t.constants(x, dx) | {
        "EPS": eps,
        "ACTIVATION": activation,
        "COUNT_IS_TENSOR": isinstance(count, Tensor),
    }
    return [Launch(_sync_batch_norm_dx_kernel, grid, args, constants)]

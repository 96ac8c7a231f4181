"""Precision gating: numbers to two planes of bytes, and a convolution of the planes on int8 tensor cores.

quantize: a program takes BLOCK numbers of a dense [n, h, w, c] plane; it reads the tensor once and writes two bytes a
number. The input's planes are its high and low part; the weight's are q / 2 and q % 2, since 9 bits do not fit a byte.
conv: a program owns a tile [BLOCK_P pixels, BLOCK_O output channels] of one group; its sums are integers. The low part
is skipped where no gate of the tile is open. Planes are read once from memory, again from the caches by each tap and
tile, and y is written once. The count of open gates is an atomic sum of integers: the same in any order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._convolution import SIZES, Pair, sizes
from ._launch import Launch, index_type, sum_type


@triton.jit
def _divide(a, b, ACC: tl.constexpr):
    if ACC == tl.float64:
        quotient = a / b
    else:
        quotient = tl.div_rn(a, b)  # as IEEE 754 wants it: `/` may be off by a bit
    return quotient


@triton.jit(do_not_specialize=SIZES)
def _quantize_kernel(
    x_ptr, scale_ptr, high_ptr, low_ptr, count, channels, height, width, x_stride,
    LEVELS: tl.constexpr, LOW_BITS: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    c, pixel = at % channels, at // channels
    j, i, n = pixel % width, pixel // width % height, pixel // width // height
    x_ptr += n * x_stride[0] + c * x_stride[1] + i * x_stride[2] + j * x_stride[3]
    x = tl.load(x_ptr, at < count, other=0.0).to(ACC)
    share = _divide(tl.abs(x), tl.load(scale_ptr).to(ACC) + tl.zeros_like(x), ACC)
    share = tl.where(share > 0, tl.where(share < 1, share, 1.0), 0.0)  # NaN: 0
    # Adding 1.5 * 2^52 (float32: 2^23) rounds to an integer, ties to even.
    magic: tl.constexpr = 6755399441055744.0 if ACC == tl.float64 else 12582912.0
    magnitude = ((share * LEVELS + magic) - magic).to(tl.int32)
    sign = tl.where(x < 0, -1, 1)
    tl.store(high_ptr + at, (sign * (magnitude >> LOW_BITS)).to(tl.int8), at < count)
    tl.store(low_ptr + at, (sign * (magnitude & ((1 << LOW_BITS) - 1))).to(tl.int8), at < count)


@triton.jit
def _sums(
    x_ptr, upper_ptr, lower_ptr, n, i, j, o, group, height, width, in_tile,
    GROUPS: tl.constexpr, C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Of x's part [n, h, w, c] with w = 2 upper + lower [o, kh, kw, c]."""
    upper = tl.zeros((BLOCK_P, BLOCK_O), tl.int32)
    lower = tl.zeros((BLOCK_P, BLOCK_O), tl.int32)
    for tap in range(KH * KW):
        row = i * STRIDE[0] - PADDING[0] + tap // KW * DILATION[0]
        column = j * STRIDE[1] - PADDING[1] + tap % KW * DILATION[1]
        valid = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (n >= 0)
        x_at = x_ptr + ((n * height + row) * width + column) * (GROUPS * C) + group * C
        for first in range(0, C, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            x = tl.load(x_at[:, None] + c[None, :], valid[:, None] & (c < C)[None, :], other=0)
            w_at = ((o * (KH * KW) + tap) * C)[None, :] + c[:, None]
            w_mask = in_tile[None, :] & (c < C)[:, None]
            upper = tl.dot(x, tl.load(upper_ptr + w_at, w_mask, other=0), upper, out_dtype=tl.int32)
            lower = tl.dot(x, tl.load(lower_ptr + w_at, w_mask, other=0), lower, out_dtype=tl.int32)
    return 2 * upper + lower


@triton.jit(do_not_specialize=SIZES)
def _precision_gate_conv2d_fwd_kernel(
    high_ptr, low_ptr, upper_ptr, lower_ptr, threshold_ptr, bias_ptr, x_scale_ptr, w_scale_ptr, y_ptr, open_ptr,
    batch, height, width, out_height, out_width, threshold_stride, bias_stride, y_stride,
    GROUPS: tl.constexpr, C: tl.constexpr, O: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    LEVELS: tl.constexpr, LOW_BITS: tl.constexpr, WEIGHT_LEVELS: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(INDEX)
    tiles: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    group = pid // tiles % GROUPS
    in_group = pid % tiles * BLOCK_O + tl.arange(0, BLOCK_O)
    in_tile, o = in_group < O, group * O + in_group
    pixel = pid // tiles // GROUPS * BLOCK_P + tl.arange(0, BLOCK_P)
    n, i, j = pixel // out_width // out_height, pixel // out_width % out_height, pixel % out_width
    n = tl.where(n < batch, n, -1)  # nothing is read or written
    inside = (n >= 0)[:, None] & in_tile[None, :]

    x_scale = tl.load(x_scale_ptr).to(ACC)
    w_scale = tl.load(w_scale_ptr).to(ACC)
    factor = _divide(x_scale, tl.full((), LEVELS, ACC), ACC) * _divide(w_scale, tl.full((), WEIGHT_LEVELS, ACC), ACC)
    sums = _sums(
        high_ptr, upper_ptr, lower_ptr, n, i, j, o, group, height, width, in_tile,
        GROUPS, C, KH, KW, STRIDE, PADDING, DILATION, BLOCK_P, BLOCK_O, BLOCK_C,
    ) * (1 << LOW_BITS)  # fmt: skip
    threshold = tl.load(threshold_ptr + o * threshold_stride, in_tile, other=0.0).to(ACC)
    gate = inside & (sums.to(ACC) * factor > threshold[None, :])
    count = tl.sum(tl.sum(gate.to(tl.int32), 1), 0)
    if count > 0:
        low = _sums(
            low_ptr, upper_ptr, lower_ptr, n, i, j, o, group, height, width, in_tile,
            GROUPS, C, KH, KW, STRIDE, PADDING, DILATION, BLOCK_P, BLOCK_O, BLOCK_C,
        )  # fmt: skip
        sums += tl.where(gate, low, 0)
        tl.atomic_add(open_ptr, count.to(tl.int64))
    y = sums.to(ACC) * factor
    if bias_ptr is not None:
        y += tl.load(bias_ptr + o * bias_stride, in_tile, other=0.0).to(ACC)[None, :]
    y_at = (n * y_stride[0] + i * y_stride[2] + j * y_stride[3])[:, None] + (o * y_stride[1])[None, :]
    tl.store(y_ptr + y_at, y, inside)


def precision_gate_conv2d_fwd(
    x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None, scale: Tensor | None, y: Tensor, open: Tensor,
    stride: Pair, padding: Pair, dilation: Pair, groups: int, activation_bits: int, high_bits: int, weight_bits: int,
) -> None:  # fmt: skip
    """Writes y = precision_gate_conv2d(x, w, threshold, bias), and adds the number of open gates to open, which is 0."""
    if y.numel() == 0:
        return
    # What nothing is read of has no largest number either.
    x_scale = _largest(x) if scale is None and x.numel() else y.new_zeros(()) if scale is None else scale
    geometry = stride, padding, dilation, groups
    for launch in fwd_launches(
        x, w, threshold, bias, x_scale, _largest(w), y, open, *geometry, activation_bits, high_bits, weight_bits
    ):
        launch.run()


def _largest(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, float("inf"))


def fwd_launches(
    x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None, x_scale: Tensor, w_scale: Tensor, y: Tensor,
    open: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int,
    activation_bits: int, high_bits: int, weight_bits: int,
) -> list[Launch]:  # fmt: skip
    """The kernels that write x's planes, w's planes, and y."""
    low_bits = activation_bits - high_bits
    launches: list[Launch] = []
    planes: list[Tensor] = []
    for t, scale, bits, low in (x, x_scale, activation_bits, low_bits), (w, w_scale, weight_bits, 1):
        pair = torch.empty((2, t.numel()), dtype=torch.int8, device=t.device)
        planes += pair.unbind()
        constants = {"LEVELS": 2**bits - 1, "LOW_BITS": low, "INDEX": index_type(t), "ACC": sum_type(t), "BLOCK": 1024}
        args = t, scale, *pair.unbind(), t.numel(), *t.shape[1:], t.stride()
        # A fused multiply-add would round the product and the sum at once.
        constants["enable_fp_fusion"] = False
        if t.numel() > 0:
            launches.append(Launch(_quantize_kernel, (triton.cdiv(t.numel(), 1024),), args, constants))
    outputs, channels = w.shape[0] // groups, w.shape[1]
    block_o = min(64, max(16, triton.next_power_of_2(outputs)))
    constants = {
        "GROUPS": groups, "C": channels, "O": outputs, "KH": w.shape[2], "KW": w.shape[3],
        "STRIDE": tuple(stride), "PADDING": tuple(padding), "DILATION": tuple(dilation),
        "LEVELS": 2**activation_bits - 1, "LOW_BITS": low_bits, "WEIGHT_LEVELS": 2**weight_bits - 1,
        "INDEX": index_type(x, w, y), "ACC": sum_type(x), "BLOCK_P": 64, "BLOCK_O": block_o,
        "BLOCK_C": min(64, max(32, triton.next_power_of_2(channels))), "enable_fp_fusion": False,
        "num_warps": 8 if block_o == 64 else 4,  # two sums for each of a tile's results are in registers
    }  # fmt: skip
    bias_stride = 0 if bias is None else bias.stride(0)
    args = (
        *planes, threshold, bias, x_scale, w_scale, y, open, *sizes(x, y), threshold.stride(0), bias_stride, y.stride()
    )  # fmt: skip
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    programs = triton.cdiv(pixels, 64) * groups * triton.cdiv(outputs, block_o)
    return [*launches, Launch(_precision_gate_conv2d_fwd_kernel, (programs,), args, constants)]

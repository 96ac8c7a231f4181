"""Grouped convolution: forward and input gradient; the weight's and bias's are in ``_grouped_conv2d_dw.py``.

fwd: a program owns a tile [BLOCK_P pixels, BLOCK_C channels] of y. dx: the same of dx, which gathers from dy. Both read
their input once from memory (each tap, and each output channel of the group, reads it again, from the caches) and write
their output once; w is small. Taps that fall outside add nothing, even where the weight is infinite. No atomics: a
result's bits never change.

Groups follow from shapes: DEPTH input channels and M output channels make one. Depthwise: DEPTH is 1.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._activation import activate
from ._convolution import SIZES, Pair, block, channels_adjacent, constants, coordinates, pixels, sizes, tile
from ._grouped_conv2d_dw import dw_launches
from ._launch import Launch, index_type


@triton.jit(do_not_specialize=SIZES)
def _grouped_conv2d_fwd_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, batch, height, width, out_height, out_width, outputs,
    x_stride, w_stride, bias_stride, y_stride,
    DEPTH: tl.constexpr, M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    ACTIVATION: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    p, o = tile(outputs, INDEX, BLOCK_P, BLOCK_C)
    n, i, j = coordinates(p, out_height, out_width)
    inside = (n < batch) & (o < outputs)
    x_ptr += n * x_stride[0] + o // M * DEPTH * x_stride[1]
    w_ptr += o * w_stride[0]
    acc = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for kh in range(KH):
        row = i * STRIDE[0] - PADDING[0] + kh * DILATION[0]
        in_row = inside & (row >= 0) & (row < height)
        for kw in tl.static_range(KW):
            column = j * STRIDE[1] - PADDING[1] + kw * DILATION[1]
            valid = in_row & (column >= 0) & (column < width)
            for k in range(DEPTH):
                at = k * x_stride[1] + row * x_stride[2] + column * x_stride[3]
                x = tl.load(x_ptr + at, valid, other=0.0).to(ACC)
                at = k * w_stride[1] + kh * w_stride[2] + kw * w_stride[3]
                w = tl.load(w_ptr + at, o < outputs, other=0.0).to(ACC)
                acc = tl.where(valid, acc + x * w, acc)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + o * bias_stride, o < outputs, other=0.0).to(ACC)
    y_ptr += n * y_stride[0] + o * y_stride[1] + i * y_stride[2] + j * y_stride[3]
    tl.store(y_ptr, activate(acc, ACTIVATION), inside)


@triton.jit(do_not_specialize=SIZES)
def _grouped_conv2d_dx_kernel(
    dy_ptr, w_ptr, dx_ptr, batch, height, width, out_height, out_width, channels,
    dy_stride, w_stride, dx_stride,
    DEPTH: tl.constexpr, M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    p, c = tile(channels, INDEX, BLOCK_P, BLOCK_C)
    n, i, j = coordinates(p, height, width)
    inside = (n < batch) & (c < channels)
    dy_ptr += n * dy_stride[0]
    w_ptr += c % DEPTH * w_stride[1]
    acc = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for m in range(M):
        o = c // DEPTH * M + m
        for kh in range(KH):
            # Through tap kh, x[i] met y[row / stride]: nothing, unless that is a whole number.
            row = i + PADDING[0] - kh * DILATION[0]
            in_row = inside & (row >= 0) & (row % STRIDE[0] == 0) & (row // STRIDE[0] < out_height)
            for kw in tl.static_range(KW):
                column = j + PADDING[1] - kw * DILATION[1]
                valid = in_row & (column >= 0) & (column % STRIDE[1] == 0) & (column // STRIDE[1] < out_width)
                at = o * dy_stride[1] + row // STRIDE[0] * dy_stride[2] + column // STRIDE[1] * dy_stride[3]
                dy = tl.load(dy_ptr + at, valid, other=0.0).to(ACC)
                at = o * w_stride[0] + kh * w_stride[2] + kw * w_stride[3]
                w = tl.load(w_ptr + at, c < channels, other=0.0).to(ACC)
                acc = tl.where(valid, acc + dy * w, acc)
    dx_ptr += n * dx_stride[0] + c * dx_stride[1] + i * dx_stride[2] + j * dx_stride[3]
    tl.store(dx_ptr, acc, inside)


def grouped_conv2d_fwd(
    x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor,
    stride: Pair, padding: Pair, dilation: Pair, activation: str | None,
) -> None:  # fmt: skip
    """Writes y = activation(conv(x, w) + bias)."""
    for launch in fwd_launches(x, w, bias, y, stride, padding, dilation, activation):
        launch.run()


def grouped_conv2d_bwd(
    dy: Tensor, x: Tensor, w: Tensor, dx: Tensor, dw: Tensor, db: Tensor,
    stride: Pair, padding: Pair, dilation: Pair, need_dx: bool, need_dw: bool, need_db: bool,
) -> None:  # fmt: skip
    """Writes those of dx, dw and db that are needed: the gradients of sum(dy * (conv(x, w) + bias))."""
    launches = dx_launches(dy, w, dx, stride, padding, dilation) if need_dx else []
    if need_dw or need_db:
        needed = dw if need_dw else None, db if need_db else None
        launches += dw_launches(dy, x, w, *needed, stride, padding, dilation)
    for launch in launches:
        launch.run()


def fwd_launches(
    x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor,
    stride: Pair, padding: Pair, dilation: Pair, activation: str | None,
) -> list[Launch]:  # fmt: skip
    """The kernel that writes y, unless that is empty."""
    bias_stride = 0 if bias is None else bias.stride(0)
    args = x, w, bias, y, *sizes(x, y), y.shape[1], x.stride(), w.stride(), bias_stride, y.stride()
    compiled = constants(x, w, stride, padding, dilation)
    compiled |= {"KH": w.shape[2], "ACTIVATION": activation, "INDEX": index_type(x, w, bias, y)}
    return _launches(_grouped_conv2d_fwd_kernel, y, args, compiled)


def dx_launches(dy: Tensor, w: Tensor, dx: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> list[Launch]:
    """The kernel that writes dx, unless that is empty."""
    args = dy, w, dx, *sizes(dx, dy), dx.shape[1], dy.stride(), w.stride(), dx.stride()
    compiled = constants(dx, w, stride, padding, dilation)
    compiled |= {"KH": w.shape[2], "INDEX": index_type(dy, w, dx)}
    return _launches(_grouped_conv2d_dx_kernel, dx, args, compiled)


def _launches(kernel: triton.JITFunction, y: Tensor, args: tuple, compiled: dict) -> list[Launch]:
    """A kernel with a program for each tile of y."""
    if y.numel() == 0:
        return []
    # One warp a program where there would be too few programs to fill a GPU.
    num_warps = 4 if y.numel() >= 2**20 else 1
    # In channels_last a thread takes 16 bytes of channels at two pixels, so that a weight it loads serves twice.
    per_thread = 32 // y.element_size() if channels_adjacent(y) else 4
    block_p, block_c = block(y, y, 32 * num_warps * per_thread)
    programs = triton.cdiv(pixels(y), block_p) * triton.cdiv(y.shape[1], block_c)
    compiled |= {"BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": num_warps}
    return [Launch(kernel, (programs,), args, compiled)]

"""What the kernels of convolutions share: tiles of [pixels, channels], sizes and constants.

A pixel p is one of n * h * w; a tile's lanes run along what is adjacent in memory: in channels_last 32 channels
of a few pixels, otherwise pixels of one channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ._launch import sum_type

Pair = Sequence[int]

# Triton compiles a kernel anew for an integer that is 1 or divisible by 16. That pays for strides and for numbers of
# channels, which decide about vector loads; it does not for these.
SIZES = ["batch", "height", "width", "out_height", "out_width", "steps", "splits"]


def sizes(x: Tensor, y: Tensor) -> tuple[int, ...]:
    """batch, height, width, out_height and out_width of a convolution from x to y."""
    return x.shape[0], *x.shape[2:], *y.shape[2:]


def constants(x: Tensor, w: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> dict[str, Any]:
    """What a kernel is compiled for: channels of a group in x and in y, geometry and the type of its sums."""
    geometry = {"STRIDE": tuple(stride), "PADDING": tuple(padding), "DILATION": tuple(dilation)}
    group = {"DEPTH": w.shape[1], "M": w.shape[0] * w.shape[1] // x.shape[1]}
    return {**group, "KW": w.shape[3], **geometry, "ACC": sum_type(x)}


def pixels(y: Tensor) -> int:
    """n * h * w."""
    return y.shape[0] * y.shape[2] * y.shape[3]


def channels_adjacent(y: Tensor) -> bool:
    """Whether channels, rather than columns, lie next to each other."""
    return y.stride(1) <= y.stride(3)


def block(y: Tensor, layout: Tensor, elements: int) -> tuple[int, int]:
    """BLOCK_P and BLOCK_C: pixels and channels of a tile of y that suits tensors laid out like another."""
    block_c = min(32, triton.next_power_of_2(y.shape[1])) if channels_adjacent(layout) else 1
    return min(elements // block_c, triton.next_power_of_2(max(1, pixels(y)))), block_c


@triton.jit
def coordinates(p, height, width):
    row = p // width
    return row // height, row % height, p % width


@triton.jit
def tile(channels, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    # Programs next to each other take the channels of one pixel: neighbours in channels_last.
    pid = tl.program_id(0).to(INDEX)
    tiles = tl.cdiv(channels, BLOCK_C)
    p = pid // tiles * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    c = pid % tiles * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    return p, c

"""Arguments, layouts and output sizes that all convolutions share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Ints = Sequence[int]
Pair = int | Ints

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def pair(value: Pair) -> Ints:
    """An int as (int, int), a sequence of one likewise; anything else as it is."""
    if isinstance(value, int):
        return value, value
    return value if len(value) != 1 else (value[0], value[0])


def pad_input(input: Tensor, weight: Tensor, stride: Ints, padding: Pair | str, dilation: Ints) -> tuple[Tensor, Ints]:
    """Turns ``padding`` into a pair; where 'same' needs one more row or column at the end, adds it."""
    if not isinstance(padding, str):
        return input, pair(padding)
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'")
    if any(s != 1 for s in stride):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    rows, columns = (d * (k - 1) for d, k in zip(dilation, weight.shape[-2:], strict=True))
    if rows % 2 or columns % 2:
        input = F.pad(input, (0, columns % 2, 0, rows % 2))
    return input, (rows // 2, columns // 2)


def output_size(x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> tuple[int, int]:
    """Height and width of the convolution of x (n, c, h, w) with w (o, i, kh, kw); under 1: does not fit."""
    height = (x.shape[2] + 2 * padding[0] - dilation[0] * (w.shape[2] - 1) - 1) // stride[0] + 1
    width = (x.shape[3] + 2 * padding[1] - dilation[1] * (w.shape[3] - 1) - 1) // stride[1] + 1
    return height, width


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout that results take from x (n, c, h, w), by PyTorch's own rule for its strides.

    channels_last where the strides grow in the order c, w, h, n; contiguous otherwise and wherever
    the strides fit both.
    """
    (n, c, h, w), (sn, sc, sh, sw) = x.shape, x.stride()
    nested = 0 < sc and sc * c <= sw and sw * w <= sh and sh * h <= sn and n * c * h * w > 0
    return torch.channels_last if nested and sh * h != sc else torch.contiguous_format


def empty(x: Tensor, shape: Ints) -> Tensor:
    """An uninitialised tensor of that shape with x's type, device and layout."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))

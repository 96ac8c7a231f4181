"""Pooling for inference: in channels_last, and without the indices that PyTorch writes beside maxima."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastnets._op import is_plain
from fastnets.ops._convolution import Ints, pair
from fastnets.ops._packed import TYPES, avg_pool2d, compiled_kernels, max_pool2d


class PackedMaxPool2d(nn.MaxPool2d):
    """Takes the maximum of each window, by a kernel of our own for float32, bfloat16 and bytes in channels_last.

    Where that does not take the input (another layout or type, gradients, tracing), and with dilation or indices, it is
    ``torch.nn.MaxPool2d``.

    Args:
        kernel_size, stride, padding, dilation, return_indices, ceil_mode: as in ``torch.nn.MaxPool2d``.

    Returns:
        (from a call with input (n, c, h, w)) (n, c, h', w') in the type of the input.

    Raises:
        RuntimeError: (from a call) as ``torch.nn.MaxPool2d``.

    Example:
        >>> import torch
        >>> from fastnets.layers import PackedMaxPool2d
        >>> PackedMaxPool2d(3, 2, 1)(torch.ones(1, 8, 7, 7)).shape
        torch.Size([1, 8, 4, 4])
    """

    def forward(self, input: Tensor) -> Any:
        if self.fits() and _takes(input, (*TYPES, torch.uint8)):
            return max_pool2d.run(input, *_geometry(self), self.ceil_mode)
        return super().forward(input)

    def fits(self) -> bool:
        """Whether there is a kernel for it."""
        return tuple(pair(self.dilation)) == (1, 1) and not self.return_indices


class PackedAvgPool2d(nn.AvgPool2d):
    """Takes the mean of each window, by a kernel of our own for float32 and bfloat16 in channels_last.

    Where that does not take the input (another layout or type, gradients, tracing), and with a divisor, it is
    ``torch.nn.AvgPool2d``.

    Args:
        kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override: as in ``torch.nn.AvgPool2d``.

    Returns:
        (from a call with input (n, c, h, w)) (n, c, h', w') in the type of the input.

    Raises:
        RuntimeError: (from a call) as ``torch.nn.AvgPool2d``.

    Example:
        >>> import torch
        >>> from fastnets.layers import PackedAvgPool2d
        >>> PackedAvgPool2d(3, 2, 1)(torch.ones(1, 8, 7, 7)).shape
        torch.Size([1, 8, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.fits() and _takes(input):
            return avg_pool2d.run(input, *_geometry(self), self.ceil_mode, self.count_include_pad)
        return super().forward(input)

    def fits(self) -> bool:
        """Whether there is a kernel for it."""
        return self.divisor_override is None


def _takes(input: Tensor, types: Sequence[torch.dtype] = TYPES) -> bool:
    return not torch.compiler.is_compiling() and is_plain(input) and compiled_kernels(input, input, types)


def _geometry(pool: PackedMaxPool2d | PackedAvgPool2d) -> tuple[Ints, Ints, Ints]:
    return pair(pool.kernel_size), pair(pool.stride), pair(pool.padding)

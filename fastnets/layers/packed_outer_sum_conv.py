"""The pointwise convolution of strips of an image that are spread over it, for inference: SPNet's gate."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.layers.packed_conv import PackedConv2d
from fastnets.ops._packed import Packs, compiled_kernels, is_image_like, outer_sum_conv2d, pack_for_cpu


class PackedOuterSumConv2d(Packs, nn.Module):
    r"""Adds rows and columns of an image all over it, applies a ReLU and a pointwise convolution, and multiplies.

    .. math::
        y_{n, i, j} = x_{n, i, j} \cdot a(W \max(r_{n, i} + c_{n, j}, 0) + b)

    The sums are never in memory: a tile of pixels at a time is made in the first-level cache. Where the compiled kernel
    does not take the inputs (another layout than channels_last, another type than float32 and bfloat16, other shapes,
    gradients, tracing), each step runs in turn.

    Args:
        conv: a pointwise convolution, with its activation a. Its parameters are shared.

    Returns:
        (from a call with rows (n, c, h, 1), columns (n, c, 1, w) and, if any, factor x (n, o, h, w), whose memory is not
        written) (n, o, h, w) in the type of the rows.

    Raises:
        ValueError: the convolution is not pointwise.
        RuntimeError: (from a call) as ``torch.nn.Conv2d``.

    Paper: Q. Hou et al., "Strip Pooling: Rethinking Spatial Pooling for Scene Parsing", 2020,
    https://arxiv.org/abs/2003.13328

    Example:
        >>> import torch
        >>> from fastnets.layers import PackedConv2d, PackedOuterSumConv2d
        >>> layer = PackedOuterSumConv2d(PackedConv2d(32, 32, 1, activation="sigmoid"))
        >>> layer(torch.ones(1, 32, 5, 1), torch.ones(1, 32, 1, 6), torch.ones(1, 32, 5, 6)).shape
        torch.Size([1, 32, 5, 6])
    """

    def __init__(self, conv: PackedConv2d) -> None:
        super().__init__()
        if type(conv) is not PackedConv2d or not conv.is_pointwise():
            raise ValueError(f"expected a pointwise convolution, a PackedConv2d, but got {conv}")
        self.conv = conv

    def forward(self, rows: Tensor, columns: Tensor, factor: Tensor | None = None) -> Tensor:
        conv = self.conv
        if self._takes_packs(rows, columns, factor, conv.weight, conv.bias) and self._has_kernel(rows, columns, factor):
            panels, bias = self._pack("cpu", self._packs, conv.weight, conv.bias)
            return outer_sum_conv2d.run(rows, columns, panels, conv.out_channels, bias, conv.activation, factor)
        y = conv(F.relu(rows + columns))
        return y if factor is None else y * factor

    def _packs(self) -> Any:
        return pack_for_cpu(self.conv.weight, self.conv.bias)

    def _has_kernel(self, rows: Tensor, columns: Tensor, factor: Tensor | None) -> bool:
        conv = self.conv
        if not compiled_kernels(rows, conv.weight) or rows.shape[1] != conv.in_channels or conv.levels is not None:
            return False
        (n, c, h, w), width = rows.shape, columns.shape[-1]
        if w != 1 or width == 0 or not is_image_like(columns, (n, c, 1, width), rows.dtype):
            return False
        return factor is None or is_image_like(factor, (n, conv.out_channels, h, width), rows.dtype)

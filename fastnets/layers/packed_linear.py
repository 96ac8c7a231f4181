"""The linear layer for inference, on weights packed once."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.layers._int8 import InInt8, pack_linear
from fastnets.ops._packed import TYPES, Packs, cpu_kernels, pointwise_conv2d

_ROWS = 16  # up to which weights are what binds, however many they are
_PRODUCTS = 1 << 27  # up to which our product of matrices is the faster one


class PackedLinear(InInt8, Packs, nn.Linear):
    """Applies a linear layer on weights in the order that the kernel of pointwise convolutions reads.

    It is meant for few rows: one, of a classifier and one photo. The packed weights, as large as the others and kept
    beside them, are made by the first call and again after these have changed. Where the compiled kernels do not take
    the input (another type than float32 and bfloat16, rows that do not lie one after the other, more than 16 of them
    with more than 2**27 products that are not taken in int8, gradients, tracing), PyTorch's layer runs.

    Args:
        in_features, out_features, bias, device, dtype: as in ``torch.nn.Linear``.

    Returns:
        (from a call with input (..., in_features)) (..., out_features) in the type of the input.

    Raises:
        RuntimeError: (from a call) the input has another number of features than in_features.

    Example:
        >>> import torch
        >>> from fastnets.layers import PackedLinear
        >>> PackedLinear(8, 5)(torch.ones(2, 8)).shape
        torch.Size([2, 5])
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self._has_kernel(input):
            return F.linear(input, self.weight, self.bias)
        panels, bias, quantized = self._pack(
            self.levels, lambda: pack_linear(self.weight, self.bias, self.levels), self.weight, self.bias
        )
        pixels = input.view(-1, self.in_features, 1, 1)
        y = pointwise_conv2d.run(pixels, panels, self.out_features, bias, None, None, quantized, None)
        return y.view(*input.shape[:-1], self.out_features)

    def _has_kernel(self, input: Tensor) -> bool:
        if not self._takes_packs(input, self.weight, self.bias):
            return False
        fits = input.is_cpu and not input.is_nested and input.numel() > 0
        fits = fits and input.dtype == self.weight.dtype and input.dtype in TYPES
        fits = fits and input.dim() > 0 and input.shape[-1] == self.in_features and input.is_contiguous()
        products = input.numel() * self.out_features
        few = input.numel() <= _ROWS * self.in_features or products <= _PRODUCTS or self.levels is not None
        return fits and few and self.out_features > 0 and cpu_kernels()

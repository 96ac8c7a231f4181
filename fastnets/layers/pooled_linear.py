"""Global average pooling and the linear layer after it, for inference: the end of most classifiers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.layers._int8 import InInt8, pack_linear
from fastnets.ops._packed import Packs, compiled_kernels, pooled_linear


class PooledLinear(InInt8, Packs, nn.Linear):
    """Applies a linear layer to the mean over all pixels, on weights in the order that the kernel reads.

    Where the compiled kernels do not take the input (another layout than channels_last, another type than float32
    and bfloat16, gradients, tracing), it is two steps.

    Args:
        in_features, out_features, bias, device, dtype: as in ``torch.nn.Linear``.

    Returns:
        (from a call with input (n, in_features, h, w)) (n, out_features) in the type of the input.

    Raises:
        RuntimeError: (from a call) the input has other dimensions, or other channels than in_features.

    Example:
        >>> import torch
        >>> from fastnets.layers import PooledLinear
        >>> PooledLinear(8, 5)(torch.ones(2, 8, 7, 7)).shape
        torch.Size([2, 5])
    """

    # accelerate sets them to what the layer replaces: of images they change nothing, of other inputs they do.
    dims: tuple[int, int] = (2, 3)
    flattens: bool = False

    def forward(self, input: Tensor) -> Tensor:
        if self._has_kernel(input):
            panels, bias, quantized = self._pack(
                self.levels,
                lambda: pack_linear(self.weight, self.bias, self.levels),
                self.weight,
                self.bias,
            )
            return pooled_linear.run(input, panels, self.out_features, bias, quantized)
        mean = input.mean(self.dims, keepdim=self.flattens)
        return F.linear(mean.flatten(1) if self.flattens else mean, self.weight, self.bias)

    def _has_kernel(self, input: Tensor) -> bool:
        takes = self._takes_packs(input, self.weight, self.bias)
        return takes and compiled_kernels(input, self.weight) and input.shape[1] == self.in_features

"""The 1×1 convolution: a matrix product over the pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnets.layers.conv import Conv2d


class PointwiseConv2d(Conv2d):
    """Mixes the channels of every pixel: a 1×1 convolution that is one matrix product where that is faster.

    Args:
        in_channels: c, channels of the input.
        out_channels: o, channels of the output.
        bias: whether a learnt bias is added.
        device, dtype: of the parameters ``weight`` (o, c, 1, 1) and ``bias`` (o).

    Returns:
        (from a call) (n, o, h, w) in the type of the input (n, c, h, w).

    Raises:
        RuntimeError: (from a call) as ``torch.nn.Conv2d``.

    Example:
        >>> import torch
        >>> from fastnets.layers import PointwiseConv2d
        >>> PointwiseConv2d(4, 8)(torch.ones(1, 4, 5, 5)).shape
        torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias, device=device, dtype=dtype)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # For one photo on a CPU, what oneDNN spends on preparing a convolution is worth a sixth of its time;
        # for more its blocking wins. In channels_last both permutations are free, otherwise they would copy.
        one_photo = input.dim() == 4 and input.shape[:2] == (1, self.in_channels) and input.numel() > 0
        on_cpu = input.device.type == "cpu" and input.dtype == weight.dtype
        if one_photo and on_cpu and input.is_contiguous(memory_format=torch.channels_last):
            return F.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        return super()._conv_forward(input, weight, bias)

"""A layer that learns how much of its input to pass on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastnets.layers.conv import Conv2d


class HighwayConv2d(nn.Module):
    """Convolves, and mixes the result with the input as a second convolution says.

    y = relu(W_y ∗ x + b_y), g = sigmoid(W_g ∗ x + b_g), output g ⊙ y + (1 - g) ⊙ x.

    Args:
        channels: of the input and of the output.
        kernel_size: of both convolutions, in pixels, odd.
        gate_bias: b_g of a new layer; negative, so that it starts by passing its input on.

    Returns:
        (from a call) (n, channels, h, w).

    Paper: R. Srivastava, K. Greff, J. Schmidhuber, "Highway Networks", 2015, https://arxiv.org/abs/1505.00387

    Example:
        >>> import torch
        >>> from fastnets.layers import HighwayConv2d
        >>> HighwayConv2d(8, 3)(torch.ones(1, 8, 7, 7)).shape
        torch.Size([1, 8, 7, 7])
    """

    def __init__(self, channels: int, kernel_size: int, gate_bias: float = -1.0) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        self.gate = Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        nn.init.constant_(self.gate.bias, gate_bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y, g = torch.relu(self.conv(x)), torch.sigmoid(self.gate(x))
        return g * y + (1 - g) * x

"""Squeeze and excitation: channels weighted by what the whole image holds."""

from __future__ import annotations

from torch import Tensor, nn

from fastnets.layers.conv import Conv2d


class SqueezeExcitation(nn.Module):
    r"""Multiplies each channel by a weight from 0 to 1 that two small layers compute from the means of all channels.

    .. math::
        y = x \cdot \sigma(W_2 \max(0, W_1 \bar{x} + b_1) + b_2)

    Args:
        channels: c, of the input and the output.
        reduction: r, by which the c / r channels between the two layers are fewer.

    Returns:
        (from a call) the shape and type of the input (n, c, h, w).

    Paper: J. Hu, L. Shen, S. Albanie, G. Sun, E. Wu, "Squeeze-and-Excitation Networks", 2017,
    https://arxiv.org/abs/1709.01507

    Example:
        >>> import torch
        >>> from fastnets.layers import SqueezeExcitation
        >>> SqueezeExcitation(32)(torch.ones(1, 32, 7, 7)).shape
        torch.Size([1, 32, 7, 7])
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = Conv2d(channels // reduction, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(self.fc2(self.relu(self.fc1(x.mean((2, 3), keepdim=True)))))

"""Blocks that several networks are built of, with the parameter names of timm."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from fastnets.layers.conv import Conv2d
from fastnets.ops._convolution import Pair

RELU: Callable[[], nn.Module] = partial(nn.ReLU, inplace=True)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``channels``, never more than a tenth below it.

    This is how the authors of MobileNet round the channels of a network that is made wider or narrower.

    Args:
        channels: wanted number of channels.
        divisor: what the result is a multiple of, and its least value.

    Returns:
        The number of channels to build.

    Example:
        >>> from fastnets.layers.blocks import make_divisible
        >>> make_divisible(32 * 0.35), make_divisible(17)
        (16, 16)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def init_weights(module: nn.Module) -> None:
    """Draws new weights for a layer, for use with ``model.apply``: He's variance for convolutions.

    Args:
        module: a layer; those without a rule here keep PyTorch's initial values.

    Paper: K. He et al., "Delving Deep into Rectifiers", 2015, https://arxiv.org/abs/1502.01852

    Example:
        >>> from torch import nn
        >>> from fastnets.layers.blocks import init_weights
        >>> nn.Linear(2, 2).apply(init_weights).bias.tolist()
        [0.0, 0.0]
    """
    if isinstance(module, nn.Conv2d):
        # Outputs that one input value reaches: what keeps the variance of gradients.
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        init_classifier(module)


def init_classifier(layer: nn.Conv2d | nn.Linear) -> None:
    """Draws new weights for a layer whose output are logits: so small that no class is preferred.

    Args:
        layer: linear, or a convolution that stands for a linear layer.

    Example:
        >>> from fastnets.layers import Conv2d
        >>> from fastnets.layers.blocks import init_classifier
        >>> layer = Conv2d(2, 2, 1)
        >>> init_classifier(layer)
        >>> layer.bias.tolist()
        [0.0, 0.0]
    """
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class ConvNormActivation(nn.Module):
    """Convolves without bias, normalises by batch and applies an activation: the unit of Inception and Darknet.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: rows and columns of the kernel in pixels, an int or (vertical, horizontal).
        stride: steps of the kernel in pixels, an int or (vertical, horizontal).
        padding: pixels added on each side, an int or (vertical, horizontal); None keeps the size at stride 1
            for odd kernels.
        dilation: distance between taps in pixels.
        groups: how many parts the channels fall into.
        eps: added to the variance.
        activation: makes the activation; ``nn.Identity`` for none.

    Returns:
        (from a call) (n, out_channels, h', w') for an input (n, in_channels, h, w).

    Paper: S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
    Covariate Shift", 2015, https://arxiv.org/abs/1502.03167

    Example:
        >>> import torch
        >>> from fastnets.layers import ConvNormActivation
        >>> ConvNormActivation(8, 16, (1, 7), stride=2)(torch.ones(1, 8, 7, 7)).shape
        torch.Size([1, 16, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | None = None,
        dilation: int = 1,
        groups: int = 1,
        *,
        eps: float = 1e-5,
        activation: Callable[[], nn.Module] = RELU,
    ) -> None:
        super().__init__()
        kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if padding is None:
            padding = dilation * (kh // 2), dilation * (kw // 2)
        geometry = (kh, kw), stride, padding, dilation, groups
        self.conv = Conv2d(in_channels, out_channels, *geometry, bias=False)  # type: ignore[arg-type]
        self.bn = nn.BatchNorm2d(out_channels, eps)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class DepthwiseSeparable(nn.Module):
    """Filters every channel by itself, then mixes the channels with a 1×1 convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the depthwise convolution, in pixels.
        last_activation: whether ReLU6 follows the 1×1 convolution, as it does the depthwise one.
            Without it the input is added to the output where the shapes are the same.

    Returns:
        (from a call) (n, out_channels, h / stride, w / stride), rounded up.

    Paper: A. Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
    Applications", 2017, https://arxiv.org/abs/1704.04861

    Example:
        >>> import torch
        >>> from fastnets.layers import DepthwiseSeparable
        >>> DepthwiseSeparable(8, 16, stride=2)(torch.ones(1, 8, 7, 7)).shape
        torch.Size([1, 16, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, last_activation: bool = True) -> None:
        super().__init__()
        self.conv_dw = Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv_pw = Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU6(inplace=True)
        self.last_activation = last_activation
        self.residual = not last_activation and stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv_pw(self.act(self.bn1(self.conv_dw(x)))))
        if self.last_activation:
            return self.act(y)
        return y + x if self.residual else y


class InvertedResidual(nn.Module):
    """Widens the channels, filters each by itself and narrows them again; adds the input where shapes allow.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the depthwise convolution, in pixels, odd.
        stride: of the depthwise convolution, in pixels.
        expansion: how many times the channels inside are those of the input.

    Returns:
        (from a call) (n, out_channels, h / stride, w / stride), rounded up.

    Paper: M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018,
    https://arxiv.org/abs/1801.04381

    Example:
        >>> import torch
        >>> from fastnets.layers import InvertedResidual
        >>> InvertedResidual(8, 8, kernel_size=5)(torch.ones(1, 8, 7, 7)).shape
        torch.Size([1, 8, 7, 7])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, expansion: int = 6
    ) -> None:
        super().__init__()
        inside = in_channels * expansion
        self.conv_pw = Conv2d(in_channels, inside, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv_dw = Conv2d(inside, inside, kernel_size, stride, kernel_size // 2, groups=inside, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv_pwl = Conv2d(inside, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU6(inplace=True)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv_pw(x)))
        y = self.act(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return y + x if self.residual else y

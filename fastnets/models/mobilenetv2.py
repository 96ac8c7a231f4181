"""MobileNetV2, with the parameter names of torchvision.

Paper: M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, "MobileNetV2: Inverted Residuals and Linear
Bottlenecks", CVPR 2018, https://arxiv.org/abs/1801.04381
"""

from __future__ import annotations

from torch import Tensor, nn

from fastnets.layers import Conv2d
from fastnets.layers.blocks import init_weights, make_divisible
from fastnets.models._registry import TORCHVISION, register_model

# Table 2 of the paper: expansion, channels, blocks, stride of the first block.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _conv_bn_relu6(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Module:
    return nn.Sequential(
        Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class Bottleneck(nn.Module):
    """The paper's inverted residual: wide inside, narrow and linear at both ends."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = in_channels * expansion
        expand = [_conv_bn_relu6(in_channels, inside, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            _conv_bn_relu6(inside, inside, 3, stride, groups=inside),
            Conv2d(inside, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + x if self.residual else y


class MobileNetV2(nn.Module):
    """Is the network of the paper.

    Args:
        num_classes: length of the output.
        width: factor on all channels, which become multiples of 8; the last ones never fall below 1280.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.mobilenetv2 import MobileNetV2
        >>> MobileNetV2(num_classes=10, width=0.35).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 1000, width: float = 1.0) -> None:
        super().__init__()
        channels = make_divisible(32 * width)
        features = [_conv_bn_relu6(3, channels, 3, stride=2)]
        for expansion, out, blocks, stride in STAGES:
            for block in range(blocks):
                previous, channels = channels, make_divisible(out * width)
                features.append(Bottleneck(previous, channels, stride if block == 0 else 1, expansion))
        last = make_divisible(1280 * max(1.0, width))
        self.features = nn.Sequential(*features, _conv_bn_relu6(channels, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "mobilenet_v2-b0353104.pth")
def mobilenet_v2(num_classes: int = 1000, width: float = 1.0) -> MobileNetV2:
    """MobileNetV2 with torchvision's ``mobilenet_v2`` state_dict."""
    return MobileNetV2(num_classes, width)

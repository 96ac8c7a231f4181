"""ShuffleNetV2, with the parameter names of torchvision.

Paper: N. Ma, X. Zhang, H.-T. Zheng, J. Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture
Design", ECCV 2018, https://arxiv.org/abs/1807.11164
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastnets.layers import ChannelShuffle, Conv2d, ShuffleSplit
from fastnets.layers.blocks import init_weights
from fastnets.models._registry import TORCHVISION, register_model


def _pointwise(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    return [Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels)]


class Downsampling(nn.Module):
    """The unit that begins a stage: both branches read all of its input."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(*_depthwise(in_channels, 2), *_pointwise(in_channels, channels))
        self.branch2 = nn.Sequential(
            *_pointwise(in_channels, channels), *_depthwise(channels, 2), *_pointwise(channels, channels)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.branch1(x), self.branch2(x)


class Unit(nn.Module):
    """The other units: of the two halves of the shuffled channels, one goes on as it is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shuffle = ShuffleSplit()
        self.branch2 = nn.Sequential(
            *_pointwise(channels, channels), *_depthwise(channels, 1), *_pointwise(channels, channels)
        )

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.shuffle(a, b)
        return a, self.branch2(b)


class Stage(nn.Sequential):
    """Units that hand their two halves on, so that only the last one's become one tensor.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, an even number.
        units: number of units.

    Returns:
        (from a call) (n, out_channels, h / 2, w / 2), rounded up.
    """

    def __init__(self, in_channels: int, out_channels: int, units: int) -> None:
        half = out_channels // 2
        super().__init__(Downsampling(in_channels, half), *(Unit(half) for _ in range(units - 1)), ChannelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        first, *units, shuffle = self
        a, b = first(x)
        for unit in units:
            a, b = unit(a, b)
        return shuffle(torch.cat((a, b), 1))


class ShuffleNetV2(nn.Module):
    """Is the network of the paper.

    Args:
        channels: of the three stages and of the last convolution.
        num_classes: length of the output.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.shufflenetv2 import ShuffleNetV2
        >>> ShuffleNetV2((48, 96, 192, 1024), num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, channels: tuple[int, int, int, int], num_classes: int = 1000) -> None:
        super().__init__()
        c2, c3, c4, c5 = channels
        self.conv1 = nn.Sequential(Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        # Table 5 of the paper: units.
        self.stage2 = Stage(24, c2, 4)
        self.stage3 = Stage(c2, c3, 8)
        self.stage4 = Stage(c3, c4, 4)
        self.conv5 = nn.Sequential(*_pointwise(c4, c5))
        self.fc = nn.Linear(c5, num_classes)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        return self.fc(x.mean((2, 3)))


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "shufflenetv2_x0.5-f707e7126e.pth")
def shufflenet_v2_x0_5(num_classes: int = 1000) -> ShuffleNetV2:
    """ShuffleNetV2 0.5× with torchvision's ``shufflenet_v2_x0_5`` state_dict."""
    return ShuffleNetV2((48, 96, 192, 1024), num_classes)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "shufflenetv2_x1-5666bf0f80.pth")
def shufflenet_v2_x1_0(num_classes: int = 1000) -> ShuffleNetV2:
    """ShuffleNetV2 1× with torchvision's ``shufflenet_v2_x1_0`` state_dict."""
    return ShuffleNetV2((116, 232, 464, 1024), num_classes)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "shufflenetv2_x1_5-3c479a10.pth")
def shufflenet_v2_x1_5(num_classes: int = 1000) -> ShuffleNetV2:
    """ShuffleNetV2 1.5× with torchvision's ``shufflenet_v2_x1_5`` state_dict."""
    return ShuffleNetV2((176, 352, 704, 1024), num_classes)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "shufflenetv2_x2_0-8be3c8ee.pth")
def shufflenet_v2_x2_0(num_classes: int = 1000) -> ShuffleNetV2:
    """ShuffleNetV2 2× with torchvision's ``shufflenet_v2_x2_0`` state_dict."""
    return ShuffleNetV2((244, 488, 976, 2048), num_classes)

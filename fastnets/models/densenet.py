"""DenseNet, with the parameter names of torchvision.

Paper: G. Huang, Z. Liu, L. van der Maaten, K. Weinberger, "Densely Connected Convolutional Networks", CVPR 2017,
https://arxiv.org/abs/1608.06993
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.layers import Conv2d
from fastnets.layers.blocks import init_weights
from fastnets.models._registry import TORCHVISION, register_model


class DenseLayer(nn.Sequential):
    """Makes a few new channels of all before it; each convolution follows its own BatchNorm and ReLU."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = Conv2d(4 * growth, growth, 3, 1, 1, bias=False)


class DenseBlock(nn.Module):
    """Layers, each of which reads the block's input and the output of every layer before it.

    Args:
        in_channels: channels of the input.
        layers: number of layers.
        growth: channels that each layer adds.

    Returns:
        (from a call) (n, in_channels + layers·growth, h, w): the input, then what the layers made.
    """

    def __init__(self, in_channels: int, layers: int, growth: int) -> None:
        super().__init__()
        for i in range(layers):
            self.add_module(f"denselayer{i + 1}", DenseLayer(in_channels + i * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.children():
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


def _transition(in_channels: int) -> nn.Sequential:
    """Halves the channels, the height and the width."""
    layers = {
        "norm": nn.BatchNorm2d(in_channels),
        "relu": nn.ReLU(inplace=True),
        "conv": Conv2d(in_channels, in_channels // 2, 1, bias=False),
        "pool": nn.AvgPool2d(2, 2),
    }
    return nn.Sequential(OrderedDict(layers))


class DenseNet(nn.Module):
    """Is the network of the paper, DenseNet-BC.

    Args:
        layers: in each of the four blocks.
        growth: k, channels that each layer adds; the first convolution makes twice as many.
        num_classes: length of the output.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.densenet import DenseNet
        >>> DenseNet((1, 1, 1, 1), growth=8, num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, layers: Sequence[int], growth: int = 32, num_classes: int = 1000) -> None:
        super().__init__()
        channels = 2 * growth
        self.features = nn.Sequential()
        self.features.add_module("conv0", Conv2d(3, channels, 7, 2, 3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(channels))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        for i, number in enumerate(layers, 1):
            if i > 1:
                self.features.add_module(f"transition{i - 1}", _transition(channels))
                channels //= 2
            self.features.add_module(f"denseblock{i}", DenseBlock(channels, number, growth))
            channels += number * growth
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)
        self.apply(init_weights)

    @staticmethod
    def current_name(name: str) -> str:
        """What a tensor of torchvision's checkpoints, which say norm.1 for norm1, is called here."""
        return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(x.mean((2, 3)))


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "densenet121-a639ec97.pth")
def densenet121(num_classes: int = 1000) -> DenseNet:
    """DenseNet-121 with torchvision's ``densenet121`` state_dict."""
    return DenseNet((6, 12, 24, 16), 32, num_classes)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "densenet161-8d451a50.pth")
def densenet161(num_classes: int = 1000) -> DenseNet:
    """DenseNet-161 with torchvision's ``densenet161`` state_dict."""
    return DenseNet((6, 12, 36, 24), 48, num_classes)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "densenet169-b2777c0a.pth")
def densenet169(num_classes: int = 1000) -> DenseNet:
    """DenseNet-169 with torchvision's ``densenet169`` state_dict."""
    return DenseNet((6, 12, 32, 32), 32, num_classes)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "densenet201-c1103571.pth")
def densenet201(num_classes: int = 1000) -> DenseNet:
    """DenseNet-201 with torchvision's ``densenet201`` state_dict."""
    return DenseNet((6, 12, 48, 32), 32, num_classes)

"""SqueezeNet, with the parameter names of torchvision.

Paper: F. Iandola, S. Han, M. Moskewicz, K. Ashraf, W. Dally, K. Keutzer, "SqueezeNet: AlexNet-level accuracy with 50x
fewer parameters and <0.5MB model size", 2016, https://arxiv.org/abs/1602.07360. Version 1.1 is its authors' later one,
https://github.com/forresti/SqueezeNet
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastnets.layers import Conv2d
from fastnets.layers.blocks import init_classifier, init_weights
from fastnets.models._registry import TORCHVISION, register_model

# Table 1 of the paper: channels of squeeze and of each of the two expand layers.
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))


class Fire(nn.Module):
    """The paper's module: 1×1 convolutions to few channels, then 1×1 and 3×3 ones side by side to many.

    Args:
        in_channels: channels of the input.
        squeeze: the few channels.
        expand: channels of each of the two; the output has twice as many.
    """

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = Conv2d(in_channels, squeeze, 1)
        self.expand1x1 = Conv2d(squeeze, expand, 1)
        self.expand3x3 = Conv2d(squeeze, expand, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.squeeze(x))
        return torch.cat([self.relu(self.expand1x1(x)), self.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Is the network of the paper.

    Args:
        first: channels of the first convolution.
        kernel_size: of the first convolution, in pixels.
        pool_before: which of the eight Fire modules a pooling goes before.
        num_classes: length of the output.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.squeezenet import SqueezeNet
        >>> SqueezeNet(64, 3, (0, 2, 4), num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, first: int, kernel_size: int, pool_before: tuple[int, ...], num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(Conv2d(3, first, kernel_size, stride=2), nn.ReLU(inplace=True))
        channels = first
        for i, (squeeze, expand) in enumerate(FIRES):
            if i in pool_before:
                self.features.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            self.features.append(Fire(channels, squeeze, expand))
            channels = 2 * expand
        last = Conv2d(channels, num_classes, 1)
        self.classifier = nn.Sequential(nn.Dropout(0.5), last, nn.ReLU(inplace=True))
        self.apply(init_weights)
        init_classifier(last)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).mean((2, 3))


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "squeezenet1_0-b66bff10.pth")
def squeezenet1_0(num_classes: int = 1000) -> SqueezeNet:
    """SqueezeNet 1.0 with torchvision's ``squeezenet1_0`` state_dict."""
    return SqueezeNet(96, 7, (0, 3, 7), num_classes)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "squeezenet1_1-b8a52dc0.pth")
def squeezenet1_1(num_classes: int = 1000) -> SqueezeNet:
    """SqueezeNet 1.1, with 2.4 times less computation, and torchvision's ``squeezenet1_1`` state_dict."""
    return SqueezeNet(64, 3, (0, 2, 4), num_classes)

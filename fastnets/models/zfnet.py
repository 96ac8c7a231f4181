"""ZFNet, the winner of ImageNet 2013: AlexNet with a smaller and denser first convolution.

Paper: M. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", 2013,
https://arxiv.org/abs/1311.2901
"""

from __future__ import annotations

from torch import nn

from fastnets.layers import Conv2d, PlainNet
from fastnets.layers.blocks import init_weights
from fastnets.layers.plain import fully_connected, local_response_norm
from fastnets.models._registry import register_model


class ZFNet(PlainNet):
    """Is the network of the paper, with AlexNet's response normalisation, whose constants the paper does not give.

    Args:
        num_classes: length of the output.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.zfnet import ZFNet
        >>> ZFNet(num_classes=10).eval()(torch.zeros(1, 3, 96, 96)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 1000) -> None:
        features = nn.Sequential(
            Conv2d(3, 96, 7, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            local_response_norm(),
            Conv2d(96, 256, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            local_response_norm(),
            Conv2d(256, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(384, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        super().__init__(features, 6, fully_connected(256 * 6 * 6, num_classes))
        self.apply(init_weights)


@register_model(names_follow="paper", min_size=59)
def zfnet(num_classes: int = 1000) -> ZFNet:
    """ZFNet."""
    return ZFNet(num_classes)

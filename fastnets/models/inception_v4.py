"""Inception v4, with the parameter names of timm.

Paper: C. Szegedy, S. Ioffe, V. Vanhoucke, A. Alemi, "Inception-v4, Inception-ResNet and the Impact of Residual
Connections on Learning", AAAI 2017, https://arxiv.org/abs/1602.07261
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastnets.layers import Branches, ConvNormActivation, Mixed
from fastnets.layers.blocks import init_weights
from fastnets.layers.branches import numbered
from fastnets.models._registry import TIMM, register_model

SAME = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
HALF = nn.MaxPool2d(3, 2)


class ConvAndPool(nn.Module):
    """Halves the size by a convolution and by a pooling, and joins both by channels: two filters of figure 3."""

    def __init__(self, in_channels: int, out_channels: int, conv_first: bool) -> None:
        super().__init__()
        self.conv = ConvNormActivation(in_channels, out_channels, 3, 2, 0, eps=1e-3)
        self.maxpool = nn.MaxPool2d(3, 2)
        self.conv_first = conv_first

    def forward(self, x: Tensor) -> Tensor:
        halves = self.conv(x), self.maxpool(x)
        return torch.cat(halves if self.conv_first else halves[::-1], 1)


def reduction_a(in_channels: int, k: int, l: int, m: int, n: int) -> Branches:
    """Figure 7 of the paper, from 35 by 35 to 17 by 17, with the numbers of filters of its table 1."""
    return Branches(**numbered(in_channels, ((n, 3, 2, 0),), ((k, 1), (l, 3), (m, 3, 2, 0)), (HALF,)))


def _stem() -> list[nn.Module]:
    """Figure 3 of the paper."""
    return [
        ConvNormActivation(3, 32, 3, 2, 0, eps=1e-3),
        ConvNormActivation(32, 32, 3, padding=0, eps=1e-3),
        ConvNormActivation(32, 64, 3, eps=1e-3),
        ConvAndPool(64, 96, conv_first=False),
        Branches(**numbered(160, ((64, 1), (96, 3, 1, 0)), ((64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, 1, 0)))),
        ConvAndPool(192, 192, conv_first=True),
    ]


def _grid35() -> Branches:
    """Figure 4 of the paper."""
    return Branches(**numbered(384, ((96, 1),), ((64, 1), (96, 3)), ((64, 1), (96, 3), (96, 3)), (SAME, (96, 1))))


def _grid17() -> Branches:
    """Figure 5 of the paper."""
    return Branches(
        **numbered(
            1024,
            ((384, 1),),
            ((192, 1), (224, (1, 7)), (256, (7, 1))),
            ((192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))),
            (SAME, (128, 1)),
        )
    )


def _reduction_b() -> Branches:
    """Figure 8 of the paper."""
    return Branches(
        **numbered(1024, ((192, 1), (192, 3, 2, 0)), ((256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2, 0)), (HALF,))
    )


def _grid8() -> Mixed:
    """Figure 6 of the paper."""
    return Mixed(
        1536,
        first=0,
        branch0=[(256, 1)],
        branch1=[(384, 1), [(256, (1, 3)), (256, (3, 1))]],
        branch2=[(384, 1), (448, (3, 1)), (512, (1, 3)), [(256, (1, 3)), (256, (3, 1))]],
        branch3=[nn.Sequential(SAME, ConvNormActivation(1536, 256, 1, eps=1e-3))],
    )


class InceptionV4(nn.Module):
    """Is the network of the paper, for photos of 299 by 299 pixels.

    Args:
        num_classes: length of the output.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.inception_v4 import InceptionV4
        >>> InceptionV4(num_classes=10).eval()(torch.zeros(1, 3, 75, 75)).shape
        torch.Size([1, 10])
    """

    classifier_with_background = "last_linear"  # as published; see load_weights

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_stem(),
            *(_grid35() for _ in range(4)),
            reduction_a(384, 192, 224, 256, 384),
            *(_grid17() for _ in range(7)),
            _reduction_b(),
            *(_grid8() for _ in range(3)),
        )
        self.last_linear = nn.Linear(1536, num_classes)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_linear(self.features(x).mean((2, 3)))


@register_model(
    names_follow="timm",
    input_size=299,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    min_size=75,
    weights_url=TIMM + "v0.1-cadene/inceptionv4-8e4777a0.pth",
)
def inception_v4(num_classes: int = 1000) -> InceptionV4:
    """Inception v4 with timm's ``inception_v4`` state_dict."""
    return InceptionV4(num_classes)

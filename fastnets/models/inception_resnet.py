"""Inception-ResNet v1 and v2, with the parameter names of timm.

Paper: C. Szegedy, S. Ioffe, V. Vanhoucke, A. Alemi, "Inception-v4, Inception-ResNet and the Impact of Residual
Connections on Learning", AAAI 2017, https://arxiv.org/abs/1602.07261
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastnets.layers import Branches, Conv2d, ConvNormActivation
from fastnets.layers.blocks import init_weights
from fastnets.layers.branches import Convolution, numbered
from fastnets.models._registry import TIMM, register_model
from fastnets.models.inception_v4 import HALF, SAME, reduction_a


class InceptionResidual(Branches):
    """Adds to its input what branches of convolutions make of it, scaled down.

    Args:
        channels: of the input and of the output.
        *chains: the layers of the branches, as of ``fastnets.layers.branches.chain``.
        scale: factor on what is added, which keeps wide networks from diverging.
        erase_relu: whether the ReLU after the sum is left out, https://arxiv.org/abs/1709.07634.

    Returns:
        (from a call) (n, channels, h, w).
    """

    def __init__(self, channels: int, *chains: Sequence[Convolution], scale: float, erase_relu: bool = False) -> None:
        super().__init__(**numbered(channels, *chains))
        self.conv2d = Conv2d(sum(layers[-1][0] for layers in chains), channels, 1)
        self.relu = nn.Identity() if erase_relu else nn.ReLU(inplace=True)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.scale * self.conv2d(super().forward(x)))


def _residuals(number: int, channels: int, *chains: Sequence[Convolution], scale: float) -> nn.Sequential:
    return nn.Sequential(*(InceptionResidual(channels, *chains, scale=scale) for _ in range(number)))


def _stem() -> dict[str, nn.Module]:
    return {
        "conv2d_1a": ConvNormActivation(3, 32, 3, 2, 0, eps=1e-3),
        "conv2d_2a": ConvNormActivation(32, 32, 3, padding=0, eps=1e-3),
        "conv2d_2b": ConvNormActivation(32, 64, 3, eps=1e-3),
        "maxpool_3a": nn.MaxPool2d(3, 2),
        "conv2d_3b": ConvNormActivation(64, 80, 1, eps=1e-3),
        "conv2d_4a": ConvNormActivation(80, 192, 3, padding=0, eps=1e-3),
    }


def _features_v1() -> dict[str, nn.Module]:
    """Figures 10 to 14 of the paper."""
    grid35 = ((32, 1),), ((32, 1), (32, 3)), ((32, 1), (32, 3), (32, 3))
    grid17 = ((128, 1),), ((128, 1), (128, (1, 7)), (128, (7, 1)))
    grid8 = ((192, 1),), ((192, 1), (192, (1, 3)), (192, (3, 1)))
    reduction_b = ((256, 1), (384, 3, 2, 0)), ((256, 1), (256, 3, 2, 0)), ((256, 1), (256, 3), (256, 3, 2, 0)), (HALF,)
    return {
        **_stem(),
        "conv2d_4b": ConvNormActivation(192, 256, 3, 2, 0, eps=1e-3),
        "repeat": _residuals(5, 256, *grid35, scale=0.17),
        "mixed_6a": reduction_a(256, 192, 192, 256, 384),
        "repeat_1": _residuals(10, 896, *grid17, scale=0.10),
        "mixed_7a": Branches(**numbered(896, *reduction_b)),
        "repeat_2": _residuals(4, 1792, *grid8, scale=0.20),
        "block8": InceptionResidual(1792, *grid8, scale=1.0, erase_relu=True),
    }


def _features_v2() -> dict[str, nn.Module]:
    """Figures 16 to 19 of the paper, with the stem, the numbers of blocks and of channels of its authors' code."""
    mixed_5b = ((96, 1),), ((48, 1), (64, 5)), ((64, 1), (96, 3), (96, 3)), (SAME, (64, 1))
    grid35 = ((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3))
    grid17 = ((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1)))
    grid8 = ((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1)))
    reduction_b = ((256, 1), (384, 3, 2, 0)), ((256, 1), (288, 3, 2, 0)), ((256, 1), (288, 3), (320, 3, 2, 0)), (HALF,)
    return {
        **_stem(),
        "maxpool_5a": nn.MaxPool2d(3, 2),
        "mixed_5b": Branches(**numbered(192, *mixed_5b)),
        "repeat": _residuals(10, 320, *grid35, scale=0.17),
        "mixed_6a": reduction_a(320, 256, 256, 384, 384),
        "repeat_1": _residuals(20, 1088, *grid17, scale=0.10),
        "mixed_7a": Branches(**numbered(1088, *reduction_b)),
        "repeat_2": _residuals(9, 2080, *grid8, scale=0.20),
        "block8": InceptionResidual(2080, *grid8, scale=1.0, erase_relu=True),
        "conv2d_7b": ConvNormActivation(2080, 1536, 1, eps=1e-3),
    }


class InceptionResNet(nn.Module):
    """Is a network of the paper, for photos of 299 by 299 pixels.

    Args:
        version: 1 or 2.
        num_classes: length of the output.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.inception_resnet import InceptionResNet
        >>> InceptionResNet(1, num_classes=10).eval()(torch.zeros(1, 3, 75, 75)).shape
        torch.Size([1, 10])
    """

    classifier_with_background = "classif"  # as published; see load_weights

    def __init__(self, version: int, num_classes: int = 1000) -> None:
        super().__init__()
        features, channels, dropout = (_features_v1(), 1792, 0.2) if version == 1 else (_features_v2(), 1536, 0.0)
        self.names = [*features]
        for name, module in features.items():
            self.add_module(name, module)
        self.head_drop = nn.Dropout(dropout)
        self.classif = nn.Linear(channels, num_classes)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = getattr(self, name)(x)
        return self.classif(self.head_drop(x.mean((2, 3))))


FACTS = {
    "input_size": 299,
    "crop": 0.8975,
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "min_size": 75,
}


@register_model(names_follow="paper", **FACTS)
def inception_resnet_v1(num_classes: int = 1000) -> InceptionResNet:
    """Inception-ResNet v1."""
    return InceptionResNet(1, num_classes)


@register_model(names_follow="timm", weights_url=TIMM + "v0.1-weights/inception_resnet_v2-940b1cd6.pth", **FACTS)
def inception_resnet_v2(num_classes: int = 1000) -> InceptionResNet:
    """Inception-ResNet v2 with timm's ``inception_resnet_v2`` state_dict."""
    return InceptionResNet(2, num_classes)

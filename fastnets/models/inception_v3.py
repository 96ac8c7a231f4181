"""Inception v3, with the parameter names of torchvision.

Paper: C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception Architecture for Computer
Vision", CVPR 2016, https://arxiv.org/abs/1512.00567
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.layers import ConvNormActivation, Mixed
from fastnets.layers.blocks import init_weights
from fastnets.layers.branches import Layer
from fastnets.models._registry import TORCHVISION, register_model

HALF = nn.MaxPool2d(3, 2)


class InceptionV3Outputs(NamedTuple):
    """What Inception v3 gives in training: twice (n, num_classes), those of the last classifier first."""

    logits: Tensor
    aux_logits: Tensor


class PooledConv(ConvNormActivation):
    """Averages 3 by 3 pixels, zeros beyond the border among them, then convolves 1×1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.avg_pool2d(x, 3, 1, 1))


def _grid35(in_channels: int, pooled: int) -> Mixed:
    """Figure 5 of the paper, with one 5×5 convolution left."""
    return Mixed(
        in_channels,
        branch1x1=[(64, 1)],
        branch5x5=[(48, 1), (64, 5)],
        branch3x3dbl=[(64, 1), (96, 3), (96, 3)],
        branch_pool=[PooledConv(in_channels, pooled)],
    )


def _grid17(inside: int) -> Mixed:
    """Figure 6 of the paper: 7×7 convolutions as 1×7 and 7×1."""
    wide, high = (inside, (1, 7)), (inside, (7, 1))
    return Mixed(
        768,
        branch1x1=[(192, 1)],
        branch7x7=[(inside, 1), wide, (192, (7, 1))],
        branch7x7dbl=[(inside, 1), high, wide, high, (192, (1, 7))],
        branch_pool=[PooledConv(768, 192)],
    )


def _grid8(in_channels: int) -> Mixed:
    """Figure 7 of the paper: 1×3 and 3×1 side by side."""
    fork: list[Layer] = [(384, (1, 3)), (384, (3, 1))]
    return Mixed(
        in_channels,
        branch1x1=[(320, 1)],
        branch3x3=[(384, 1), fork],
        branch3x3dbl=[(448, 1), (384, 3), fork],
        branch_pool=[PooledConv(in_channels, 192)],
    )


class AuxiliaryClassifier(nn.Module):
    """Classifies by the 17 by 17 features before the last reduction."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv0 = ConvNormActivation(768, 128, 1, eps=1e-3)
        self.conv1 = ConvNormActivation(128, 768, 5, padding=0, eps=1e-3)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.conv0(F.avg_pool2d(x, 5, 3)))
        return self.fc(x.mean((2, 3)))


class InceptionV3(nn.Module):
    """Is the network of the paper, for photos of 299 by 299 pixels.

    Args:
        num_classes: length of the output.
        aux_logits: whether there is an auxiliary classifier.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w) of 75 pixels or more; in training, where
        there is an auxiliary classifier, an :class:`InceptionV3Outputs` of them and those of it, for 299 or more.

    Example:
        >>> import torch
        >>> from fastnets.models.inception_v3 import InceptionV3
        >>> InceptionV3(num_classes=10).eval()(torch.zeros(1, 3, 75, 75)).shape
        torch.Size([1, 10])
    """

    optional_heads = ("AuxLogits",)  # which networks in use do without

    def __init__(self, num_classes: int = 1000, aux_logits: bool = True) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormActivation(3, 32, 3, 2, 0, eps=1e-3)
        self.Conv2d_2a_3x3 = ConvNormActivation(32, 32, 3, padding=0, eps=1e-3)
        self.Conv2d_2b_3x3 = ConvNormActivation(32, 64, 3, eps=1e-3)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = ConvNormActivation(64, 80, 1, eps=1e-3)
        self.Conv2d_4a_3x3 = ConvNormActivation(80, 192, 3, padding=0, eps=1e-3)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b = _grid35(192, 32)
        self.Mixed_5c = _grid35(256, 64)
        self.Mixed_5d = _grid35(288, 64)
        self.Mixed_6a = Mixed(
            288, branch3x3=[(384, 3, 2, 0)], branch3x3dbl=[(64, 1), (96, 3), (96, 3, 2, 0)], branch_pool=[HALF]
        )
        self.Mixed_6b = _grid17(128)
        self.Mixed_6c = _grid17(160)
        self.Mixed_6d = _grid17(160)
        self.Mixed_6e = _grid17(192)
        self.AuxLogits = AuxiliaryClassifier(num_classes) if aux_logits else None
        self.Mixed_7a = Mixed(
            768,
            branch3x3=[(192, 1), (320, 3, 2, 0)],
            branch7x7x3=[(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2, 0)],
            branch_pool=[HALF],
        )
        self.Mixed_7b = _grid8(1280)
        self.Mixed_7c = _grid8(2048)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2048, num_classes)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor | InceptionV3Outputs:
        x = self.maxpool1(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = self.maxpool2(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        aux_logits = self.AuxLogits(x) if self.training and self.AuxLogits else None
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        logits = self.fc(self.dropout(x.mean((2, 3))))
        return logits if aux_logits is None else InceptionV3Outputs(logits, aux_logits)


# torchvision's weights come from TensorFlow, and were trained on values from -1 to 1.
@register_model(
    names_follow="torchvision",
    input_size=299,
    crop=299 / 342,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    min_size=299,
    weights_url=TORCHVISION + "inception_v3_google-0cc3c7bd.pth",
)
def inception_v3(num_classes: int = 1000, aux_logits: bool = True) -> InceptionV3:
    """Inception v3 with torchvision's ``inception_v3`` state_dict."""
    return InceptionV3(num_classes, aux_logits)

"""GoogLeNet with batch normalisation, with the parameter names of torchvision.

Paper: C. Szegedy, W. Liu, Y. Jia, P. Sermanet, S. Reed, D. Anguelov, D. Erhan, V. Vanhoucke, A. Rabinovich, "Going
Deeper with Convolutions", CVPR 2015, https://arxiv.org/abs/1409.4842
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.layers import Branches, ConvNormActivation
from fastnets.layers.blocks import init_weights
from fastnets.layers.branches import numbered
from fastnets.models._registry import TORCHVISION, register_model

# Table 1 of the paper: 1×1; 3×3 reduced and full; 5×5 reduced and full; after the pooling.
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class GoogLeNetOutputs(NamedTuple):
    """What GoogLeNet gives in training: three times (n, num_classes), those of the deeper classifiers first."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


def inception(in_channels: int, sizes: tuple[int, ...]) -> Branches:
    """The paper's module, with torchvision's 3×3 convolution where the paper has 5×5."""
    one, three_reduced, three, five_reduced, five, pooled = sizes
    return Branches(
        **numbered(
            in_channels,
            ((one, 1),),
            ((three_reduced, 1), (three, 3)),
            ((five_reduced, 1), (five, 3)),
            (nn.MaxPool2d(3, 1, 1, ceil_mode=True), (pooled, 1)),
            first=1,
        )
    )


class AuxiliaryClassifier(nn.Module):
    """Classifies by features from the middle of the network, so that gradients reach the layers before."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = ConvNormActivation(in_channels, 128, 1, eps=1e-3)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(0.7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.adaptive_avg_pool2d(x, 4)).flatten(1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


class GoogLeNet(nn.Module):
    """Is the network of the paper, with batch normalisation for response normalisation.

    Args:
        num_classes: length of the output.
        aux_logits: whether there are auxiliary classifiers.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w); in training a
        :class:`GoogLeNetOutputs` of them and those of the two auxiliary classifiers, where there are any.

    Example:
        >>> import torch
        >>> from fastnets.models.googlenet import GoogLeNet
        >>> GoogLeNet(num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    optional_heads = ("aux1", "aux2")  # which networks in use do without

    def __init__(self, num_classes: int = 1000, aux_logits: bool = True) -> None:
        super().__init__()
        self.conv1 = ConvNormActivation(3, 64, 7, 2, eps=1e-3)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = ConvNormActivation(64, 64, 1, eps=1e-3)
        self.conv3 = ConvNormActivation(64, 192, 3, eps=1e-3)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels = 192
        for name, sizes in MODULES.items():
            self.add_module(f"inception{name}", inception(channels, sizes))
            one, _, three, _, five, pooled = sizes
            channels = one + three + five + pooled
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.aux1 = AuxiliaryClassifier(512, num_classes) if aux_logits else None
        self.aux2 = AuxiliaryClassifier(528, num_classes) if aux_logits else None
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(channels, num_classes)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        x = self.maxpool1(self.conv1(x))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        auxiliary = []
        for name in MODULES:
            x = self.get_submodule(f"inception{name}")(x)
            if self.training and (head := {"4a": self.aux1, "4d": self.aux2}.get(name)):
                auxiliary.append(head(x))
            if name in ("3b", "4e"):
                x = (self.maxpool3 if name == "3b" else self.maxpool4)(x)
        logits = self.fc(self.dropout(x.mean((2, 3))))
        return GoogLeNetOutputs(logits, *reversed(auxiliary)) if auxiliary else logits


# torchvision's weights come from TensorFlow, and were trained on values from -1 to 1.
@register_model(
    names_follow="torchvision",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    weights_url=TORCHVISION + "googlenet-1378be20.pth",
)
def googlenet(num_classes: int = 1000, aux_logits: bool = True) -> GoogLeNet:
    """GoogLeNet with torchvision's ``googlenet`` state_dict."""
    return GoogLeNet(num_classes, aux_logits)

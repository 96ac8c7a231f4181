"""VGG, with the parameter names of torchvision.

Paper: K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
https://arxiv.org/abs/1409.1556
"""

from __future__ import annotations

from torch import nn

from fastnets.layers import Conv2d, PlainNet
from fastnets.layers.blocks import init_weights
from fastnets.layers.plain import fully_connected, local_response_norm
from fastnets.models._registry import TORCHVISION, register_model

CHANNELS = (64, 128, 256, 512, 512)
# Table 1 of the paper: the kernel sizes in each stage. A-LRN has those of A.
CONFIGURATIONS = {
    "A": ("3", "3", "33", "33", "33"),
    "B": ("33", "33", "33", "33", "33"),
    "C": ("33", "33", "331", "331", "331"),
    "D": ("33", "33", "333", "333", "333"),
    "E": ("33", "33", "3333", "3333", "3333"),
}


class VGG(PlainNet):
    """Is the network of the paper.

    Args:
        configuration: a column of the paper's table 1: 'A', 'B', 'C', 'D' or 'E'.
        num_classes: length of the output.
        batch_norm: whether batch normalisation follows every convolution.
        response_norm: whether response normalisation follows the first convolution, as in column A-LRN.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.vgg import VGG
        >>> VGG("A", num_classes=10).eval()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self, configuration: str, num_classes: int = 1000, batch_norm: bool = False, response_norm: bool = False
    ) -> None:
        features, channels = nn.Sequential(), 3
        for out, kernels in zip(CHANNELS, CONFIGURATIONS[configuration], strict=True):
            for kernel in map(int, kernels):
                features.append(Conv2d(channels, out, kernel, padding=kernel // 2))
                if batch_norm:
                    features.append(nn.BatchNorm2d(out))
                features.append(nn.ReLU(inplace=True))
                if response_norm and channels == 3:
                    features.append(local_response_norm())
                channels = out
            features.append(nn.MaxPool2d(2))
        super().__init__(features, 7, fully_connected(512 * 7 * 7, num_classes))
        self.apply(init_weights)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "vgg11-8a719046.pth")
def vgg11(num_classes: int = 1000) -> VGG:
    """VGG A with torchvision's ``vgg11`` state_dict."""
    return VGG("A", num_classes)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "vgg11_bn-6002323d.pth")
def vgg11_bn(num_classes: int = 1000) -> VGG:
    """VGG A with batch normalisation, and torchvision's ``vgg11_bn`` state_dict."""
    return VGG("A", num_classes, batch_norm=True)


@register_model(names_follow="paper")
def vgg_a_lrn(num_classes: int = 1000) -> VGG:
    """VGG A-LRN."""
    return VGG("A", num_classes, response_norm=True)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "vgg13-19584684.pth")
def vgg13(num_classes: int = 1000) -> VGG:
    """VGG B with torchvision's ``vgg13`` state_dict."""
    return VGG("B", num_classes)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "vgg13_bn-abd245e5.pth")
def vgg13_bn(num_classes: int = 1000) -> VGG:
    """VGG B with batch normalisation, and torchvision's ``vgg13_bn`` state_dict."""
    return VGG("B", num_classes, batch_norm=True)


@register_model(names_follow="paper")
def vgg_c(num_classes: int = 1000) -> VGG:
    """VGG C, whose last convolution of each of the last three stages is 1×1."""
    return VGG("C", num_classes)


@register_model(names_follow="paper")
def vgg_c_bn(num_classes: int = 1000) -> VGG:
    """VGG C with batch normalisation."""
    return VGG("C", num_classes, batch_norm=True)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "vgg16-397923af.pth")
def vgg16(num_classes: int = 1000) -> VGG:
    """VGG D with torchvision's ``vgg16`` state_dict."""
    return VGG("D", num_classes)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "vgg16_bn-6c64b313.pth")
def vgg16_bn(num_classes: int = 1000) -> VGG:
    """VGG D with batch normalisation, and torchvision's ``vgg16_bn`` state_dict."""
    return VGG("D", num_classes, batch_norm=True)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "vgg19-dcbb9e9d.pth")
def vgg19(num_classes: int = 1000) -> VGG:
    """VGG E with torchvision's ``vgg19`` state_dict."""
    return VGG("E", num_classes)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "vgg19_bn-c79401a0.pth")
def vgg19_bn(num_classes: int = 1000) -> VGG:
    """VGG E with batch normalisation, and torchvision's ``vgg19_bn`` state_dict."""
    return VGG("E", num_classes, batch_norm=True)

"""AlexNet: the paper's, with one tower and with two, and the slimmer one of torchvision, with its parameter names.

Papers: A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
NeurIPS 2012, https://papers.nips.cc/paper/4824. torchvision's is of A. Krizhevsky, "One Weird Trick for Parallelizing
Convolutional Neural Networks", 2014, https://arxiv.org/abs/1404.5997, which has neither towers nor normalisation.
"""

from __future__ import annotations

from torch import nn

from fastnets.layers import Conv2d, PlainNet
from fastnets.layers.blocks import init_weights
from fastnets.layers.plain import fully_connected, local_response_norm
from fastnets.models._registry import TORCHVISION, register_model


class AlexNet(PlainNet):
    """Is the network of the 2012 paper, for photos of 227 by 227 pixels.

    Response normalisation follows the first two convolutions; the pooling windows overlap, 3 pixels wide and 2 apart.

    Args:
        num_classes: length of the output.
        towers: 2 for the paper's form for two devices, where the second, fourth and fifth convolution of one tower
            see that tower only: a grouped convolution. 1 for what a single device holds.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.alexnet import AlexNet
        >>> AlexNet(num_classes=10, towers=2).eval()(torch.zeros(1, 3, 96, 96)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 1000, towers: int = 1) -> None:
        features = nn.Sequential(
            Conv2d(3, 96, 11, stride=4),
            nn.ReLU(inplace=True),
            local_response_norm(),
            nn.MaxPool2d(3, 2),
            Conv2d(96, 256, 5, padding=2, groups=towers),
            nn.ReLU(inplace=True),
            local_response_norm(),
            nn.MaxPool2d(3, 2),
            Conv2d(256, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(384, 384, 3, padding=1, groups=towers),
            nn.ReLU(inplace=True),
            Conv2d(384, 256, 3, padding=1, groups=towers),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        super().__init__(features, 6, fully_connected(256 * 6 * 6, num_classes))
        self.apply(init_weights)


class SlimAlexNet(PlainNet):
    """Is the network of the 2014 paper: one tower of fewer channels, without normalisation.

    Args:
        num_classes: length of the output.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.alexnet import SlimAlexNet
        >>> SlimAlexNet(num_classes=10).eval()(torch.zeros(1, 3, 96, 96)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 1000) -> None:
        features = nn.Sequential(
            Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )
        super().__init__(features, 6, classifier)
        self.apply(init_weights)


@register_model(names_follow="torchvision", min_size=63, weights_url=TORCHVISION + "alexnet-owt-7be5be79.pth")
def alexnet(num_classes: int = 1000) -> SlimAlexNet:
    """The slimmer AlexNet of 2014 with torchvision's ``alexnet`` state_dict."""
    return SlimAlexNet(num_classes)


@register_model(names_follow="paper", input_size=227, min_size=67)
def alexnet_lrn(num_classes: int = 1000) -> AlexNet:
    """The paper's AlexNet in one tower."""
    return AlexNet(num_classes)


@register_model(names_follow="paper", input_size=227, min_size=67)
def alexnet_two_towers(num_classes: int = 1000) -> AlexNet:
    """The paper's AlexNet as it ran on two devices."""
    return AlexNet(num_classes, towers=2)

"""ShuffleNet, with the parameter names of its authors' release (https://github.com/megvii-model/ShuffleNet-Series).

Paper: X. Zhang, X. Zhou, M. Lin, J. Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
Devices", CVPR 2018, https://arxiv.org/abs/1707.01083
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastnets.layers import ChannelShuffle, Conv2d
from fastnets.layers.blocks import init_weights
from fastnets.models._registry import register_model

# Table 1 of the paper: channels of the second stage for each number of groups; blocks of the stages.
CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
BLOCKS = (4, 8, 4)


class ShuffleUnit(nn.Module):
    """Grouped 1×1 convolutions around a depthwise one, with a shuffle so that the groups learn of each other.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output: those of the input, or with a stride more than them.
        groups: of the 1×1 convolutions.
        first_groups: of the first one alone.
        stride: of the depthwise convolution, in pixels. With 2 the input, averaged, is concatenated, not added.

    Returns:
        (from a call) (n, out_channels, h / stride, w / stride), rounded up.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, first_groups: int, stride: int) -> None:
        super().__init__()
        inside = out_channels // 4
        made = out_channels if stride == 1 else out_channels - in_channels
        self.branch_main_1 = nn.Sequential(
            Conv2d(in_channels, inside, 1, groups=first_groups, bias=False),
            nn.BatchNorm2d(inside),
            nn.ReLU(inplace=True),
            Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False),
            nn.BatchNorm2d(inside),
        )
        # As in the release: the paper's shuffle backwards, and after the depthwise convolution, not before it. Both
        # only number the channels differently.
        self.shuffle = ChannelShuffle(inside // groups) if groups > 1 else nn.Identity()
        self.branch_main_2 = nn.Sequential(
            Conv2d(inside, made, 1, groups=groups, bias=False),
            nn.BatchNorm2d(made),
        )
        self.relu = nn.ReLU(inplace=True)
        self.branch_proj = None if stride == 1 else nn.AvgPool2d(3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch_main_2(self.shuffle(self.branch_main_1(x)))
        if self.branch_proj is None:
            return self.relu(y + x)
        return torch.cat((self.branch_proj(x), self.relu(y)), 1)


class ShuffleNetV1(nn.Module):
    """Is the network of the paper.

    Args:
        groups: of the 1×1 convolutions: 1, 2, 3, 4 or 8.
        num_classes: length of the output.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.shufflenetv1 import ShuffleNetV1
        >>> ShuffleNetV1(groups=3, num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, groups: int, num_classes: int = 1000) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.features = nn.Sequential()
        before, channels, first_groups = 24, CHANNELS[groups], 1  # the stem has too few channels to group
        for blocks in BLOCKS:
            for i in range(blocks):
                self.features.append(ShuffleUnit(before, channels, groups, first_groups, 2 if i == 0 else 1))
                before, first_groups = channels, groups
            channels *= 2
        self.classifier = nn.Sequential(nn.Linear(before, num_classes, bias=False))
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.maxpool(self.first_conv(x)))
        return self.classifier(x.mean((2, 3)))


@register_model(names_follow="paper")
def shufflenet_v1_g1(num_classes: int = 1000) -> ShuffleNetV1:
    """ShuffleNet without groups, and so without shuffles."""
    return ShuffleNetV1(1, num_classes)


@register_model(names_follow="paper")
def shufflenet_v1_g2(num_classes: int = 1000) -> ShuffleNetV1:
    """ShuffleNet of 2 groups."""
    return ShuffleNetV1(2, num_classes)


@register_model(names_follow="paper")
def shufflenet_v1_g3(num_classes: int = 1000) -> ShuffleNetV1:
    """ShuffleNet of 3 groups with the state_dict of the authors' release (group 3, 1.0x)."""
    return ShuffleNetV1(3, num_classes)


@register_model(names_follow="paper")
def shufflenet_v1_g4(num_classes: int = 1000) -> ShuffleNetV1:
    """ShuffleNet of 4 groups."""
    return ShuffleNetV1(4, num_classes)


@register_model(names_follow="paper")
def shufflenet_v1_g8(num_classes: int = 1000) -> ShuffleNetV1:
    """ShuffleNet of 8 groups with the state_dict of the authors' release (group 8, 1.0x)."""
    return ShuffleNetV1(8, num_classes)

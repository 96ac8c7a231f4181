"""Dilated residual networks, with the parameter names of their authors.

Paper: F. Yu, V. Koltun, T. Funkhouser, "Dilated Residual Networks", CVPR 2017, https://arxiv.org/abs/1705.09914. Release:
https://github.com/fyu/drn
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from fastnets.layers import BasicBlock, Bottleneck, Conv2d, Residual
from fastnets.layers.blocks import init_classifier, init_weights
from fastnets.models._registry import register_model
from fastnets.models.resnet import ResNet

CHANNELS = (16, 32, 64, 128, 256, 512, 512, 512)


class PlainBlock(BasicBlock):
    """A basic block without its shortcut, whose parameters, where it has any, the authors' checkpoints still hold."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x))


class DRN(nn.Module):
    """Is DRN-B or DRN-C: ResNet whose last levels keep the size, by dilation, and which smoothens their grid.

    The pooling at the start is two levels of blocks instead, and two more at the end dilate less and less.

    Args:
        block: of levels 3 to 6: makes a block from (in_channels, channels, stride, dilation).
        blocks: in each of levels 3 to 6.
        last: makes the blocks of levels 7 and 8: ``BasicBlock`` for DRN-B, ``PlainBlock`` for DRN-C.
        num_classes: length of the output.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.layers import BasicBlock
        >>> from fastnets.models.drn import DRN, PlainBlock
        >>> DRN(BasicBlock, (1, 1, 1, 1), PlainBlock, num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        block: Callable[..., Residual],
        blocks: Sequence[int],
        last: type[BasicBlock],
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1 = Conv2d(3, CHANNELS[0], 7, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0])
        self.relu = nn.ReLU(inplace=True)
        kinds: tuple[Callable[..., Residual], ...] = (BasicBlock, BasicBlock, block, block, block, block, last, last)
        strides, dilations = (1, 2, 2, 2, 1, 1, 1, 1), (1, 1, 1, 1, 2, 4, 2, 1)
        in_channels = CHANNELS[0]
        for level, (kind, number) in enumerate(zip(kinds, (1, 1, *blocks, 1, 1), strict=True)):
            taps, layer = (dilations[level],) * 2, nn.Sequential()
            for i in range(number):
                layer.append(new := kind(in_channels, CHANNELS[level], strides[level] if i == 0 else 1, taps))
                in_channels = new.out_channels
            self.add_module(f"layer{level + 1}", layer)
        self.fc = Conv2d(in_channels, num_classes, 1)
        self.apply(init_weights)
        init_classifier(self.fc)

    def features(self, x: Tensor) -> Tensor:
        """The maps before the mean: (n, c, h / 8, w / 8)."""
        x = self.relu(self.bn1(self.conv1(x)))
        for level in range(1, 9):
            x = getattr(self, f"layer{level}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3), keepdim=True)).flatten(1)


drn_a = partial(ResNet, replace_stride_with_dilation=(False, True, True))


@register_model(names_follow="paper")
def drn_a_18(num_classes: int = 1000) -> ResNet:
    """DRN-A-18, with the state_dict of torchvision's ``resnet18``."""
    return drn_a(BasicBlock, (2, 2, 2, 2), num_classes)


@register_model(names_follow="paper")
def drn_a_34(num_classes: int = 1000) -> ResNet:
    """DRN-A-34, with the state_dict of torchvision's ``resnet34``."""
    return drn_a(BasicBlock, (3, 4, 6, 3), num_classes)


@register_model(names_follow="paper")
def drn_a_50(num_classes: int = 1000) -> ResNet:
    """DRN-A-50, with the state_dict of torchvision's ``resnet50``.

    The first 3×3 convolution of the last stage dilates by 2, as figure 1 of the paper has it; the release's does not.
    """
    return drn_a(Bottleneck, (3, 4, 6, 3), num_classes)


@register_model(names_follow="paper")
def drn_b_26(num_classes: int = 1000) -> DRN:
    """DRN-B-26."""
    return DRN(BasicBlock, (2, 2, 2, 2), BasicBlock, num_classes)


@register_model(names_follow="paper")
def drn_c_26(num_classes: int = 1000) -> DRN:
    """DRN-C-26 with its authors' state_dict."""
    return DRN(BasicBlock, (2, 2, 2, 2), PlainBlock, num_classes)


@register_model(names_follow="paper")
def drn_c_42(num_classes: int = 1000) -> DRN:
    """DRN-C-42 with its authors' state_dict."""
    return DRN(BasicBlock, (3, 4, 6, 3), PlainBlock, num_classes)


@register_model(names_follow="paper")
def drn_c_58(num_classes: int = 1000) -> DRN:
    """DRN-C-58 with its authors' state_dict."""
    return DRN(Bottleneck, (3, 4, 6, 3), PlainBlock, num_classes)

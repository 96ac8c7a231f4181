"""Res2Net, with the parameter names of timm, which are those of the authors' release.

Paper: S.-H. Gao, M.-M. Cheng, K. Zhao, X.-Y. Zhang, M.-H. Yang, P. Torr, "Res2Net: A New Multi-scale Backbone
Architecture", TPAMI 2019, https://arxiv.org/abs/1904.01169
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastnets.layers import Conv2d, Residual
from fastnets.layers.residual import projection
from fastnets.models._registry import TIMM, register_model
from fastnets.models.resnet import ResNet


class Res2Bottleneck(Residual):
    """A bottleneck whose 3×3 convolution is a cascade: each part of the channels is added to the next one's input.

    Args:
        in_channels: channels of the input.
        channels: a quarter of the channels of the output.
        stride: of the 3×3 convolutions, in pixels.
        dilation: distance between the taps of the 3×3 convolutions in a block with a stride, in pixels, and in
            one after it.
        base_width: channels of a part where ``channels`` is 64; in proportion elsewhere.
        scale: parts.
        erase_relu: as of :class:`Residual`.

    Returns:
        (from a call) (n, 4·channels, h / stride, w / stride), rounded up.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dilation: tuple[int, int] = (1, 1),
        *,
        base_width: int = 26,
        scale: int = 4,
        erase_relu: bool = False,
    ) -> None:
        super().__init__(4 * channels, erase_relu)
        width, taps = channels * base_width // 64, dilation[0]
        self.conv1 = Conv2d(in_channels, width * scale, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width * scale)
        # The last part is not convolved.
        self.convs = nn.ModuleList(Conv2d(width, width, 3, stride, taps, taps, bias=False) for _ in range(scale - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(scale - 1))
        self.conv3 = Conv2d(width * scale, self.out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.out_channels)
        self.relu = nn.ReLU(inplace=True)
        # The first block of a stage has no cascade: its parts have not yet the size of what would be added to them.
        self.first = stride > 1 or in_channels != self.out_channels
        self.pool = nn.AvgPool2d(3, stride, 1) if self.first else nn.Identity()
        self.downsample = projection(in_channels, self.out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        parts = self.relu(self.bn1(self.conv1(x))).chunk(len(self.convs) + 1, 1)
        results: list[Tensor] = []
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            y = parts[i] if self.first or i == 0 else parts[i] + results[-1]
            results.append(self.relu(bn(conv(y))))
        return self.bn3(self.conv3(torch.cat((*results, self.pool(parts[-1])), 1)))


@register_model(names_follow="timm", weights_url=TIMM + "v0.1-res2net/res2net50_26w_4s-06e79181.pth")
def res2net50_26w_4s(num_classes: int = 1000, **options: Any) -> ResNet:
    """Res2Net-50 of 4 parts of 26 channels with timm's ``res2net50_26w_4s`` state_dict."""
    return ResNet(Res2Bottleneck, (3, 4, 6, 3), num_classes, **options)


@register_model(names_follow="timm", weights_url=TIMM + "v0.1-res2net/res2net50_14w_8s-6527dddc.pth")
def res2net50_14w_8s(num_classes: int = 1000, **options: Any) -> ResNet:
    """Res2Net-50 of 8 parts of 14 channels with timm's ``res2net50_14w_8s`` state_dict."""
    return ResNet(partial(Res2Bottleneck, base_width=14, scale=8), (3, 4, 6, 3), num_classes, **options)


@register_model(names_follow="timm", weights_url=TIMM + "v0.1-res2net/res2net101_26w_4s-02a759a1.pth")
def res2net101_26w_4s(num_classes: int = 1000, **options: Any) -> ResNet:
    """Res2Net-101 of 4 parts of 26 channels with timm's ``res2net101_26w_4s`` state_dict."""
    return ResNet(Res2Bottleneck, (3, 4, 23, 3), num_classes, **options)

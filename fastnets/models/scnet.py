"""SCNet, with the parameter names of its authors' release (https://github.com/MCG-NKU/SCNet).

Paper: J.-J. Liu, Q. Hou, M.-M. Cheng, C. Wang, J. Feng, "Improving Convolutional Networks with Self-Calibrated
Convolutions", CVPR 2020, http://mftp.mmcheng.net/Papers/20cvprSCNet.pdf
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.layers import Conv2d, Residual
from fastnets.layers.residual import projection
from fastnets.models._registry import register_model
from fastnets.models.resnet import ResNet


def _conv_bn(channels: int, stride: int, taps: int) -> list[nn.Module]:
    return [Conv2d(channels, channels, 3, stride, taps, taps, bias=False), nn.BatchNorm2d(channels)]


class SCConv(nn.Module):
    r"""Convolves with weights for each pixel, from 0 to 1, that a smaller copy of the input calibrates.

    .. math::
        y = F_4(F_3(x) \cdot \sigma(x + \mathrm{Up}(F_2(\mathrm{AvgPool}_4(x)))))

    where each F is a 3×3 convolution with batch normalisation.

    Args:
        channels: of the input and the output.
        stride: of F₄, in pixels.
        taps: distance between the taps of all convolutions, in pixels.

    Returns:
        (from a call) (n, channels, h / stride, w / stride), rounded up.
    """

    def __init__(self, channels: int, stride: int = 1, taps: int = 1) -> None:
        super().__init__()
        self.k2 = nn.Sequential(nn.AvgPool2d(4), *_conv_bn(channels, 1, taps))
        self.k3 = nn.Sequential(*_conv_bn(channels, 1, taps))
        self.k4 = nn.Sequential(*_conv_bn(channels, stride, taps))

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(x + F.interpolate(self.k2(x), x.shape[2:]))
        return self.k4(self.k3(x) * weights)


class SCBottleneck(Residual):
    """A bottleneck with a self-calibrated convolution of one half of its channels and a plain one of the other.

    Args:
        in_channels: channels of the input.
        channels: a quarter of the channels of the output.
        stride: of the 3×3 convolutions, in pixels.
        dilation: distance between the taps of the 3×3 convolutions in a block with a stride, in pixels, and in
            one after it.
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
        erase_relu: bool = False,
    ) -> None:
        super().__init__(4 * channels, erase_relu)
        half = channels // 2
        self.conv1_a = Conv2d(in_channels, half, 1, bias=False)
        self.bn1_a = nn.BatchNorm2d(half)
        self.conv1_b = Conv2d(in_channels, half, 1, bias=False)
        self.bn1_b = nn.BatchNorm2d(half)
        self.k1 = nn.Sequential(*_conv_bn(half, stride, dilation[0]))
        self.scconv = SCConv(half, stride, dilation[0])
        self.conv3 = Conv2d(channels, self.out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, self.out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        a = self.relu(self.k1(self.relu(self.bn1_a(self.conv1_a(x)))))
        b = self.relu(self.scconv(self.relu(self.bn1_b(self.conv1_b(x)))))
        return self.bn3(self.conv3(torch.cat((a, b), 1)))


# The last stage pools by 4, so at least 4 pixels must arrive there.
@register_model(
    names_follow="paper",
    min_size=97,
    weights_url="https://backseason.oss-cn-beijing.aliyuncs.com/scnet/scnet50-dc6a7e87.pth",
)
def scnet50(num_classes: int = 1000, **options: Any) -> ResNet:
    """SCNet-50 with the authors' ``scnet50`` state_dict."""
    return ResNet(SCBottleneck, (3, 4, 6, 3), num_classes, **options)


@register_model(
    names_follow="paper",
    min_size=97,
    weights_url="https://backseason.oss-cn-beijing.aliyuncs.com/scnet/scnet101-44c5b751.pth",
)
def scnet101(num_classes: int = 1000, **options: Any) -> ResNet:
    """SCNet-101 with the authors' ``scnet101`` state_dict."""
    return ResNet(SCBottleneck, (3, 4, 23, 3), num_classes, **options)

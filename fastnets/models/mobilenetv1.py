"""MobileNetV1, with the parameter names of timm.

Paper: A. Howard, M. Zhu, B. Chen, D. Kalenichenko, W. Wang, T. Weyand, M. Andreetto, H. Adam, "MobileNets: Efficient
Convolutional Neural Networks for Mobile Vision Applications", 2017, https://arxiv.org/abs/1704.04861
"""

from __future__ import annotations

from torch import Tensor, nn

from fastnets.layers import Conv2d, DepthwiseSeparable
from fastnets.layers.blocks import init_weights, make_divisible
from fastnets.models._registry import register_model

# Table 1 of the paper: channels, blocks, stride of the first block.
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))


class MobileNetV1(nn.Module):
    """Is the network of the paper, with ReLU6 as its authors' code has.

    Args:
        num_classes: length of the output.
        width: factor on all channels, which become multiples of 8.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.mobilenetv1 import MobileNetV1
        >>> MobileNetV1(num_classes=10, width=0.25).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 1000, width: float = 1.0) -> None:
        super().__init__()
        channels = make_divisible(32 * width)
        self.conv_stem = Conv2d(3, channels, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU6(inplace=True)
        self.blocks = nn.Sequential()
        for out, blocks, stride in STAGES:
            stage = nn.Sequential()
            for block in range(blocks):
                previous, channels = channels, make_divisible(out * width)
                stage.append(DepthwiseSeparable(previous, channels, stride if block == 0 else 1))
            self.blocks.append(stage)
        self.classifier = nn.Linear(channels, num_classes)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        return self.classifier(x.mean((2, 3)))


@register_model(names_follow="timm", interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
def mobilenetv1_100(num_classes: int = 1000, width: float = 1.0) -> MobileNetV1:
    """MobileNetV1 with timm's ``mobilenetv1_100`` state_dict."""
    return MobileNetV1(num_classes, width)

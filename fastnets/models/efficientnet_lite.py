"""EfficientNet-Lite, with the parameter names of timm.

Paper: M. Tan, Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019,
https://arxiv.org/abs/1905.11946. The Lite networks are its authors' variant for small devices: ReLU6 for
Swish, no squeeze-and-excitation, and a stem and a head of fixed width.
"""

from __future__ import annotations

from math import ceil

from torch import Tensor, nn

from fastnets.layers import Conv2d, DepthwiseSeparable, InvertedResidual
from fastnets.layers.blocks import init_weights, make_divisible
from fastnets.models._registry import register_model

# Table 1 of the paper after its first row of blocks: channels, blocks, kernel size, stride of the first block.
STAGES = ((24, 2, 3, 2), (40, 2, 5, 2), (80, 3, 3, 2), (112, 3, 5, 1), (192, 4, 5, 2), (320, 1, 3, 1))


class EfficientNetLite(nn.Module):
    """Is the network of the paper without squeeze-and-excitation and with ReLU6.

    Args:
        num_classes: length of the output.
        width: factor on the channels of all blocks, which become multiples of 8.
        depth: factor on the number of blocks, rounded up, of all stages but the first and the last.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.efficientnet_lite import EfficientNetLite
        >>> EfficientNetLite(num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 1000, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        self.conv_stem = Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        channels = make_divisible(16 * width)
        self.blocks = nn.Sequential(nn.Sequential(DepthwiseSeparable(32, channels, last_activation=False)))
        for out, blocks, kernel_size, stride in STAGES:
            stage = nn.Sequential()
            for block in range(ceil(blocks * depth) if blocks > 1 else 1):  # the last stage is one at any depth
                previous, channels = channels, make_divisible(out * width)
                stage.append(InvertedResidual(previous, channels, kernel_size, stride if block == 0 else 1))
            self.blocks.append(stage)
        self.conv_head = Conv2d(channels, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.act = nn.ReLU6(inplace=True)
        self.classifier = nn.Linear(1280, num_classes)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_stem(x)))
        x = self.act(self.bn2(self.conv_head(self.blocks(x))))
        return self.classifier(x.mean((2, 3)))


# timm's own weights want ImageNet's mean and std. The ones that weights='imagenet' loads come from TensorFlow and
# were trained on values from -1 to 1: so normalised, the activations have the means that BatchNorm remembers.
@register_model(names_follow="timm", interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
def efficientnet_lite0(num_classes: int = 1000, width: float = 1.0) -> EfficientNetLite:
    """EfficientNet-Lite0 with timm's ``efficientnet_lite0`` state_dict."""
    return EfficientNetLite(num_classes, width)


@register_model(names_follow="timm", input_size=240, crop=0.882, interpolation="bicubic")
def efficientnet_lite1(num_classes: int = 1000, width: float = 1.0) -> EfficientNetLite:
    """EfficientNet-Lite1 with timm's ``efficientnet_lite1`` state_dict."""
    return EfficientNetLite(num_classes, width, depth=1.1)


@register_model(names_follow="timm", input_size=260, crop=0.89, interpolation="bicubic")
def efficientnet_lite2(num_classes: int = 1000, width: float = 1.1) -> EfficientNetLite:
    """EfficientNet-Lite2 with timm's ``efficientnet_lite2`` state_dict."""
    return EfficientNetLite(num_classes, width, depth=1.2)

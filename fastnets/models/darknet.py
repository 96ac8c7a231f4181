"""Darknet-19 and Darknet-53, with the parameter names of timm.

Papers: J. Redmon, A. Farhadi, "YOLO9000: Better, Faster, Stronger", CVPR 2017, https://arxiv.org/abs/1612.08242, and
"YOLOv3: An Incremental Improvement", 2018, https://arxiv.org/abs/1804.02767
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from fastnets.layers import Conv2d, ConvNormActivation
from fastnets.layers.blocks import init_classifier, init_weights
from fastnets.models._registry import TIMM, register_model

# Table 6 of the first paper: channels between the poolings; of 3×3 and 1×1 convolutions in turns.
STAGES_19 = ((32,), (64,), (128, 64, 128), (256, 128, 256), (512, 256, 512, 256, 512), (1024, 512, 1024, 512, 1024))
# Table 1 of the second: blocks in each stage.
STAGES_53 = (1, 2, 8, 8, 4)

leaky_relu = partial(nn.LeakyReLU, inplace=True)


class Darknet19(nn.Module):
    """Is the network of YOLO9000.

    Args:
        num_classes: length of the output.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.darknet import Darknet19
        >>> Darknet19(num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stages, channels = nn.Sequential(), 3
        for widths in STAGES_19:
            stage = nn.Sequential() if channels == 3 else nn.Sequential(nn.MaxPool2d(2))
            for i, width in enumerate(widths):
                activation = partial(leaky_relu, 0.1)
                stage.append(ConvNormActivation(channels, width, 3 if i % 2 == 0 else 1, activation=activation))
                channels = width
            self.stages.append(stage)
        self.head = Conv2d(channels, num_classes, 1)
        self.apply(init_weights)
        init_classifier(self.head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x)).mean((2, 3))


class DarkBlock(nn.Module):
    """Adds to its input a 1×1 convolution to half the channels and a 3×3 one back."""

    def __init__(self, channels: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = ConvNormActivation(channels, channels // 2, 1, activation=activation)
        self.conv2 = ConvNormActivation(channels // 2, channels, 3, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class DarkStage(nn.Module):
    """Halves the size and doubles the channels, then runs blocks."""

    def __init__(self, in_channels: int, blocks: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv_down = ConvNormActivation(in_channels, 2 * in_channels, 3, 2, activation=activation)
        self.blocks = nn.Sequential(*(DarkBlock(2 * in_channels, activation) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.conv_down(x))


class Darknet53(nn.Module):
    """Is the backbone of YOLOv3, with its classifier.

    Args:
        num_classes: length of the output.
        negative_slope: of the leaky ReLU, 0.1 in the paper; timm trained its weights with 0.01.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.darknet import Darknet53
        >>> Darknet53(num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 1000, negative_slope: float = 0.1) -> None:
        super().__init__()
        activation = partial(leaky_relu, negative_slope)
        self.stem = nn.Sequential()
        self.stem.add_module("conv1", ConvNormActivation(3, 32, 3, activation=activation))
        self.stages = nn.Sequential(*(DarkStage(32 * 2**i, blocks, activation) for i, blocks in enumerate(STAGES_53)))
        self.head = nn.Sequential()
        self.head.add_module("fc", nn.Linear(1024, num_classes))
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


@register_model(names_follow="paper", input_size=256, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
def darknet19(num_classes: int = 1000) -> Darknet19:
    """Darknet-19."""
    return Darknet19(num_classes)


@register_model(
    names_follow="timm",
    input_size=256,
    crop=0.887,
    interpolation="bicubic",
    weights_url=TIMM + "v0.1-tpu-weights/darknet53_256_c2ns-3aeff817.pth",
)
def darknet53(num_classes: int = 1000, negative_slope: float = 0.01) -> Darknet53:
    """Darknet-53 with timm's ``darknet53`` state_dict."""
    return Darknet53(num_classes, negative_slope)

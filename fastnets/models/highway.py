"""A convolutional highway network for small photos.

Papers: R. Srivastava, K. Greff, J. Schmidhuber, "Training Very Deep Networks", NeurIPS 2015,
https://arxiv.org/abs/1507.06228, which makes highway layers of those of A. Romero et al., "FitNets: Hints for Thin Deep
Nets", ICLR 2015, https://arxiv.org/abs/1412.6550
"""

from __future__ import annotations

from torch import Tensor, nn

from fastnets.layers import Conv2d, HighwayConv2d
from fastnets.layers.blocks import init_weights
from fastnets.models._registry import register_model

# FitNet 4: channels of the convolutions between the poolings.
STAGES = ((32, 32, 32, 48, 48), (80, 80, 80, 80, 80, 80), (128, 128, 128, 128, 128, 128))


class Highway(nn.Module):
    """Is the paper's network B of 19 layers, for photos of 32 by 32 pixels.

    Where the number of channels changes, a layer is a plain convolution.

    Args:
        num_classes: length of the output.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.highway import Highway
        >>> Highway(num_classes=10).eval()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features, channels = nn.Sequential(), 3
        for stage in STAGES:
            for out in stage:
                if out == channels:
                    self.features.append(HighwayConv2d(channels, 3))
                else:
                    self.features.append(nn.Sequential(Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)))
                channels = out
            if stage is not STAGES[-1]:
                self.features.append(nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(channels, 500), nn.ReLU(inplace=True), nn.Linear(500, num_classes))
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).amax((2, 3)))


@register_model(names_follow="paper", input_size=32, crop=1.0)
def highway_19(num_classes: int = 10) -> Highway:
    """The highway network of 19 layers, for the ten classes of CIFAR-10."""
    return Highway(num_classes)

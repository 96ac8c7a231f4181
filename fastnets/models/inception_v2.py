"""BN-Inception, the network of the paper on batch normalisation, later called Inception v2.

Paper: S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
Shift", 2015, https://arxiv.org/abs/1502.03167
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from fastnets.layers import Branches, Conv2d, ConvNormActivation
from fastnets.layers.blocks import RELU, init_weights
from fastnets.layers.branches import Layer, numbered
from fastnets.models._registry import register_model

# Figure 5 of the paper: 1×1; 3×3 reduced and full; double 3×3 reduced and full; after the pooling. Where
# there is no convolution after the pooling, it passes all channels on.
MODULES = {
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (0, 128, 160, 64, 96, 0),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 96),
    "4d": (96, 128, 192, 160, 192, 96),
    "4e": (0, 128, 192, 192, 256, 0),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}
HALVING = ("3c", "4e")
MAX_POOLING = ("3c", "4e", "5b")


class InceptionV2(nn.Module):
    """Is the network of the paper.

    Args:
        num_classes: length of the output.
        erase_relu: whether the last ReLU of every branch is left out, https://arxiv.org/abs/1709.07634.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.inception_v2 import InceptionV2
        >>> InceptionV2(num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 1000, erase_relu: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            Conv2d(3, 24, 7, 2, 3, groups=3, bias=False),  # 8 kernels for each colour
            ConvNormActivation(24, 64, 1),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            ConvNormActivation(64, 64, 1),
            ConvNormActivation(64, 192, 3),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        self.blocks = nn.ModuleDict()
        channels = 192
        for name, sizes in MODULES.items():
            stride = 2 if name in HALVING else 1
            pool = nn.MaxPool2d(3, stride, 1) if name in MAX_POOLING else nn.AvgPool2d(3, 1, 1, count_include_pad=False)
            self.blocks[name] = _inception(channels, sizes, stride, pool, nn.Identity if erase_relu else RELU)
            one, _, three, _, double, pooled = sizes
            channels = one + three + double + (pooled or channels)
        self.fc = nn.Linear(channels, num_classes)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks.values():
            x = block(x)
        return self.fc(x.mean((2, 3)))


def _inception(
    in_channels: int, sizes: tuple[int, ...], stride: int, pool: nn.Module, last_activation: Callable[[], nn.Module]
) -> Branches:
    one, three_reduced, three, double_reduced, double, pooled = sizes
    chains: list[Sequence[Layer]] = [
        [(three_reduced, 1), (three, 3, stride, 1)],
        [(double_reduced, 1), (double, 3), (double, 3, stride, 1)],
        [pool, (pooled, 1)] if pooled else [pool],
    ]
    if one:
        chains.insert(0, [(one, 1)])
    return Branches(**numbered(in_channels, *chains, eps=1e-5, last_activation=last_activation))


@register_model(names_follow="paper")
def inception_v2(num_classes: int = 1000, erase_relu: bool = False) -> InceptionV2:
    """BN-Inception."""
    return InceptionV2(num_classes, erase_relu)

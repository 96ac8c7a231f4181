"""Network in Network.

Paper: M. Lin, Q. Chen, S. Yan, "Network In Network", ICLR 2014, https://arxiv.org/abs/1312.4400. The paper gives no
sizes for ImageNet; these are its authors', https://gist.github.com/mavenlin/d802a5849de39225bcc6
"""

from __future__ import annotations

from torch import Tensor, nn

from fastnets.layers import Conv2d
from fastnets.layers.blocks import init_weights
from fastnets.models._registry import register_model


class MlpConv(nn.Sequential):
    """A convolution whose kernel is a small network: a linear one, then two fully connected layers at each pixel.

    Args:
        in_channels: channels of the input.
        channels: of the three layers.
        kernel_size: of the first convolution, in pixels.
        stride: of the first convolution, in pixels.
        padding: of the first convolution, in pixels.
    """

    def __init__(
        self, in_channels: int, channels: tuple[int, int, int], kernel_size: int, stride: int = 1, padding: int = 0
    ) -> None:
        first, second, third = channels
        super().__init__(
            Conv2d(in_channels, first, kernel_size, stride, padding),
            nn.ReLU(inplace=True),
            Conv2d(first, second, 1),
            nn.ReLU(inplace=True),
            Conv2d(second, third, 1),
            nn.ReLU(inplace=True),
        )


class NetworkInNetwork(nn.Module):
    """Is the network of the paper: the last mlpconv has a map for each class, and its mean is the logit.

    Args:
        num_classes: length of the output.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.nin import NetworkInNetwork
        >>> NetworkInNetwork(num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            MlpConv(3, (96, 96, 96), 11, stride=4),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            MlpConv(96, (256, 256, 256), 5, padding=2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            MlpConv(256, (384, 384, 384), 3, padding=1),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Dropout(0.5),
            MlpConv(384, (1024, 1024, num_classes), 3, padding=1),
        )
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))


@register_model(names_follow="paper", min_size=39)
def nin(num_classes: int = 1000) -> NetworkInNetwork:
    """Network in Network for ImageNet."""
    return NetworkInNetwork(num_classes)

"""CornerNet's layers: corner pooling, and the modules that pool towards both sides of a corner."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.ops import corner_pool, corner_pool_sum
from fastnets.ops.corner_pool import DIRECTIONS, check_choice


class CornerPool(nn.Module):
    """Replaces every pixel by the largest on the way to one border: :func:`fastnets.ops.corner_pool` as a module.

    Args:
        direction: 'top', 'bottom', 'left' or 'right'.

    Returns:
        (from a call) the shape, type and layout of the input (n, c, h, w).

    Raises:
        ValueError: an unknown direction.

    Paper: H. Law and J. Deng, "CornerNet: Detecting Objects as Paired Keypoints", 2018,
    https://arxiv.org/abs/1808.01244

    Example:
        >>> import torch
        >>> from fastnets.layers import CornerPool
        >>> CornerPool("bottom")(torch.tensor([[[[1.0], [0.0], [2.0]]]])).flatten().tolist()
        [1.0, 1.0, 2.0]
    """

    def __init__(self, direction: str) -> None:
        super().__init__()
        check_choice("direction", direction, DIRECTIONS)
        self.direction = direction

    def forward(self, input: Tensor) -> Tensor:
        return corner_pool(input, self.direction)

    def extra_repr(self) -> str:
        return repr(self.direction)


class _ConvNormReLU(nn.Module):
    """3x3 convolution, normalisation, ReLU, under CornerNet's names."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _TwoSidedCornerPool(nn.Module):
    """A residual block whose first convolution is followed by the sum of two corner pools."""

    corner: str

    def __init__(self, channels: int, pooled_channels: int = 128) -> None:
        super().__init__()
        self.p1_conv1 = _ConvNormReLU(channels, pooled_channels)
        self.p2_conv1 = _ConvNormReLU(channels, pooled_channels)
        self.p_conv1 = nn.Conv2d(pooled_channels, channels, 3, padding=1, bias=False)
        self.p_bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _ConvNormReLU(channels, channels)

    def forward(self, input: Tensor) -> Tensor:
        pooled = corner_pool_sum(self.p1_conv1(input), self.p2_conv1(input), self.corner)
        shortcut = self.bn1(self.conv1(input))
        return self.conv2(F.relu(self.p_bn1(self.p_conv1(pooled)) + shortcut))


class TopLeftCornerPool(_TwoSidedCornerPool):
    """CornerNet's module for top-left corners, with the parameter names of the authors' code.

    Two 3×3 convolutions of the input are pooled towards the top and towards the left; a 3×3 convolution of their sum
    and a 1×1 convolution of the input are added, and a last 3×3 convolution follows. Batch normalisation after each.

    Args:
        channels: of the input and the output.
        pooled_channels: of the maps that are pooled; 128 in the paper.

    Returns:
        (from a call) the shape of the input (n, channels, h, w).

    Paper: H. Law and J. Deng, "CornerNet: Detecting Objects as Paired Keypoints", 2018,
    https://arxiv.org/abs/1808.01244

    Example:
        >>> import torch
        >>> from fastnets.layers import TopLeftCornerPool
        >>> TopLeftCornerPool(16)(torch.ones(1, 16, 8, 8)).shape
        torch.Size([1, 16, 8, 8])
    """

    corner = "top_left"


class BottomRightCornerPool(_TwoSidedCornerPool):
    """CornerNet's module for bottom-right corners: :class:`TopLeftCornerPool` towards the other two sides.

    Args:
        channels: of the input and the output.
        pooled_channels: of the maps that are pooled; 128 in the paper.

    Returns:
        (from a call) the shape of the input (n, channels, h, w).

    Paper: H. Law and J. Deng, "CornerNet: Detecting Objects as Paired Keypoints", 2018,
    https://arxiv.org/abs/1808.01244

    Example:
        >>> import torch
        >>> from fastnets.layers import BottomRightCornerPool
        >>> BottomRightCornerPool(16)(torch.ones(1, 16, 8, 8)).shape
        torch.Size([1, 16, 8, 8])
    """

    corner = "bottom_right"

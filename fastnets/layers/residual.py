"""Residual blocks, with the parameter names of torchvision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from fastnets.layers.conv import Conv2d


class Residual(nn.Module):
    """Adds its input to what ``residual`` makes of it; the base of the blocks below.

    A subclass defines ``residual``, and ends its constructor with ``self.downsample = projection(...)``.

    Args:
        out_channels: channels of the output.
        erase_relu: whether the ReLU after the sum is left out.

    Returns:
        (from a call) max(0, residual(x) + downsample(x)), or the sum itself.

    Papers: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", 2015,
    https://arxiv.org/abs/1512.03385. X. Dong, G. Kang, K. Zhan, Y. Yang, "EraseReLU: A Simple Way to Ease the Training
    of Deep Convolution Neural Networks", 2017, https://arxiv.org/abs/1709.07634
    """

    relu: nn.Module
    downsample: nn.Module

    def __init__(self, out_channels: int, erase_relu: bool = False) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.erase_relu = erase_relu

    def residual(self, x: Tensor) -> Tensor:
        """What is added to the input."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.residual(x) + self.downsample(x)
        return y if self.erase_relu else self.relu(y)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The shortcut of a block: the input itself, or its 1×1 convolution where the shapes differ.

    Args:
        in_channels: of the block's input.
        out_channels: of its output.
        stride: of the block, in pixels.

    Returns:
        A module from (n, in_channels, h, w) to (n, out_channels, h / stride, w / stride), rounded up.
    """
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(Residual):
    """Two 3×3 convolutions beside a shortcut.

    Args:
        in_channels: channels of the input.
        channels: of both convolutions, and of the output.
        stride: of the first convolution, in pixels.
        dilation: distance between the taps of the first convolution and of the second, in pixels.
        erase_relu: as of :class:`Residual`.

    Returns:
        (from a call) (n, channels, h / stride, w / stride), rounded up.

    Papers: as of :class:`Residual`.

    Example:
        >>> import torch
        >>> from fastnets.layers import BasicBlock
        >>> BasicBlock(8, 16, stride=2)(torch.ones(1, 8, 7, 7)).shape
        torch.Size([1, 16, 4, 4])
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
        super().__init__(channels, erase_relu)
        first, second = dilation
        self.conv1 = Conv2d(in_channels, channels, 3, stride, first, first, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = Conv2d(channels, channels, 3, 1, second, second, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = projection(in_channels, channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Bottleneck(Residual):
    """A 3×3 convolution of few channels between two of 1×1, beside a shortcut.

    Args:
        in_channels: channels of the input.
        channels: a quarter of the channels of the output.
        stride: of the 3×3 convolution, in pixels.
        dilation: distance between the taps of the convolution that has the stride and of one after it, in pixels.
        groups: of the 3×3 convolution, the cardinality of ResNeXt.
        base_width: channels of a group where ``channels`` is 64; in proportion elsewhere.
        stride_first: whether the stride is the first convolution's, as in the paper, where torchvision
            gives it to the 3×3 one.
        erase_relu: as of :class:`Residual`.

    Returns:
        (from a call) (n, 4·channels, h / stride, w / stride), rounded up.

    Papers: as of :class:`Residual`. S. Xie, R. Girshick, P. Dollár, Z. Tu, K. He, "Aggregated Residual
    Transformations for Deep Neural Networks", 2016, https://arxiv.org/abs/1611.05431

    Example:
        >>> import torch
        >>> from fastnets.layers import Bottleneck
        >>> Bottleneck(64, 64, stride=2, groups=32, base_width=4)(torch.ones(1, 64, 7, 7)).shape
        torch.Size([1, 256, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dilation: tuple[int, int] = (1, 1),
        *,
        groups: int = 1,
        base_width: int = 64,
        stride_first: bool = False,
        erase_relu: bool = False,
    ) -> None:
        super().__init__(4 * channels, erase_relu)
        inside = channels * base_width // 64 * groups
        strides, taps = ((stride, 1), dilation[1]) if stride_first else ((1, stride), dilation[0])
        self.conv1 = Conv2d(in_channels, inside, 1, strides[0], bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = Conv2d(inside, inside, 3, strides[1], taps, taps, groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = Conv2d(inside, self.out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, self.out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.bn3(self.conv3(y))


def residual_stages(
    block: Callable[..., Residual],
    blocks: Sequence[int],
    replace_stride_with_dilation: Sequence[bool] = (False, False, False),
) -> Iterator[nn.Sequential]:
    """Builds the four stages that all residual networks are made of.

    Args:
        block: makes a block from (in_channels, channels, stride, dilation).
        blocks: in each stage.
        replace_stride_with_dilation: for each stage but the first, whether it keeps the size of its input and
            dilates its convolutions instead, by the factor by which it would have been smaller.

    Returns:
        The stages one by one, for an input of 64 channels.

    Raises:
        ValueError: not three choices between stride and dilation.
    """
    if len(replace_stride_with_dilation) != 3:
        raise ValueError(f"replace_stride_with_dilation expects three values, but got {replace_stride_with_dilation}")
    in_channels, dilation = 64, 1
    for i, (number, dilate) in enumerate(zip(blocks, (False, *replace_stride_with_dilation), strict=True)):
        before, stride = dilation, 2 if i > 0 else 1
        if dilate:
            dilation, stride = 2 * dilation, 1
        stage = nn.Sequential()
        for j in range(number):
            # Up to the stride that is left out, pixels are as far apart as before.
            taps = (before if j == 0 else dilation, dilation)
            stage.append(new := block(in_channels, 64 * 2**i, stride if j == 0 else 1, taps))
            in_channels = new.out_channels
        yield stage

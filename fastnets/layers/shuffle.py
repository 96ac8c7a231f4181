"""Shuffles of channels and pixels on the kernels of :mod:`fastnets.ops`."""

from __future__ import annotations

from torch import Tensor, nn

from fastnets.ops import channel_shuffle, pixel_shuffle, pixel_unshuffle, shuffle_split


class ChannelShuffle(nn.ChannelShuffle):
    """Is ``torch.nn.ChannelShuffle`` on :func:`fastnets.ops.channel_shuffle`.

    Args:
        groups: of channels, which divides their number.

    Returns:
        (from a call) the shape, type and layout of the input (n, c, ...).

    Raises:
        RuntimeError: (from a call) as ``torch.nn.ChannelShuffle``, with the same messages.

    Paper: X. Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices",
    2017, https://arxiv.org/abs/1707.01083

    Example:
        >>> import torch
        >>> from fastnets.layers import ChannelShuffle
        >>> ChannelShuffle(2)(torch.arange(4.0).view(1, 4, 1, 1)).flatten().tolist()
        [0.0, 2.0, 1.0, 3.0]
    """

    def forward(self, input: Tensor) -> Tensor:
        return channel_shuffle(input, self.groups)


class ShuffleSplit(nn.Module):
    """Is :func:`fastnets.ops.shuffle_split`: two tensors concatenated, shuffled by two groups and split in halves.

    Args: none.

    Returns:
        (from a call) two tensors of the shape, type and layout of the two inputs (n, c, h, w).

    Raises:
        RuntimeError: (from a call) shapes, types or devices differ, or are not of four dimensions.

    Paper: N. Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018,
    https://arxiv.org/abs/1807.11164

    Example:
        >>> import torch
        >>> from fastnets.layers import ShuffleSplit
        >>> a = torch.arange(2.0).view(1, 2, 1, 1)
        >>> [y.flatten().tolist() for y in ShuffleSplit()(a, a + 10)]
        [[0.0, 10.0], [1.0, 11.0]]
    """

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return shuffle_split(a, b)


class PixelShuffle(nn.PixelShuffle):
    """Is ``torch.nn.PixelShuffle`` on :func:`fastnets.ops.pixel_shuffle`.

    Args:
        upscale_factor: r, at least 1.

    Returns:
        (from a call) (..., c, h·r, w·r) in the type and layout of the input (..., c·r², h, w).

    Raises:
        RuntimeError: (from a call) as ``torch.nn.PixelShuffle``, with the same messages.

    Paper: W. Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
    Neural Network", 2016, https://arxiv.org/abs/1609.05158

    Example:
        >>> import torch
        >>> from fastnets.layers import PixelShuffle
        >>> PixelShuffle(2)(torch.ones(1, 12, 5, 5)).shape
        torch.Size([1, 3, 10, 10])
    """

    def forward(self, input: Tensor) -> Tensor:
        return pixel_shuffle(input, self.upscale_factor)


class PixelUnshuffle(nn.PixelUnshuffle):
    """Is ``torch.nn.PixelUnshuffle`` on :func:`fastnets.ops.pixel_unshuffle`.

    Args:
        downscale_factor: r, at least 1.

    Returns:
        (from a call) (..., c·r², h, w) in the type and layout of the input (..., c, h·r, w·r).

    Raises:
        RuntimeError: (from a call) as ``torch.nn.PixelUnshuffle``, with the same messages.

    Paper: as of :class:`PixelShuffle`.

    Example:
        >>> import torch
        >>> from fastnets.layers import PixelUnshuffle
        >>> PixelUnshuffle(2)(torch.ones(1, 3, 10, 10)).shape
        torch.Size([1, 12, 5, 5])
    """

    def forward(self, input: Tensor) -> Tensor:
        return pixel_unshuffle(input, self.downscale_factor)

"""Convolution layers on the kernels of :mod:`fastnets.ops`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.ops import conv2d, depthwise_conv2d, grouped_conv2d
from fastnets.ops._activation import check_activation
from fastnets.ops._convolution import Ints, Pair, Sides, lay_zeros, zeros_around


class Conv2d(nn.Conv2d):
    """Is ``torch.nn.Conv2d`` (same arguments, same state_dict) on :func:`fastnets.ops.conv2d`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            device, dtype: as in ``torch.nn.Conv2d``.

    Returns:
        (from a call) (n, out_channels, h', w') in the type of the input (n, in_channels, h, w).

    Raises:
        ValueError, RuntimeError: as ``torch.nn.Conv2d``, with the same messages.

    Example:
        >>> import torch
        >>> from fastnets.layers import Conv2d
        >>> layer = Conv2d(4, 4, 3, padding=1, groups=4)
        >>> layer(torch.ones(1, 4, 8, 8)).shape
        torch.Size([1, 4, 8, 8])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = self._pad(input)
        return conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _pad(self, input: Tensor) -> tuple[Tensor, Pair | str]:
        """Adds the padding that is not of zeros; returns the input and what the convolution itself shall add."""
        if self.padding_mode == "zeros":
            return input, self.padding
        return F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0


class GroupedConv2d(Conv2d):
    """Convolves each of ``groups`` equal parts of the channels by itself, then applies an activation in the same pass.

    The activation needs no pass over memory of its own where the padding is of zeros.

    Args:
        in_channels: c, channels of the input, a multiple of groups.
        out_channels: o, channels of the result, a multiple of groups.
        kernel_size: rows and columns of a kernel in pixels, an int or (vertical, horizontal).
        stride: steps of the kernel in pixels, an int or (vertical, horizontal).
        padding: pixels added on each side, an int or (vertical, horizontal); zeros also by four numbers, (top, left,
            bottom, right); 'valid' or, for ceil(size / stride) results, 'same', of zeros as TensorFlow lays them.
        dilation: distance between taps in pixels, an int or (vertical, horizontal).
        groups: how many parts the channels fall into.
        bias: whether a learnt bias is added.
        padding_mode: what is added: 'zeros', 'reflect', 'replicate' or 'circular'.
        activation: None, 'relu', 'relu6', 'leaky_relu' (slope 0.1), 'silu', 'hardswish' or 'sigmoid'.
        device, dtype: of the parameters ``weight`` (o, c / groups, kh, kw) and ``bias`` (o).

    Returns:
        (from a call) (n, o, h', w') in the type of the input (n, c, h, w).

    Raises:
        ValueError: an argument is not one of those listed.
        RuntimeError: (from a call) as ``torch.nn.Conv2d``.

    Paper: S. Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", 2017,
    https://arxiv.org/abs/1611.05431

    Example:
        >>> import torch
        >>> from fastnets.layers import GroupedConv2d
        >>> layer = GroupedConv2d(8, 4, 3, padding=1, groups=2, activation="relu")
        >>> layer(torch.ones(1, 8, 6, 6)).shape
        torch.Size([1, 4, 6, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_activation(activation)
        sides = tuple(padding) if isinstance(padding, tuple | list) and len(padding) == 4 else ()
        if min(sides, default=0) < 0:
            raise ValueError(f"expected a padding that is not negative, but got {padding}")
        # PyTorch has no padding by four numbers, and 'same' not for strides.
        more = padding_mode == "zeros" and (sides or padding == "same")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            0 if more else padding,  # type: ignore[arg-type]
            dilation,  # type: ignore[arg-type]
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )
        if more:
            self.padding = sides or "same"  # type: ignore[assignment]
        self.activation = activation

    def _zeros(self, size: Ints) -> Sides:
        """What padding of zeros means for an input of that height and width."""
        return zeros_around(size, self.kernel_size, self.stride, self.padding, self.dilation)

    def _pad(self, input: Tensor) -> tuple[Tensor, Pair | str]:
        """Adds what the convolution itself cannot add, which then adds the same on both sides."""
        if self.padding_mode != "zeros":
            return super()._pad(input)
        top, left, bottom, right = sides = self._zeros(input.shape[-2:])
        if (top, left) == (bottom, right):
            return input, (top, left)
        return lay_zeros(input, sides), (0, 0)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = self._pad(input)
        geometry = self.stride, padding, self.dilation, self.groups
        return grouped_conv2d(input, weight, bias, *geometry, activation=self.activation)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", activation={self.activation}" if self.activation else "")


class DepthwiseConv2d(GroupedConv2d):
    """Convolves every channel with ``multiplier`` kernels of its own, then applies an activation in the same pass.

    The activation needs no pass over memory of its own where the padding is of zeros.

    Args:
        in_channels: c, channels of the input.
        kernel_size: rows and columns of a kernel in pixels, an int or (vertical, horizontal).
        stride: steps of the kernel in pixels, an int or (vertical, horizontal).
        padding: as of :class:`GroupedConv2d`.
        dilation: distance between taps in pixels, an int or (vertical, horizontal).
        bias: whether a learnt bias is added.
        padding_mode: what is added: 'zeros', 'reflect', 'replicate' or 'circular'.
        multiplier: m, output channels for each input channel.
        activation: None, 'relu', 'relu6', 'leaky_relu' (slope 0.1), 'silu', 'hardswish' or 'sigmoid'.
        device, dtype: of the parameters ``weight`` (c·m, 1, kh, kw) and ``bias`` (c·m).

    Returns:
        (from a call) (n, c·m, h', w') in the type of the input (n, c, h, w).

    Raises:
        ValueError: an argument is not one of those listed.
        RuntimeError: (from a call) as ``torch.nn.Conv2d``.

    Paper: A. Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
    Applications", 2017, https://arxiv.org/abs/1704.04861

    Example:
        >>> import torch
        >>> from fastnets.layers import DepthwiseConv2d
        >>> layer = DepthwiseConv2d(4, 3, padding=1, multiplier=2, activation="relu6")
        >>> layer(torch.ones(1, 4, 8, 8)).shape
        torch.Size([1, 8, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        multiplier: int = 1,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            in_channels * multiplier,
            kernel_size,
            stride,
            padding,
            dilation,
            in_channels,
            bias,
            padding_mode,
            activation=activation,
            device=device,
            dtype=dtype,
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.shape[-3:-2] != (self.in_channels,):  # the op takes as many groups as there are channels
            return super()._conv_forward(input, weight, bias)
        input, padding = self._pad(input)
        return depthwise_conv2d(input, weight, bias, self.stride, padding, self.dilation, activation=self.activation)

"""Kernels of several convolutions and BatchNorms of one value, which are added up to one convolution."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from fastnets.accelerate._convolutions import rebuild
from fastnets.layers import Conv2d, GroupedConv2d


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A linear map of images, and a bias; of nothing else than these, the images themselves.

    Args:
        conv: whose geometry and type it has, and whose kernel is nowhere smaller than others'; None: it has one pixel,
            and takes each channel by itself.
        parts: the convolutions, or None for the images themselves, that are added, with factors (o) in float64.
        bias: (o), in float64, or 0.
    """

    conv: nn.Conv2d | None = None
    parts: tuple[tuple[nn.Conv2d | None, Any], ...] = ((None, 1.0),)
    bias: Any = 0.0

    def scaled(self, scale: Any, shift: Any = 0.0) -> Kernel:
        """The map followed by y = scale x + shift."""
        return Kernel(self.conv, tuple((conv, s * scale) for conv, s in self.parts), self.bias * scale + shift)

    def takes(self, other: Kernel) -> bool:
        """Whether this kernel has a place for all numbers of another one of the same images."""
        if self.conv is None:
            return False
        return _covers(self.conv, other.conv or _each_channel(self.conv))

    def plus(self, other: Kernel) -> Kernel:
        """The sum with one that this takes."""
        return Kernel(self.conv, self.parts + other.parts, self.bias + other.bias)

    @torch.no_grad()
    def layer(self) -> Conv2d:
        """The convolution, whose numbers are rounded once."""
        host = self.conv
        assert host is not None
        weight = host.weight.new_zeros(host.weight.shape, dtype=torch.float64)
        for part, scale in self.parts:
            conv = part or _each_channel(host)
            taps = _in_groups(conv.weight.double(), conv.groups, host.groups)
            places = zip(_axes(host), _axes(conv), strict=True)
            rows, columns = (slice(at := (p - q) // d, at + k) for (_, p, d), (k, q, _) in places)
            weight[:, :, rows, columns] += taps * (scale.view(-1, 1, 1, 1) if isinstance(scale, Tensor) else scale)
        bias = self.bias.to(host.weight.dtype) if isinstance(self.bias, Tensor) else None
        return rebuild(host, weight.to(host.weight.dtype), bias)


def kernel_of(conv: nn.Conv2d) -> Kernel | None:
    """That of a convolution which adds zeros, as many on opposite sides, if any."""
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    is_even = (left, top) == (right, bottom) and conv.padding_mode == "zeros"
    if isinstance(conv, GroupedConv2d) and (conv.padding == "same" or len(conv.padding) == 4):
        return None  # the zeros depend on the size, or differ
    if not is_even or not conv.weight.dtype.is_floating_point:
        return None
    return Kernel(conv, ((conv, 1.0),), 0.0 if conv.bias is None else conv.bias.detach().double())


def _axes(conv: nn.Conv2d) -> list[tuple[int, int, int]]:
    """Kernel, padding and dilation of rows and of columns."""
    left, _, top, _ = conv._reversed_padding_repeated_twice
    return list(zip(conv.kernel_size, (top, left), conv.dilation, strict=True))


def _covers(large: nn.Conv2d, small: nn.Conv2d) -> bool:
    """Whether results have the same sizes, and wherever the small kernel has a number, the large one has too."""
    alike = all(getattr(large, name) == getattr(small, name) for name in ("in_channels", "out_channels", "stride"))
    if not alike or small.groups % large.groups or large.weight.dtype != small.weight.dtype:
        return False
    axes = zip(_axes(large), _axes(small), strict=True)
    return all(
        2 * (p - q) == d * (k - 1) - e * (j - 1) and q <= p and (p - q) % d == 0 and (j == 1 or d == e)
        for (k, p, d), (j, q, e) in axes
    )


def _each_channel(host: nn.Conv2d) -> nn.Conv2d:
    """The convolution that gives what it is given, of as many channels as another one gives."""
    c = host.out_channels
    conv = nn.Conv2d(c, c, 1, groups=c, bias=False, device="meta")
    conv.weight = nn.Parameter(host.weight.new_ones(c, 1, 1, 1))
    return conv


def _in_groups(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """Weights (o, c / groups, kh, kw) of as many groups as (o, c / fewer, kh, kw), with zeros between groups."""
    o, c, *size = weight.shape
    n = groups // fewer
    between = torch.eye(n, dtype=weight.dtype, device=weight.device).view(1, n, 1, n, 1, 1, 1)
    return (weight.view(fewer, n, o // groups, 1, c, *size) * between).reshape(o, n * c, *size)

"""The pointwise convolution of normalised pixels for inference: the tensor between the two stays in the caches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnets._op import is_plain
from fastnets.layers.packed_conv import PackedConv2d
from fastnets.ops._packed import Packs, kernels_take, pack_norm, pack_panels, preact_conv2d


class PackedPreactConv2d(Packs, nn.Module):
    """Applies BatchNorm, ReLU, a pointwise convolution and average pooling in one pass.

    The pixels are averaged before the convolution, which then has fewer of them: the order changes nothing but roundings.
    Where the compiled kernels do not take the input (another layout than channels_last, of which it may be a slice of
    channels, another type than float32, gradients, tracing, training), the layers run in turn.

    Args:
        norm: with running statistics.
        conv: a pointwise convolution of as many channels, without activation where its results are pooled.
        pool: height and width of the squares of results that are averaged.

    Returns:
        (from a call with input (n, c, h, w)) avg_pool2d(conv(relu(norm(input))), pool), (n, o, h // pool, w // pool).

    Raises:
        ValueError: the layers are not of these kinds, or do not follow one another.
        RuntimeError: (from a call) as ``torch.nn.BatchNorm2d``.

    Paper: K. He et al., "Identity Mappings in Deep Residual Networks", 2016, https://arxiv.org/abs/1603.05027

    Example:
        >>> import torch
        >>> from fastnets.layers import PackedConv2d, PackedPreactConv2d
        >>> layer = PackedPreactConv2d(torch.nn.BatchNorm2d(4), PackedConv2d(4, 8, 1), pool=2).eval()
        >>> layer(torch.ones(1, 4, 5, 5)).shape
        torch.Size([1, 8, 2, 2])
    """

    def __init__(self, norm: nn.BatchNorm2d, conv: PackedConv2d, pool: int = 1) -> None:
        super().__init__()
        if not is_preact(norm, conv) or pool < 1 or (pool > 1 and conv.activation is not None):
            raise ValueError(
                "expected a BatchNorm2d with running statistics, a pointwise convolution of as many channels, and a "
                f"positive size of pooling, with which there is no activation, but got {norm}, {conv}, {pool}"
            )
        self.norm = norm
        self.conv = conv
        self.pool = pool

    def forward(self, input: Tensor) -> Tensor:
        norm, conv = self.norm, self.conv
        tensors = norm.running_mean, norm.running_var, norm.weight, norm.bias, conv.weight
        if self._has_kernel(input, *tensors, conv.bias):
            scales, panels = self._pack("preact", self._packs, *tensors)
            return preact_conv2d.run(input, scales, self.pool, panels, conv.out_channels, conv.bias, conv.activation)
        y = conv(F.relu(norm(input), inplace=True))
        return y if self.pool == 1 else F.avg_pool2d(y, self.pool)

    def _has_kernel(self, input: Tensor, *tensors: Tensor | None) -> bool:
        if torch.compiler.is_compiling() or self.norm.training or not is_plain(input, *tensors):
            return False
        fits = kernels_take(input, self.conv.weight) and input.shape[1] == self.conv.in_channels
        return fits and min(input.shape[2:]) >= self.pool and _has_whole_pixels(input)

    def _packs(self) -> tuple[Tensor, Tensor]:
        return pack_norm(self.norm, self.pool), pack_panels(self.conv.weight)


def is_preact(norm: Any, conv: Any) -> bool:
    """Whether the layers are a BatchNorm by running statistics and a pointwise convolution that follows it."""
    fits = type(norm) is nn.BatchNorm2d and norm.running_mean is not None
    return fits and type(conv) is PackedConv2d and conv.is_pointwise() and conv.in_channels == norm.num_features


def _has_whole_pixels(x: Tensor) -> bool:
    """Whether x is in channels_last, or some of the channels of what is."""
    step, (_, c, h, w) = x.stride(), x.shape
    sliced = step[1] == 1 and step[3] >= c and step[2] == w * step[3] and step[0] == h * step[2]
    return sliced or x.is_contiguous(memory_format=torch.channels_last)

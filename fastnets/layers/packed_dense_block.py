"""The dense block for inference: all features in one tensor, into which each layer writes its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastnets._op import is_plain
from fastnets.layers.packed_conv import PackedConv2d
from fastnets.layers.packed_preact_conv import PackedPreactConv2d
from fastnets.ops._packed import compiled_kernels


class PackedDenseBlock(nn.Module):
    """Applies layers each of which reads the input and what all layers before it made; returns all of these.

    The layers read slices of one tensor and write into it, so that nothing is concatenated. Where the compiled kernels do
    not take the input (another layout than channels_last, another type than float32, gradients, tracing), their results
    are concatenated one by one.

    Args:
        layers: of each, BatchNorm, ReLU and pointwise convolution, and a convolution of its results that keeps their
            height and width.

    Returns:
        (from a call with input (n, c, h, w)) the input, then what the layers made, (n, c + ..., h, w).

    Raises:
        ValueError: the layers are not of these kinds, or do not follow one another.
        RuntimeError: (from a call) as ``torch.nn.BatchNorm2d``.

    Paper: G. Huang et al., "Densely Connected Convolutional Networks", 2017, https://arxiv.org/abs/1608.06993

    Example:
        >>> import torch
        >>> from fastnets.layers import PackedConv2d, PackedDenseBlock, PackedPreactConv2d
        >>> bottleneck = PackedPreactConv2d(torch.nn.BatchNorm2d(4), PackedConv2d(4, 8, 1, activation="relu"))
        >>> block = PackedDenseBlock([(bottleneck, PackedConv2d(8, 2, 3, padding=1))]).eval()
        >>> block(torch.ones(1, 4, 5, 5)).shape
        torch.Size([1, 6, 5, 5])
    """

    def __init__(self, layers: Iterable[tuple[PackedPreactConv2d, PackedConv2d]]) -> None:
        super().__init__()
        layers = list(layers)
        if not follow(layers):
            raise ValueError(
                "expected layers of a pointwise convolution of normalised pixels, of all channels before it, and a "
                f"convolution of its results that keeps height and width, but got {layers}"
            )
        self.layers = nn.ModuleList(nn.Sequential(*layer) for layer in layers)
        self.reads = [bottleneck.conv.in_channels for bottleneck, _ in layers]  # channels
        self.out_channels = self.reads[-1] + layers[-1][1].out_channels

    def forward(self, input: Tensor) -> Tensor:
        if self._has_kernel(input):
            return self._in_one_tensor(input)
        for layer in self.layers:
            input = torch.cat((input, layer(input)), 1)
        return input

    def _has_kernel(self, input: Tensor) -> bool:
        if torch.compiler.is_compiling() or not is_plain(input):
            return False
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        last: Any = self.layers[-1]
        return not trains and compiled_kernels(input, last[1].weight) and input.shape[1] == self.reads[0]

    def _in_one_tensor(self, input: Tensor) -> Tensor:
        n, _, h, w = input.shape
        size = n, self.out_channels, h, w
        y = torch.empty(size, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)
        begin, new = 0, input
        for layer, end in zip(self.layers, self.reads, strict=True):
            y.narrow(1, begin, end - begin).copy_(new)
            begin, new = end, layer(y.narrow(1, 0, end))
        y.narrow(1, begin, self.out_channels - begin).copy_(new)
        return y


def follow(layers: Sequence[tuple[Any, Any]]) -> bool:
    """Whether the layers are such, and each but the first reads what the one before it reads and makes."""
    if not layers or not all(_is_dense_layer(*layer) for layer in layers):
        return False
    reads = [bottleneck.conv.in_channels for bottleneck, _ in layers]
    return reads[1:] == [c + conv.out_channels for c, (_, conv) in zip(reads, layers[:-1], strict=False)]


def _is_dense_layer(bottleneck: Any, conv: Any) -> bool:
    if type(bottleneck) is not PackedPreactConv2d or type(conv) is not PackedConv2d or bottleneck.pool != 1:
        return False
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    added = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    same = conv.stride == (1, 1) and added == [top + bottom, left + right]
    return same and conv.in_channels == bottleneck.conv.out_channels

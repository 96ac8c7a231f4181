"""The dense block for inference: no features are concatenated, each layer reads all that there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastnets.layers.packed_conv import PackedConv2d
from fastnets.layers.packed_preact_conv import PackedPreactConv2d


class PackedDenseBlock(nn.Module):
    """Applies layers each of which reads the input and what all layers before it made; returns or reads all of these.

    Where the compiled kernels do not take a tensor (another layout than channels_last, another type than float32
    and bfloat16, gradients, tracing, training), those before it are concatenated from there on.

    Args:
        layers: of each, BatchNorm, ReLU and pointwise convolution, and a convolution of its results that keeps their
            height and width.
        transition: BatchNorm, ReLU, pointwise convolution and pooling of everything, or None.

    Returns:
        (from a call with input (n, c, h, w)) the input, then what the layers made, (n, c + ..., h, w); or what the
        transition makes of that.

    Raises:
        ValueError: the layers are not of these kinds, or do not follow one another.
        RuntimeError: (from a call) the input has other channels than the first layer reads.

    Paper: G. Huang et al., "Densely Connected Convolutional Networks", 2017, https://arxiv.org/abs/1608.06993

    Example:
        >>> import torch
        >>> from fastnets.layers import PackedConv2d, PackedDenseBlock, PackedPreactConv2d
        >>> bottleneck = PackedPreactConv2d(torch.nn.BatchNorm2d(4), PackedConv2d(4, 8, 1, activation="relu"))
        >>> block = PackedDenseBlock([(bottleneck, PackedConv2d(8, 2, 3, padding=1))]).eval()
        >>> block(torch.ones(1, 4, 5, 5)).shape
        torch.Size([1, 6, 5, 5])
    """

    def __init__(
        self, layers: Iterable[tuple[PackedPreactConv2d, PackedConv2d]], transition: PackedPreactConv2d | None = None
    ) -> None:
        super().__init__()
        layers = list(layers)
        if not is_dense(layers, transition):
            raise ValueError(
                "expected layers of a pointwise convolution of normalised pixels, of all channels before it, and a "
                "convolution of its results that keeps height and width, and perhaps a pointwise convolution of "
                f"everything, but got {layers}, {transition}"
            )
        self.layers: Any = nn.ModuleList(nn.Sequential(*layer) for layer in layers)
        self.transition = transition

    @property
    def in_channels(self) -> int:
        """Of the input."""
        return self.layers[0][0].conv.in_channels

    @property
    def all_channels(self) -> int:
        """Of the features of all layers together, before the transition."""
        bottleneck, conv = self.layers[-1]
        return bottleneck.conv.in_channels + conv.out_channels

    def forward(self, input: Tensor) -> Tensor:
        features, together = [input], True

        def apply(preact: PackedPreactConv2d) -> Tensor:
            nonlocal together  # whether the kernels took all features so far; the newest alone has to be asked about
            together = preact.takes(features[-1]) and together
            return preact.in_one_pass(features) if together else preact.in_turn(features)

        for bottleneck, conv in self.layers:
            features.append(conv(apply(bottleneck)))
        return torch.cat(features, 1) if self.transition is None else apply(self.transition)


def is_dense(layers: Sequence[tuple[Any, Any]], transition: Any = None) -> bool:
    """Whether the layers are such, and each but the first reads what the one before it reads and makes."""
    if not layers or not all(_is_dense_layer(*layer) for layer in layers):
        return False
    reads = [bottleneck.conv.in_channels for bottleneck, _ in layers]
    if transition is not None:
        reads += [transition.conv.in_channels if type(transition) is PackedPreactConv2d else None]
    makes = [conv.out_channels for _, conv in layers]
    return all(c + more == following for c, more, following in zip(reads, makes, reads[1:], strict=False))


def _is_dense_layer(bottleneck: Any, conv: Any) -> bool:
    if type(bottleneck) is not PackedPreactConv2d or type(conv) is not PackedConv2d or bottleneck.pool != 1:
        return False
    added = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    top, left, bottom, right = conv._zeros((1, 1))  # of stride 1, they are the same for all sizes
    same = conv.stride == (1, 1) and added == [top + bottom, left + right]
    return same and conv.in_channels == bottleneck.conv.out_channels

"""The convolutions that the rewriting knows, and the layers that it makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fastnets.accelerate._graph import module_of
from fastnets.layers import Conv2d, DepthwiseConv2d, GroupedConv2d, PackedConv2d
from fastnets.ops._packed import scale_and_shift

# Of a subclass of these nothing is known, so types are compared for equality.
CONVOLUTIONS = (nn.Conv2d, Conv2d, DepthwiseConv2d, GroupedConv2d, PackedConv2d)


def convolution_of(network: fx.GraphModule, node: Any) -> nn.Conv2d | None:
    """The convolution that a node calls, if that does no more than convolve."""
    conv: Any = module_of(network, node)
    is_known = type(conv) in CONVOLUTIONS and not getattr(conv, "activation", None)
    # One with levels may be given bytes, or store them: another layer would know nothing of these.
    is_known = is_known and getattr(conv, "levels", None) is None
    return conv if is_known and len(node.args) == 1 and not node.kwargs else None


@torch.no_grad()
def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution followed by y = g (x - mean) / sqrt(variance + eps) + b."""
    scale, bias = scale_and_shift(norm)
    if conv.bias is not None:
        bias = bias + conv.bias.double() * scale
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def rebuild(
    conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, activation: str | None = None, padding: Any = None
) -> Conv2d:
    """The fastest layer for the convolution, with other parameters, and another padding where one is given."""
    c, o = conv.in_channels, conv.out_channels
    common: dict[str, Any] = {"bias": bias is not None, "device": "meta", "activation": activation}
    common |= {name: getattr(conv, name) for name in ("kernel_size", "stride", "dilation", "padding_mode")}
    common["padding"] = conv.padding if padding is None else padding
    layer: Conv2d
    if conv.groups == c and (c > 1 or o == 1):  # of one channel, several results are a dense convolution's
        layer = DepthwiseConv2d(c, multiplier=o // c, **common)
    elif conv.groups > 1:
        layer = GroupedConv2d(c, o, groups=conv.groups, **common)
    else:
        layer = PackedConv2d(c, o, **common)
        weight = weight.contiguous(memory_format=torch.channels_last)
    layer.weight = nn.Parameter(weight)
    layer.bias = None if bias is None else nn.Parameter(bias)
    return layer.eval()

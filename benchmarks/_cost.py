"""What the smallest algorithm for a module takes: a floor counts no more than that."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from fastnets.models.count import listen

WINOGRAD = 4  # a dense 3x3 of stride 1 takes 36 multiplications for 4x4 results in place of 144


@torch.no_grad()
def fewest_macs(module: nn.Module, x: Tensor) -> float:
    """Multiply-adds that convolutions and linear layers cannot do without.

    Each number of a result takes one with each weight of its channel, but for Winograd's algorithm and for an average
    pool right behind a convolution, which is linear too and may come first: then only pooled pixels are computed.

    Args:
        module: is not changed.
        x: its input.
    """
    module = copy.deepcopy(module).to("meta").eval()
    layers, macs = listen(module), 0.0
    module(x.to("meta"))
    for layer, after in zip(layers, [*layers[1:], layers[-1]], strict=True):
        (channels, *size), (pooled_channels, *pooled) = layer.shapes[0], after.shapes[0]
        is_pooled = isinstance(module.get_submodule(after.name), nn.AvgPool2d) and channels == pooled_channels
        share = min(1, math.prod(pooled) / math.prod(size)) if is_pooled else 1
        macs += layer.macs * share / (WINOGRAD if _dense_3x3(module.get_submodule(layer.name)) else 1)
    return macs


def _dense_3x3(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride, layer.groups) == ((3, 3), (1, 1), 1)

"""What the smallest algorithm for a module takes: a floor counts no more than that."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

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
    calls: list[tuple[nn.Module, Tensor]] = []
    module = copy.deepcopy(module).to("meta").eval()
    for layer in module.modules():
        if not [*layer.children()] and not isinstance(layer, nn.Identity):
            layer.register_forward_hook(lambda layer, _, y: calls.append((layer, y)))
    module(x.to("meta"))
    macs = 0.0
    for (layer, y), (after, pooled) in zip(calls, [*calls[1:], calls[-1]], strict=True):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            small = pooled if isinstance(after, nn.AvgPool2d) and y.shape[1] == pooled.shape[1] else y
            macs += min(small.numel(), y.numel()) * layer.weight[0].numel() / (WINOGRAD if _dense_3x3(layer) else 1)
    return macs


def _dense_3x3(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride, layer.groups) == ((3, 3), (1, 1), 1)

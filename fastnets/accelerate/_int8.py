"""Levels for layers whose products are taken in int8, from what they are given on photos."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastnets._backends import use_backend
from fastnets.accelerate._proof import cast
from fastnets.layers import PackedConv2d
from fastnets.ops._int8 import levels_between


def calibrate(fast: nn.Module, example: tuple[Any, ...]) -> None:
    """Gives levels to convolutions of an accelerated network: from the least to the largest input on the example."""
    convs = [m for m in _modules(fast) if type(m) is PackedConv2d and m.takes_int8() and m.weight.dtype == torch.float32]
    ranges: dict[PackedConv2d, list[float]] = {conv: [] for conv in convs}
    hooks = [conv.register_forward_pre_hook(partial(_measure, ranges)) for conv in convs]
    try:
        # On references blocks run layer by layer.
        with use_backend("reference"), torch.inference_mode():
            fast(*cast(example, None))
    finally:
        for hook in hooks:
            hook.remove()
    for conv, seen in ranges.items():
        if seen and all(map(math.isfinite, seen)):
            conv.levels = levels_between(min(seen), max(seen))


def _measure(ranges: dict[PackedConv2d, list[float]], conv: Any, args: tuple[Tensor, ...]) -> None:
    if args[0].numel() > 0:
        ranges[conv] += [x.item() for x in args[0].aminmax()]


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    """All modules, with those of the networks that run parts."""
    for m in module.modules():
        yield m
        if (network := vars(m).get("_network")) is not None:
            yield from _modules(network)

"""The size of a network: its parameters, and the multiply-accumulates of one photo."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def count(model: nn.Module, input_size: int) -> tuple[int, int]:
    """Counts a network's parameters, and its multiply-accumulates for one photo.

    Only convolutions and linear layers count, as in the papers. Runs on the meta device: nothing is computed.

    Args:
        model: takes (n, 3, h, w); it is not changed.
        input_size: h and w, in pixels.

    Returns:
        (parameters, multiply-accumulates).

    Example:
        >>> import fastnets
        >>> from fastnets.models.count import count
        >>> count(fastnets.create_model("mobilenet_v2"), 224)
        (3504872, 300774272)
    """
    macs = 0

    def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        nonlocal macs
        # Every output value takes one multiplication with each weight of its output channel.
        macs += output.numel() * module.weight[0].numel()  # type: ignore[index, union-attr]

    model = copy.deepcopy(model).to("meta").eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    model(torch.empty(1, 3, input_size, input_size, device="meta"))
    return sum(p.numel() for p in model.parameters()), macs

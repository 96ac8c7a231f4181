"""The activations that an op can apply in its store, in PyTorch: what they compute, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.1),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "sigmoid": F.sigmoid,
}


def _silu_backward(dy: Tensor, z: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return aten.silu_backward(dy, z)
    # aten.silu_backward has no gradient of its own. d(z s)/dz = s + z s (1 - s) with s = sigmoid(z).
    s = torch.sigmoid(z)
    return dy * (s + z * s * (1 - s))


# Gradients in terms of the result y = f(z), and, where y does not determine the slope, of z.
FROM_OUTPUT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda dy, y: aten.threshold_backward(dy, y, 0),
    "relu6": lambda dy, y: aten.hardtanh_backward(dy, y, 0.0, 6.0),
    "leaky_relu": lambda dy, y: aten.leaky_relu_backward(dy, y, 0.1, True),
    "sigmoid": lambda dy, y: aten.sigmoid_backward(dy, y),
}
FROM_INPUT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": _silu_backward,
    "hardswish": lambda dy, z: aten.hardswish_backward(dy, z),
}


def check_activation(activation: str | None) -> None:
    """Raises ValueError for a name that is not an activation."""
    if activation not in ACTIVATIONS:
        names = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activation must be one of {names}, but got {activation!r}")

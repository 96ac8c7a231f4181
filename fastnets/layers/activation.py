"""The layers that are activations which ops can apply."""

from __future__ import annotations

from torch import nn

_NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
}


def activation_name(layer: nn.Module) -> str | None:
    """The name that ops know a layer's activation by; None if they do not, or if the layer is none.

    Args:
        layer: any module.

    Example:
        >>> from torch import nn
        >>> from fastnets.layers.activation import activation_name
        >>> activation_name(nn.ReLU6()), activation_name(nn.LeakyReLU(0.2))
        ('relu6', None)
    """
    if type(layer) is nn.LeakyReLU:
        return "leaky_relu" if layer.negative_slope == 0.1 else None
    return _NAMES.get(type(layer))

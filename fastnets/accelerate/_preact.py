"""BatchNorm, ReLU and the pointwise convolution of their results, with the pooling after it, as one layer."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fastnets.accelerate._graph import activation_of, batch_norm_of, bypass, module_of, only_user, were
from fastnets.layers import PackedPreactConv2d
from fastnets.layers.packed_preact_conv import is_preact


def fuse_preactivations(network: fx.GraphModule) -> None:
    """Replaces BatchNorm, ReLU, pointwise convolution and average pooling, where nothing else uses what is between."""
    for node in list(network.graph.nodes):
        relu, conv = (after := only_user(node)), after and only_user(after)
        if relu is None or conv is None or activation_of(network, relu) != "relu" or len(conv.args) != 1:
            continue
        norm: Any = batch_norm_of(network, node)
        layer: Any = module_of(network, conv)
        if not is_preact(norm, layer):
            continue
        pooled: Any = only_user(conv)
        pool = _squares(module_of(network, pooled)) if layer.activation is None else 1
        # At the place of the first, where the input is read.
        node.target = f"preact_convs.{conv.name}"
        node.meta = {"were": were(network, conv)}
        network.add_submodule(node.target, PackedPreactConv2d(norm, layer, pool).eval())
        for last in (relu, conv, *[pooled] * (pool > 1)):
            bypass(last)


def _squares(pool: nn.Module | None) -> int:
    """The size of the squares, side by side and inside the image, of which a module takes the mean; else 1."""
    if type(pool) is not nn.AvgPool2d or pool.padding not in (0, (0, 0)) or pool.ceil_mode or pool.divisor_override:
        return 1
    sizes = {*_pair(pool.kernel_size), *_pair(pool.stride)}
    return sizes.pop() if len(sizes) == 1 else 1


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)

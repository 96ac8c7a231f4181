"""Convolutions whose results a shuffle of pixels makes a finer image, as one layer."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from fastnets.accelerate._graph import activation_of, bypass, module_of, only_user, were
from fastnets.layers import PackedConv2d, PackedSubPixelConv2d, PixelShuffle
from fastnets.ops import pixel_shuffle


def fuse_sub_pixel_convolutions(network: fx.GraphModule) -> None:
    """Replaces a convolution and the shuffle that alone uses it, with the activation between or after them."""
    for node in list(network.graph.nodes):
        if (r := _upscale_factor(network, node)) is None:
            continue
        conv: Any = node.args[0]
        layer: Any = module_of(network, conv)
        if type(layer) is not PackedConv2d or [*conv.users] != [node] or layer.out_channels % (r * r):
            continue
        if layer.activation is None and (after := only_user(node)) and (activation := activation_of(network, after)):
            layer.activation = activation
            bypass(after)
        name = f"sub_pixels.{node.name}"
        network.add_submodule(name, PackedSubPixelConv2d(layer, r).eval())
        shuffle = str(node.target) if node.op == "call_module" else node.name
        node.meta = {"were": [*were(network, conv), (shuffle, "PixelShuffle")]}
        node.op, node.target, node.args, node.kwargs = "call_module", name, (conv.args[0],), {}
        network.graph.erase_node(conv)


def _upscale_factor(network: fx.GraphModule, node: fx.Node) -> int | None:
    """That of a node which shuffles the pixels of another's value."""
    module: Any = module_of(network, node)
    if type(module) in (nn.PixelShuffle, PixelShuffle) and len(node.args) == 1 and not node.kwargs:
        return module.upscale_factor
    if node.op != "call_function" or node.target not in (F.pixel_shuffle, pixel_shuffle) or not node.args:
        return None
    r = node.args[1] if len(node.args) == 2 else node.kwargs.get("upscale_factor")
    return r if type(r) is int and r > 0 else None

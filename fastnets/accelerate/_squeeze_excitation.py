"""Squeeze and excitation, in the ways that networks spell it, as one layer."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastnets.accelerate._graph import module_of, pools_all, were
from fastnets.accelerate._memory import is_written
from fastnets.layers import PackedSqueezeExcitation
from fastnets.layers.packed_squeeze_excitation import is_squeeze_excitation


def fuse_squeeze_excitations(network: fx.GraphModule) -> None:
    """Replaces x * gate(excite(squeeze(mean of x))), where nothing else uses what is between."""
    for node in list(network.graph.nodes):
        if node.target not in (operator.mul, torch.mul, "mul") or len(node.args) != 2 or node.kwargs:
            continue
        for x, scale in (node.args, node.args[::-1]):
            if (parts := _parts(network, x, scale, node)) is None:
                continue
            *gate, excite, squeeze, _ = parts
            layers: Any = module_of(network, squeeze), module_of(network, excite), bool(gate)
            layer = PackedSqueezeExcitation(*layers)
            name = f"squeeze_excitations.{node.name}"
            network.add_submodule(name, layer.eval())
            node.meta = {"were": [of for part in (squeeze, excite) for of in were(network, part)]}
            node.op, node.target, node.args = "call_module", name, (x,)
            for part in parts:
                network.graph.erase_node(part)
            break


def _parts(network: fx.GraphModule, x: Any, scale: Any, product: fx.Node) -> list[fx.Node] | None:
    """The nodes from the scale back to the mean of x, if they are made for nothing but this product."""
    parts: list[fx.Node] = []
    node = scale
    while isinstance(node, fx.Node) and node is not x and len(parts) < 4:
        if list(node.users) != [parts[-1] if parts else product] or len(node.all_input_nodes) != 1:
            return None
        parts.append(node)
        node = node.all_input_nodes[0]
    if node is not x or len(parts) not in (3, 4):
        return None
    *gate, excite, squeeze, pool = parts
    is_known = is_squeeze_excitation(module_of(network, squeeze), module_of(network, excite), bool(gate))
    is_known = is_known and all(_is_hard(network, part) for part in gate) and pools_all(network, pool)
    return parts if is_known and not is_written(x, pool, product) else None


def _is_hard(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target is F.hardsigmoid
    return type(module_of(network, node)) is nn.Hardsigmoid

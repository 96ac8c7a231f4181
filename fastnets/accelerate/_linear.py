"""Linear layers on packed weights."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from fastnets.accelerate._graph import module_of
from fastnets.layers import PackedLinear


def name_linears(network: fx.GraphModule) -> None:
    """Makes ``F.linear`` of parameters, which is what layers of others hide, a layer again."""
    for node in list(network.graph.find_nodes(op="call_function", target=F.linear)):
        weight, bias = (_parameter(network, value) for value in _operands(node))
        if weight is None or (bias is None and _operands(node)[1] is not None):
            continue
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
        name = f"linears.{node.name}"
        network.add_submodule(name, layer.eval())
        held = [value for value in _operands(node) if value is not None]
        node.meta["was"] = str(held[0].target).rpartition(".")[0], "Linear"
        node.op, node.target, node.args, node.kwargs = "call_module", name, node.args[:1], {}
        for value in held:
            if not value.users:
                network.graph.erase_node(value)


def _operands(node: fx.Node) -> tuple[Any, Any]:
    """The weight and the bias of a call whose input is not given by name."""
    given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | (node.kwargs if node.args else {})
    return given.get("weight"), given.get("bias")


def _parameter(network: fx.GraphModule, node: Any) -> nn.Parameter | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    holder, _, name = str(node.target).rpartition(".")
    value = getattr(network.get_submodule(holder), name)
    return value if type(value) is nn.Parameter else None


def pack_linears(network: fx.GraphModule) -> None:
    """Replaces linear layers."""
    for node in network.graph.nodes:
        linear = module_of(network, node)
        if type(linear) is not nn.Linear or len(node.args) != 1 or node.kwargs:
            continue
        layer = PackedLinear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        node.meta.setdefault("was", (str(node.target), type(linear).__name__))
        node.target = f"packed_linears.{node.name}"
        network.add_submodule(node.target, layer.eval())

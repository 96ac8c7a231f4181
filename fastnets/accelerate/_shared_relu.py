"""ReLUs of one value that several branches begin with, computed once."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastnets.accelerate._graph import calls, module_of
from fastnets.layers import Conv2d, DepthwiseConv2d, GroupedConv2d, PackedConv2d


def share_relus(network: fx.GraphModule) -> None:
    """Lets the users of later ReLUs of a value take the first one's result, where no one writes over any of these."""
    first: dict[fx.Node, fx.Node] = {}
    for node in list(network.graph.nodes):
        if not _is_relu(network, node):
            continue
        x = node.args[0]
        before = first.setdefault(x, node)
        if before is not node and all(_is_only_read(network, value) for value in (x, before, node)):
            node.replace_all_uses_with(before)
            network.graph.erase_node(node)


# What computes a result in memory of its own, and only reads its inputs.
_MODULES = (
    nn.AvgPool2d,
    nn.BatchNorm2d,
    nn.Conv2d,
    nn.MaxPool2d,
    nn.ZeroPad2d,
    Conv2d,
    DepthwiseConv2d,
    GroupedConv2d,
    PackedConv2d,
)
_FUNCTIONS = (operator.add, torch.add, torch.cat, F.avg_pool2d, F.max_pool2d, F.pad)


def _is_relu(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node computes a ReLU and leaves its input as it is."""
    module = module_of(network, node)
    if type(module) is nn.ReLU:
        return not module.inplace and len(node.args) == 1
    function = node.target in (F.relu, torch.relu) or node.op == "call_method" and node.target == "relu"
    return function and len(node.args) == 1 and not node.kwargs.get("inplace")


def _only_reads(network: fx.GraphModule, node: fx.Node) -> bool:
    if type(module_of(network, node)) in _MODULES or _is_relu(network, node):
        return True
    is_size = calls(node, "size") or (node.target is getattr and node.args[1:] == ("shape",))
    return node.target in _FUNCTIONS and "out" not in node.kwargs or is_size


def _is_only_read(network: fx.GraphModule, value: Any) -> bool:
    """Whether the value is memory of its own, which none of its users writes over or gives a view of."""
    return _only_reads(network, value) and all(_only_reads(network, user) for user in value.users)

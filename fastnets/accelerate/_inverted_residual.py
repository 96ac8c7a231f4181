"""Pointwise, depthwise and pointwise convolutions that follow one another, maybe with squeeze and excitation, as one."""

from __future__ import annotations

from typing import Any

from torch import fx

from fastnets.accelerate._graph import module_of, were
from fastnets.accelerate._memory import is_written
from fastnets.layers import DepthwiseConv2d, PackedConv2d, PackedInvertedResidual, PackedSqueezeExcitation
from fastnets.layers.packed_inverted_residual import is_block


def fuse_inverted_residuals(network: fx.GraphModule) -> None:
    """Replaces [pointwise,] depthwise[, squeeze], pointwise, where nothing else uses what is between them."""
    for project in list(network.graph.nodes):
        if type(module_of(network, project)) is not PackedConv2d:
            continue
        squeeze = depthwise = _made_only_for(project)
        if type(module_of(network, squeeze)) is PackedSqueezeExcitation:
            assert squeeze is not None
            depthwise = _made_only_for(squeeze)
        else:
            squeeze = None
        conv, last = module_of(network, depthwise), (module_of(network, project), module_of(network, squeeze))
        if depthwise is None or type(conv) is not DepthwiseConv2d or not is_block(None, conv, *last):
            continue
        expand = _made_only_for(depthwise)
        if expand is not None:
            follows = is_block(module_of(network, expand), conv, *last)
            expand = expand if follows and not is_written(expand.all_input_nodes[0], expand, project) else None
        if expand is None and is_written(depthwise.all_input_nodes[0], depthwise, project):
            continue
        parts = [n for n in (expand, depthwise, squeeze, project) if n is not None]
        layers: Any = module_of(network, expand), conv, *last
        name = f"inverted_residuals.{project.name}"
        network.add_submodule(name, PackedInvertedResidual(*layers).eval())
        project.meta = {"were": [name for n in parts for name in were(network, n)]}
        project.target, project.args = name, (parts[0].args[0], *project.args[1:])
        for node in reversed(parts[:-1]):
            network.graph.erase_node(node)


def _made_only_for(node: fx.Node) -> fx.Node | None:
    """What the node's first argument comes from, if it is a layer with one input, and nothing else uses it."""
    made = node.args[0] if node.args and not node.kwargs else None
    if not isinstance(made, fx.Node) or list(made.users) != [node] or made in node.args[1:]:
        return None
    return made if made.op == "call_module" and len(made.args) == 1 and not made.kwargs else None

"""Pointwise, depthwise and pointwise convolutions that follow one another, as one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from fastnets.layers import DepthwiseConv2d, PackedConv2d, PackedInvertedResidual
from fastnets.layers.packed_inverted_residual import is_block


def fuse_inverted_residuals(
    network: fx.GraphModule,
    module: Callable[[fx.GraphModule, Any], nn.Module | None],
    writes_over: Callable[[fx.Node, fx.Node], bool],
) -> None:
    """Replaces [pointwise,] depthwise, pointwise, where nothing else uses what is between them."""
    for project in list(network.graph.nodes):
        if type(module(network, project)) is not PackedConv2d:
            continue
        depthwise = _made_only_for(project)
        conv = module(network, depthwise)
        if depthwise is None or type(conv) is not DepthwiseConv2d or not is_block(None, conv, module(network, project)):
            continue
        expand = _made_only_for(depthwise)
        if expand is not None and not is_block(module(network, expand), conv, module(network, project)):
            expand = None
        first = depthwise if expand is None else expand
        source: Any = first.args[0]
        if _is_written_over(source, first, project, writes_over):
            continue
        parts = [n for n in (expand, depthwise, project) if n is not None]
        layers: Any = [None] * (3 - len(parts)) + [module(network, n) for n in parts]
        name = f"inverted_residuals.{project.name}"
        network.add_submodule(name, PackedInvertedResidual(*layers).eval())
        project.meta = {"were": [n.meta["was"] for n in parts]}
        project.target, project.args = name, (source, *project.args[1:])
        for node in reversed(parts[:-1]):
            network.graph.erase_node(node)


def _made_only_for(node: fx.Node) -> fx.Node | None:
    """What the node's first argument comes from, if it is a layer with one input, and nothing else uses it."""
    made = node.args[0]
    alone = isinstance(made, fx.Node) and list(made.users) == [node] and made.op == "call_module"
    return made if alone and len(made.args) == 1 and made not in node.args[1:] else None  # type: ignore[union-attr]


def _is_written_over(
    source: fx.Node, first: fx.Node, last: fx.Node, writes_over: Callable[[fx.Node, fx.Node], bool]
) -> bool:
    """Whether something writes over the source after it was read, before the last of the layers reads it now."""
    place = {node: i for i, node in enumerate(first.graph.nodes)}
    users = [user for user in source.users if place[first] < place[user] < place[last]]
    return any(writes_over(user, source) for user in users)

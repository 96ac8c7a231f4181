"""The layers of a dense block, each of which reads the concatenation of all before it, as one layer."""

from __future__ import annotations

from typing import Any

from torch import fx

from fastnets.accelerate._graph import bypass, concatenated, module_of, only_user, were
from fastnets.accelerate._memory import is_written
from fastnets.layers import PackedConv2d, PackedDenseBlock, PackedPreactConv2d
from fastnets.layers.packed_dense_block import is_dense


def fuse_dense_blocks(network: fx.GraphModule) -> None:
    """Replaces a block, and the transition after it, by one layer where nothing else uses what is inside."""
    erased: set[fx.Node] = set()
    for last in reversed(list(network.graph.nodes)):
        source, reads, layers = _layers_before(network, last) if last not in erased else (last, [], [])
        convs: Any = [(module_of(network, bottleneck), module_of(network, conv)) for bottleneck, conv in layers]
        inside = {node for layer in layers for node in layer} | {*reads} - {source}
        used_outside = any(user is not last and user not in inside for node in inside for user in node.users)
        if not is_dense(convs) or used_outside or is_written(source, source):
            continue
        names = [name for layer in layers for node in layer for name in were(network, node)]
        after = only_user(last)
        transition: Any = module_of(network, after)
        if after is not None and type(transition) is PackedPreactConv2d and is_dense(convs, transition):
            names += were(network, after)
            bypass(after)
        else:
            transition = None
        name = f"dense_blocks.{last.name}"
        network.add_submodule(name, PackedDenseBlock(convs, transition).eval())
        last.op, last.target, last.args, last.kwargs = "call_module", name, (source,), {}
        last.meta = {"were": names}
        for node in [node for node in reversed(network.graph.nodes) if node in inside]:
            network.graph.erase_node(node)
        erased |= inside


def _layers_before(network: fx.GraphModule, last: fx.Node) -> tuple[fx.Node, list[fx.Node], list[Any]]:
    """What the first layer of a block reads, the tensors that layers read, and the layers, each of two convolutions."""
    parts, source = _parts(last), last
    reads: list[fx.Node] = []
    layers: list[Any] = []
    while True:
        conv = parts[-1]
        bottleneck = _input(network, conv, PackedConv2d)
        read = _input(network, bottleneck, PackedPreactConv2d)
        if bottleneck is None or read is None or _parts(read) != parts[:-1]:
            return source, reads, layers
        parts = parts[:-1]
        source = parts[0] if len(parts) == 1 else read
        reads.append(read)
        layers.insert(0, (bottleneck, conv))


def _parts(node: fx.Node) -> list[fx.Node]:
    """What a node concatenates along the channels, and what that concatenates; else the node itself."""
    return [inner for part in concatenated(node) for inner in _parts(part)] or [node]


def _input(network: fx.GraphModule, node: fx.Node | None, kind: type) -> fx.Node | None:
    """What the node's layer reads, if it is of that kind and reads nothing else."""
    if type(module_of(network, node)) is not kind or node is None or len(node.args) != 1 or node.kwargs:
        return None
    return node.all_input_nodes[0]

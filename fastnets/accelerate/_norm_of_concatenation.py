"""BatchNorm and activation of a concatenation of convolutions, as those of each convolution."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fastnets.accelerate._convolutions import convolution_of
from fastnets.accelerate._graph import activation_of, batch_norm_of, bypass, concatenated, only_user


def normalise_before_concatenations(network: fx.GraphModule) -> None:
    """Moves them before the concatenation, where nothing else uses what is between: convolutions then take them in."""
    for cat in list(network.graph.nodes):
        convs = [_convolution_for(network, part, cat) for part in concatenated(cat)]
        types = {conv.weight.dtype for conv in convs if conv is not None}
        if None in convs or len(types) != 1 or len(cat.all_input_nodes) != len(convs):
            continue  # one of them comes twice, or the result is written into something
        if (after := only_user(cat)) and (norm := batch_norm_of(network, after)):
            if any(batch_norm_of(network, part) for part in cat.args[0]):
                continue
            pieces = _pieces(norm, [conv.out_channels for conv in convs if conv is not None])
            for part, piece in zip(cat.args[0], pieces, strict=True):
                network.add_submodule(f"norms.{part.name}", piece)
            _move(after, cat, [f"norms.{part.name}" for part in cat.args[0]])
        if (after := only_user(cat)) and activation_of(network, after):
            _move(after, cat, [after.target] * len(convs))


def _convolution_for(network: fx.GraphModule, part: Any, user: fx.Node) -> nn.Conv2d | None:
    """The convolution whose result, maybe behind a BatchNorm, nothing but a node uses."""
    if not isinstance(part, fx.Node) or list(part.users) != [user]:
        return None
    is_norm = batch_norm_of(network, part) is not None and len(part.all_input_nodes) == 1
    return _convolution_for(network, part.args[0], part) if is_norm else convolution_of(network, part)


def _pieces(norm: nn.BatchNorm2d, sizes: list[int]) -> list[nn.BatchNorm2d]:
    """The BatchNorms of so many channels each, in their order."""
    pieces = [nn.BatchNorm2d(size, norm.eps, affine=norm.affine, device="meta").eval() for size in sizes]
    for name in ("running_mean", "running_var", *(("weight", "bias") if norm.affine else ())):
        values = getattr(norm, name).detach().split(sizes)
        for piece, value in zip(pieces, values, strict=True):
            setattr(piece, name, nn.Parameter(value) if name in norm._parameters else value)
    return pieces


def _move(node: fx.Node, cat: fx.Node, targets: list[Any]) -> None:
    """Puts a node behind each part of the concatenation, with these targets, in place of the one behind the whole."""
    moved = []
    for part, target in zip(cat.all_input_nodes, targets, strict=True):
        with cat.graph.inserting_before(cat):
            moved.append(cat.graph.create_node(node.op, target, (part, *node.args[1:]), node.kwargs))
    cat.args = (moved, *cat.args[1:])
    bypass(node)

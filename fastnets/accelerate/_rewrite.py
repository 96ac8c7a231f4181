"""The rewriting of a traced network: fold, fuse, add in place, lay out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastnets._op import is_plain
from fastnets.accelerate._convolutions import convolution_of, fold, rebuild
from fastnets.accelerate._dense_block import fuse_dense_blocks
from fastnets.accelerate._graph import (
    ADDITIONS,
    IN_PLACE_ADDITIONS,
    activation_of,
    batch_norm_of,
    bypass,
    module_of,
    only_user,
)
from fastnets.accelerate._inverted_residual import fuse_inverted_residuals
from fastnets.accelerate._layout import enter_channels_last
from fastnets.accelerate._linear import name_linears, pack_linears
from fastnets.accelerate._memory import is_written
from fastnets.accelerate._norm_of_concatenation import normalise_before_concatenations
from fastnets.accelerate._padding import take_zeros
from fastnets.accelerate._parallel_convolutions import add_parallel_convolutions
from fastnets.accelerate._pooled_linear import fuse_pooled_linears
from fastnets.accelerate._pools import replace_pools
from fastnets.accelerate._preact import fuse_preactivations
from fastnets.accelerate._shared_relu import share_relus
from fastnets.accelerate._shuffle import fuse_shuffles
from fastnets.accelerate._squeeze_excitation import fuse_squeeze_excitations
from fastnets.accelerate._strips import fuse_outer_sums, pool_strips
from fastnets.accelerate._sub_pixel import fuse_sub_pixel_convolutions
from fastnets.accelerate._table import Table
from fastnets.accelerate._tell import tell
from fastnets.layers import Conv2d, PackedConv2d, PackedSqueezeExcitation
from fastnets.ops._packed import add_images, compiled_kernels, is_image_like


def rewrite(network: fx.GraphModule, name: str, table: Table, dtype: torch.dtype | None) -> None:
    """Rewrites the network of that name in place."""
    _remove_identities(network)
    share_relus(network)
    add_parallel_convolutions(network)
    pool_strips(network)
    normalise_before_concatenations(network)
    _replace_convolutions(network)
    fuse_squeeze_excitations(network)
    fuse_sub_pixel_convolutions(network)
    fuse_outer_sums(network)
    _fuse_additions(network)
    _add_in_place(network)
    fuse_shuffles(network)
    fuse_inverted_residuals(network)
    fuse_preactivations(network)
    fuse_dense_blocks(network)
    name_linears(network)
    fuse_pooled_linears(network)
    pack_linears(network)
    replace_pools(network)
    enter_channels_last(network, dtype)
    tell(network, name, table, dtype)
    network.graph.lint()
    network.delete_all_unused_submodules()
    network.recompile()


_IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


# ---- convolutions ----------------------------------------------------------------------------


def _remove_identities(network: fx.GraphModule) -> None:
    for node in network.graph.nodes:
        if type(module_of(network, node)) in (nn.Identity, nn.Dropout, nn.Dropout2d):
            bypass(node)


def _replace_convolutions(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        if (conv := convolution_of(network, node)) is None:
            continue
        weight, bias, activation, padding = conv.weight, conv.bias, None, take_zeros(network, node, conv)
        if (after := only_user(node)) and (norm := batch_norm_of(network, after)):
            weight, bias = fold(conv, norm)
            bypass(after)
        if (after := only_user(node)) and (activation := activation_of(network, after)):
            bypass(after)
        # Under a name of its own, because one module can be called in several places.
        target, node.target = node.target, f"convolutions.{node.name}"
        node.meta.setdefault("was", (str(target), type(conv).__name__))
        network.add_submodule(node.target, rebuild(conv, weight, bias, activation, padding))


# ---- additions -------------------------------------------------------------------------------

_ADDING: Any = PackedConv2d, PackedSqueezeExcitation  # layers that add a residual in their store


def _summands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Two different values, if the node adds them and nothing else."""
    adds = node.op in ("call_function", "call_method") and node.target in ADDITIONS
    if not adds or node.kwargs or len(node.args) != 2 or not all(isinstance(a, fx.Node) for a in node.args):
        return None
    a, b = node.args
    return (a, b) if a is not b else None  # type: ignore[return-value]


def _fuse_additions(network: fx.GraphModule) -> None:
    """conv(x) + y in the memory of y, and the ReLU after it, in the store of the convolution."""
    for node in list(network.graph.nodes):
        for conv, other in _orders(_summands(node)):
            layer: Any = module_of(network, conv)
            if type(layer) in _ADDING and layer.activation is None and _can_take(network, conv, other, node):
                with network.graph.inserting_before(node):
                    fused = network.graph.call_module(str(conv.target), (conv.args[0], other))
                fused.meta = conv.meta
                node.replace_all_uses_with(fused)
                network.graph.erase_node(node)
                network.graph.erase_node(conv)
                if (after := only_user(fused)) and activation_of(network, after) == "relu":
                    layer.activation = "relu"
                    bypass(after)
                break


def _orders(summands: tuple[fx.Node, fx.Node] | None) -> list[tuple[fx.Node, fx.Node]]:
    return [] if summands is None else [summands, summands[::-1]]


def _can_take(network: fx.GraphModule, conv: fx.Node, other: fx.Node, node: fx.Node) -> bool:
    """Whether the convolution can move to where its result is added, and write that over ``other``.

    Its input must still be there: nothing writes over it between the two places. ``other`` must be memory of its own that
    was only read before.
    """
    if list(conv.users) != [node] or len(conv.args) != 1 or not _is_fresh(network, other):
        return False
    place = {n: i for i, n in enumerate(network.graph.nodes)}
    source = conv.args[0]
    assert isinstance(source, fx.Node)
    if source is other or is_written(source, conv, node):
        return False
    readers = [user for user in other.users if user is not node]
    return all(isinstance(module_of(network, r), Conv2d) and place[r] < place[node] and r is not conv for r in readers)


def _is_fresh(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the value is memory that is made by the node, and not a view."""
    module = module_of(network, node)
    return isinstance(module, Conv2d | PackedSqueezeExcitation) or type(module) is nn.MaxPool2d


def _add_in_place(network: fx.GraphModule) -> None:
    """a + b where a is memory of its own, with the activation after it."""
    for node in list(network.graph.nodes):
        places = [(a, b) for a, b in _orders(_summands(node)) if _is_fresh(network, a) and len(a.users) == 1]
        is_statement = node.target in IN_PLACE_ADDITIONS
        if is_statement:
            places = [(a, b) for a, b in places if a is node.args[0]]  # in place already, where something may look
        after = only_user(node) if places else None
        activation = activation_of(network, after) if after else None
        activation = activation if activation in _IN_PLACE else None
        if is_statement and after and activation:
            after.op, after.target = "call_function", _IN_PLACE[activation]
            after.args, after.kwargs = (node,), {"inplace": True}
        elif places and not is_statement:
            name = f"additions.{node.name}"
            network.add_submodule(name, Addition(activation))
            node.op, node.target, node.args = "call_module", name, places[0]
            if after and activation:
                bypass(after)


class Addition(nn.Module):
    """The activation of a + b, whose memory may be a's where that has the result's shape and type.

    A module, so that fx does not look inside.
    """

    inplace = True

    def __init__(self, activation: str | None) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, a: Tensor, b: Any) -> Tensor:
        fits = isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype
        plain = fits and not torch.compiler.is_compiling() and is_plain(a, b)
        if plain and compiled_kernels(a, a) and is_image_like(b, a.shape, a.dtype):
            return add_images.run(a, b, self.activation)
        y = a + b if not fits or (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)) else a.add_(b)
        return y if self.activation is None else _IN_PLACE[self.activation](y, inplace=True)

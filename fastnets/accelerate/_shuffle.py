"""Shuffles of channels, which networks spell out as views of five dimensions, and the splits after them, as ops."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastnets.accelerate._graph import calls, concatenated, is_getattr, is_size
from fastnets.accelerate._memory import is_written
from fastnets.layers import ChannelShuffle
from fastnets.ops import channel_shuffle, shuffle_split


def fuse_shuffles(network: fx.GraphModule) -> None:
    """Replaces view, transpose, view by a shuffle, and concatenation, shuffle by two groups, chunk by one op."""
    for node in list(network.graph.nodes):
        if found := _shuffle(node):
            x, groups = found
            network.add_submodule(node.name, ChannelShuffle(groups))
            node.op, node.target, node.args = "call_module", node.name, (x,)
    _erase_unused(network)
    network.add_submodule("concat_shuffle_split", ConcatShuffleSplit())
    for node in list(network.graph.nodes):
        if parts := _concat_shuffle_split(network, node):
            node.op, node.target, node.args, node.kwargs = "call_module", "concat_shuffle_split", parts, {}
    _erase_unused(network)


class ConcatShuffleSplit(nn.Module):
    """``channel_shuffle(cat((a, b), 1), 2).chunk(2, 1)``, of whatever shapes a graph may have."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        if a.shape == b.shape and a.dim() == 4 and a.dtype == b.dtype:
            return shuffle_split(a, b)
        return channel_shuffle(torch.cat((a, b), 1), 2).chunk(2, 1)


def _sizes(view: Any) -> tuple[Any, ...]:
    sizes = view.args[1:]
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes


def _shuffle(last: Any) -> tuple[fx.Node, int] | None:
    """x and the groups, if the node is the last of x.view(n, groups, -1, h, w).transpose(1, 2).view(n, -1, h, w)."""
    if not calls(last, "view", "reshape"):
        return None
    swap = last.args[0].args[0] if calls(last.args[0], "contiguous") else last.args[0]
    if not calls(swap, "transpose") or swap.args[1:] not in ((1, 2), (2, 1)):
        return None
    first = swap.args[0]
    if not calls(first, "view", "reshape"):
        return None
    x, apart, together = first.args[0], _sizes(first), _sizes(last)
    if len(apart) != 5 or len(together) != 4 or type(groups := apart[1]) is not int or groups < 1:
        return None
    sizes = ((apart[0], 0), (apart[3], 2), (apart[4], 3), (together[0], 0), (together[2], 2), (together[3], 3))
    is_shuffle = all(is_size(value, x, i) for value, i in sizes)
    return (x, groups) if is_shuffle and not is_written(x, first, last) else None


def _concat_shuffle_split(network: fx.GraphModule, chunk: Any) -> tuple[fx.Node, fx.Node] | None:
    """a and b, if the node is the chunk of channel_shuffle(cat((a, b), 1), 2).chunk(2, 1)."""
    if not calls(chunk, "chunk") or _pieces_and_dim(chunk) != (2, 1):
        return None
    shuffle = chunk.args[0]
    if shuffle.op != "call_module" or list(shuffle.users) != [chunk]:
        return None
    module: Any = network.get_submodule(str(shuffle.target))
    cat: Any = shuffle.args[0]
    parts = concatenated(cat)
    if type(module) is not ChannelShuffle or module.groups != 2 or list(cat.users) != [shuffle] or len(parts) != 2:
        return None
    a, b = parts
    return None if is_written(a, cat, chunk) or is_written(b, cat, chunk) else (a, b)


def _pieces_and_dim(chunk: Any) -> tuple[Any, Any]:
    named = dict(zip(("chunks", "dim"), chunk.args[1:], strict=False)) | chunk.kwargs
    return named.get("chunks"), named.get("dim", 0)


def _erase_unused(network: fx.GraphModule) -> None:
    """What only shuffles used: it changes nothing, and is not called for its effect."""
    for node in reversed(network.graph.nodes):
        pure = calls(node, "view", "reshape", "transpose", "contiguous", "size", "cat") or is_getattr(node)
        ours = node.op == "call_module" and type(network.get_submodule(str(node.target))) is ChannelShuffle
        if not node.users and (pure or ours or node.target in (operator.getitem, operator.floordiv)):
            network.graph.erase_node(node)

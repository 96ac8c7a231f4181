"""Which values of a traced network may lie in the same memory, and what writes into it."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import batchnorm, conv, pooling

from fastnets.accelerate._graph import has_hooks
from fastnets.layers import (
    PackedAvgPool2d,
    PackedDenseBlock,
    PackedInvertedResidual,
    PackedMaxPool2d,
    PackedOuterSumConv2d,
    PackedPreactConv2d,
    PackedSqueezeExcitation,
)
from fastnets.layers.activation import activation_name

# What puts its result into memory of its own, for certain; of anything else it may be a view.
_MODULES = (
    *(conv._ConvNd, nn.Linear, batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.Upsample),
    *(pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd),
    *(PackedAvgPool2d, PackedMaxPool2d, PackedPreactConv2d, PackedDenseBlock, PackedInvertedResidual),
    PackedOuterSumConv2d,
    PackedSqueezeExcitation,
)
_NAMES = (
    *("add", "sub", "mul", "truediv", "div", "pow", "neg", "exp", "sqrt", "clamp", "cat", "stack", "clone", "size"),
    *("relu", "relu6", "silu", "hardswish", "sigmoid", "hardsigmoid", "leaky_relu", "tanh", "gelu", "softmax", "pad"),
    *("sum", "mean", "matmul", "bmm", "linear", "conv2d", "batch_norm", "layer_norm", "interpolate"),
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"),
)
_PLACES = (operator, torch, F)
_MAKING = {*_NAMES, *(getattr(place, name) for place in _PLACES for name in _NAMES if hasattr(place, name))}
_WRITING = {
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow),
    *(operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift, operator.setitem),
}


def is_new(node: fx.Node) -> bool:
    """Whether the node's result is in memory of its own for certain, or no tensor."""
    if node.op == "call_module":
        module = _module(node)
        known = isinstance(module, _MODULES) or activation_name(module) is not None
        return known and not has_hooks(module) and not getattr(module, "inplace", False)
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    return node.op in ("call_function", "call_method") and node.target in _MAKING and not _written_by(node)


def sharing(value: fx.Node) -> set[fx.Node]:
    """The nodes whose results may lie in the value's memory: views of it, what it is a view of, and views of that."""
    found: set[fx.Node] = set()
    todo = [value]
    while todo:
        node = todo.pop()
        if node in found:
            continue
        found.add(node)
        todo += [user for user in node.users if not is_new(user)]
        todo += [] if is_new(node) else node.all_input_nodes
        if node.op == "get_attr":
            todo += node.graph.find_nodes(op="get_attr", target=node.target)
    return found


def is_written(value: fx.Node, since: fx.Node, before: fx.Node | None = None) -> bool:
    """Whether something after a node, and before another one if one is given, may write into the value's memory."""
    place = {node: i for i, node in enumerate(value.graph.nodes)}
    end = len(place) if before is None else place[before]
    shared = sharing(value)
    users = {user for node in shared for user in node.users if place[since] < place[user] < end}
    return any(not shared.isdisjoint(_written_by(user)) for user in users)


def _written_by(node: fx.Node) -> list[fx.Node]:
    """The nodes over whose results a node writes."""
    written: list[Any] = []
    if node.op == "call_module":
        is_in_place = any(getattr(module, "inplace", False) for module in _module(node).modules())
        # The second argument of layers of ours is a residual, whose memory may become the result's.
        written = [*(_input(node) if is_in_place else ()), *node.args[1:2]]
    elif node.op == "call_method":
        written = _input(node) if str(node.target).endswith("_") or node.kwargs.get("inplace") else []
    elif node.op == "call_function":
        is_named = node.target in _WRITING or getattr(node.target, "__name__", "").endswith("_")
        written = _input(node) if is_named or _is_in_place(node) else []
        out = node.kwargs.get("out")
        written += out if isinstance(out, tuple | list) else [out]
    return [value for value in written if isinstance(value, fx.Node)]


def _input(node: fx.Node) -> list[Any]:
    return list(node.args[:1]) or node.all_input_nodes


def _is_in_place(node: fx.Node) -> bool:
    """Whether a function has an argument ``inplace``, and is given it."""
    function: Any = node.target
    try:
        return bool(inspect.signature(function).bind(*node.args, **node.kwargs).arguments.get("inplace"))
    except (TypeError, ValueError):  # functions in C++ tell no signature
        return bool(node.kwargs.get("inplace"))


def _module(node: fx.Node) -> nn.Module:
    assert node.graph.owning_module is not None
    return node.graph.owning_module.get_submodule(str(node.target))

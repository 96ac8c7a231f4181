"""The rewriting of a traced network: fold, fuse, add in place, lay out."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastnets.accelerate._graph import has_hooks, module_of, only_user, writes_over
from fastnets.accelerate._inverted_residual import fuse_inverted_residuals
from fastnets.accelerate._layout import enter_channels_last
from fastnets.accelerate._pooled_linear import fuse_pooled_linears
from fastnets.accelerate._pools import replace_pools
from fastnets.accelerate._shared_relu import share_relus
from fastnets.accelerate._shuffle import fuse_shuffles
from fastnets.accelerate._table import Table
from fastnets.layers import (
    Conv2d,
    DepthwiseConv2d,
    GroupedConv2d,
    PackedAvgPool2d,
    PackedConv2d,
    PackedInvertedResidual,
    PackedMaxPool2d,
    PooledLinear,
)


def rewrite(network: fx.GraphModule, name: str, table: Table, dtype: torch.dtype | None) -> None:
    """Rewrites the network of that name in place."""
    _remove_identities(network)
    share_relus(network)
    _replace_convolutions(network)
    _fuse_additions(network)
    _add_in_place(network)
    fuse_shuffles(network)
    fuse_inverted_residuals(network)
    fuse_pooled_linears(network)
    replace_pools(network)
    enter_channels_last(network, dtype)
    _tell(network, name, table, dtype)
    network.graph.lint()
    network.delete_all_unused_submodules()
    network.recompile()


# ---- reading the graph -----------------------------------------------------------------------


# Of a subclass of these nothing is known, so types are compared for equality.
CONVOLUTIONS = (nn.Conv2d, Conv2d, DepthwiseConv2d, GroupedConv2d, PackedConv2d)
_ACTIVATION_MODULES: dict[type, str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
}
_ACTIVATION_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
    torch.sigmoid: "sigmoid",
}
_ACTIVATION_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid"}
_IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


def _activation(network: fx.GraphModule, node: fx.Node) -> str | None:
    """The name that ops know the activation by, if the node is one."""
    if node.op == "call_function":
        return _ACTIVATION_FUNCTIONS.get(node.target)
    if node.op == "call_method":
        return _ACTIVATION_METHODS.get(str(node.target))
    module = module_of(network, node)
    if type(module) is nn.LeakyReLU and module.negative_slope == 0.1:
        return "leaky_relu"
    return None if module is None else _ACTIVATION_MODULES.get(type(module))


def _batch_norm(network: fx.GraphModule, node: fx.Node) -> nn.BatchNorm2d | None:
    """The BatchNorm that a node calls, if it normalises by what it has learnt and not by the batch."""
    module = module_of(network, node)
    return module if type(module) is nn.BatchNorm2d and module.running_mean is not None else None


# ---- convolutions ----------------------------------------------------------------------------


def _bypass(node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)


def _remove_identities(network: fx.GraphModule) -> None:
    for node in network.graph.nodes:
        if type(module_of(network, node)) in (nn.Identity, nn.Dropout, nn.Dropout2d):
            _bypass(node)


def _replace_convolutions(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        conv = module_of(network, node)
        if type(conv) not in CONVOLUTIONS or getattr(conv, "activation", None) or len(node.args) != 1 or node.kwargs:
            continue
        assert isinstance(conv, nn.Conv2d)
        weight, bias, activation = conv.weight, conv.bias, None
        if (after := only_user(node)) and (norm := _batch_norm(network, after)):
            weight, bias = _fold(conv, norm)
            _bypass(after)
        if (after := only_user(node)) and (activation := _activation(network, after)):
            _bypass(after)
        # Under a name of its own, because one module can be called in several places.
        target, node.target = node.target, f"convolutions.{node.name}"
        node.meta["was"] = str(target), type(conv).__name__
        network.add_submodule(node.target, rebuild(conv, weight, bias, activation))


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution followed by y = g (x - mean) / sqrt(variance + eps) + b."""
    buffers = dict(norm.named_buffers())
    mean, variance = buffers["running_mean"].double(), buffers["running_var"].double()
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scale = scale * norm.weight.double()
    bias = (conv.bias.double() - mean if conv.bias is not None else -mean) * scale
    if norm.affine:
        bias = bias + norm.bias.double()
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def rebuild(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Conv2d:
    """The fastest layer for the convolution, with other parameters."""
    c, o = conv.in_channels, conv.out_channels
    common: dict[str, Any] = {"bias": bias is not None, "device": "meta", "activation": activation}
    common |= {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    layer: Conv2d
    if conv.groups == c:
        layer = DepthwiseConv2d(c, multiplier=o // c, **common)
    elif conv.groups > 1:
        layer = GroupedConv2d(c, o, groups=conv.groups, **common)
    else:
        layer = PackedConv2d(c, o, **common)
        weight = weight.contiguous(memory_format=torch.channels_last)
    layer.weight = nn.Parameter(weight)
    layer.bias = None if bias is None else nn.Parameter(bias)
    return layer.eval()


# ---- additions -------------------------------------------------------------------------------

_ADDITIONS = (operator.add, operator.iadd, torch.add)


def _summands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Two different values, if the node adds them and nothing else."""
    adds = node.target in _ADDITIONS or (node.op == "call_method" and node.target in ("add", "add_"))
    if not adds or node.kwargs or len(node.args) != 2 or not all(isinstance(a, fx.Node) for a in node.args):
        return None
    a, b = node.args
    return (a, b) if a is not b else None  # type: ignore[return-value]


def _fuse_additions(network: fx.GraphModule) -> None:
    """conv(x) + y in the memory of y, and the ReLU after it, in the store of the convolution."""
    for node in list(network.graph.nodes):
        for conv, other in _orders(_summands(node)):
            layer = module_of(network, conv)
            if type(layer) is PackedConv2d and layer.activation is None and _can_take(network, conv, other, node):
                with network.graph.inserting_before(node):
                    fused = network.graph.call_module(str(conv.target), (conv.args[0], other))
                fused.meta = conv.meta
                node.replace_all_uses_with(fused)
                network.graph.erase_node(node)
                network.graph.erase_node(conv)
                if (after := only_user(fused)) and _activation(network, after) == "relu":
                    layer.activation = "relu"
                    _bypass(after)
                break


def _orders(summands: tuple[fx.Node, fx.Node] | None) -> list[tuple[fx.Node, fx.Node]]:
    return [] if summands is None else [summands, summands[::-1]]


def _can_take(network: fx.GraphModule, conv: fx.Node, other: fx.Node, node: fx.Node) -> bool:
    """Whether the convolution can move to where its result is added, and write that over ``other``.

    Its input must still be there: nothing else uses it, or nothing writes over it between the two places. ``other`` must
    be memory of its own that was only read before.
    """
    if list(conv.users) != [node] or len(conv.args) != 1 or not _is_fresh(network, other):
        return False
    place = {n: i for i, n in enumerate(network.graph.nodes)}
    source = conv.args[0]
    assert isinstance(source, fx.Node)
    if source is other or any(writes_over(user, source) for user in source.users if user is not conv):
        return False
    readers = [user for user in other.users if user is not node]
    return all(isinstance(module_of(network, r), Conv2d) and place[r] < place[node] and r is not conv for r in readers)


def _is_fresh(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the value is memory that is made by the node, and not a view."""
    module = module_of(network, node)
    return isinstance(module, Conv2d) or type(module) is nn.MaxPool2d


def _add_in_place(network: fx.GraphModule) -> None:
    network.add_submodule("add_in_place", AddInPlace())
    for node in network.graph.nodes:
        for a, b in _orders(_summands(node)):
            if _is_fresh(network, a) and len(a.users) == 1:
                node.op, node.target, node.args = "call_module", "add_in_place", (a, b)
                break
        after = only_user(node) if node.target == "add_in_place" else None
        if after and (activation := _activation(network, after)) in _IN_PLACE:
            after.op, after.target = "call_function", _IN_PLACE[str(activation)]
            after.args, after.kwargs = (node,), {"inplace": True}


class AddInPlace(nn.Module):
    """a + b in the memory of a, where the result has a's shape and type. A module, so that fx does not look inside."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a.add_(b) if a.shape == b.shape and a.dtype == b.dtype else a + b


# ---- the table -------------------------------------------------------------------------------

_RUNS = {
    DepthwiseConv2d: "fastnets depthwise_conv2d",
    GroupedConv2d: "fastnets grouped_conv2d",
    PackedConv2d: "oneDNN, packed",
    PooledLinear: "fastnets pooled_linear",
    PackedMaxPool2d: "fastnets max_pool2d",
    PackedAvgPool2d: "fastnets avg_pool2d",
}


def _kernels(conv: Any, dtype: torch.dtype | None) -> str:
    if type(conv) is PackedConv2d and (dtype or conv.weight.dtype) == torch.float32:
        if conv.is_stem():
            return "fastnets stem_conv2d"
        if conv.is_pointwise():
            return "fastnets pointwise_conv2d, or oneDNN where it is large"
    return _RUNS[type(conv)]


def _tell(network: fx.GraphModule, name: str, table: Table, dtype: torch.dtype | None) -> None:
    for node in network.graph.nodes:
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        layer, kind = node.meta.get("was", (node.name, str(getattr(node.target, "__name__", node.target))))
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is not None and "was" not in node.meta:
            layer, kind = str(node.target), type(module).__name__
        if kind in ("AddInPlace", "ToChannelsLast"):
            continue
        if isinstance(module, PackedInvertedResidual):
            convs = [conv for conv in (module.expand, module.depthwise, module.project) if conv is not None]
            together = (dtype or module.project.weight.dtype) == torch.float32
            for (layer, kind), conv in zip(node.meta["were"], convs, strict=True):
                runs = "fastnets inverted_residual" if together else _kernels(conv, dtype)
                note = _fused(conv, conv is module.project and len(node.args) > 1)
                table.add(f"{name}.{layer}".lstrip("."), kind, runs, note)
            continue
        runs, note = "PyTorch", ""
        if type(module) in _RUNS and isinstance(module, Conv2d):
            runs, note = _kernels(module, dtype), _fused(module, len(node.args) > 1)
        elif module is not None and has_hooks(module):
            note = "has hooks"
        elif type(module).__module__.startswith("fastnets."):
            runs = _RUNS.get(type(module), "fastnets")
        table.add(f"{name}.{layer}".lstrip("."), kind, runs, note)


def _fused(conv: Any, with_residual: bool) -> str:
    fused = ["residual"] * with_residual + [str(conv.activation)] * bool(conv.activation)
    return "with " + ", ".join(fused) if fused else ""

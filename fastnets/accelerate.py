"""A network made ready for inference: folded, fused and laid out once, so that each call only computes."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastnets.layers import ChannelShuffle, Conv2d, DepthwiseConv2d, PointwiseConv2d, ShuffleSplit


def accelerate(model: nn.Module) -> fx.GraphModule:
    """Makes a faster copy of a network, for inference only.

    BatchNorm is folded into the convolution before it, activations into the stores of depthwise convolutions; the
    whole network runs in channels_last, 1×1 convolutions of a single photo as matrix products, additions
    and other activations in place. What is none of these stays as it is.

    Args:
        model: in eval mode; ``torch.fx`` must be able to trace it. It is not changed.

    Returns:
        A module with the inputs and, up to rounding, the outputs of ``model``, without gradients for weights.

    Raises:
        TypeError: not a module, or one that cannot be traced.
        ValueError: the model, or a part of it, is in training mode.

    Example:
        >>> import torch, fastnets
        >>> model = fastnets.create_model("mobilenetv1_100", width=0.25).eval()
        >>> x = torch.zeros(1, 3, 64, 64)
        >>> torch.allclose(fastnets.accelerate(model)(x), model(x), atol=1e-5)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate expects a torch.nn.Module, but got {type(model).__name__}")
    if training := [name or "the model" for name, module in model.named_modules() if module.training]:
        raise ValueError(f"accelerate expects a model in eval mode, but {training[0]} is training: call .eval() first")
    network = _trace(copy.deepcopy(model))
    for rewrite in (_remove_identities, _replace_convolutions, _add_in_place, _enter_channels_last):
        rewrite(network)
    network.graph.lint()
    network.delete_all_unused_submodules()
    network.recompile()
    return network.eval().requires_grad_(False)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Our kernels cannot run on fx's stand-ins for tensors.
        ours = isinstance(m, Conv2d | ChannelShuffle | ShuffleSplit | _AddInPlace | _ToChannelsLast)
        return ours or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.GraphModule:
    try:
        graph = _Tracer().trace(model)
    # Tracing runs the model's own code on stand-ins for tensors, which can fail in any way.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(f"accelerate cannot trace {type(model).__name__}: {reason}") from error
    for node in graph.nodes:
        node.type = None  # annotations, which fx cannot pickle where they are strings
    return fx.GraphModule(model, graph, type(model).__name__)


# ---- reading the graph -----------------------------------------------------------------------


def _module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, unless hooks (pruning, weight_norm, the user's own) change what it does."""
    if node.op != "call_module":
        return None
    module = network.get_submodule(str(node.target))
    return None if module._forward_hooks or module._forward_pre_hooks else module


def _only_user(node: fx.Node) -> fx.Node | None:
    """The node that takes the value as its only tensor, if nothing else uses the value."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].all_input_nodes == [node] else None


# Of a subclass of these nothing is known, so types are compared for equality.
_CONVOLUTIONS = (nn.Conv2d, Conv2d, DepthwiseConv2d, PointwiseConv2d)
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
    module = _module(network, node)
    return None if module is None else _ACTIVATION_MODULES.get(type(module))


def _batch_norm(network: fx.GraphModule, node: fx.Node) -> nn.BatchNorm2d | None:
    """The BatchNorm that a node calls, if it normalises by what it has learnt and not by the batch."""
    module = _module(network, node)
    return module if type(module) is nn.BatchNorm2d and module.running_mean is not None else None


# ---- rewriting it ----------------------------------------------------------------------------


def _bypass(node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)


def _remove_identities(network: fx.GraphModule) -> None:
    for node in network.graph.nodes:
        if type(_module(network, node)) in (nn.Identity, nn.Dropout, nn.Dropout2d):
            _bypass(node)


def _replace_convolutions(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        conv = _module(network, node)
        if not isinstance(conv, nn.Conv2d) or type(conv) not in _CONVOLUTIONS or getattr(conv, "activation", None):
            continue
        weight, bias, fused = conv.weight, conv.bias, None
        if (after := _only_user(node)) and (norm := _batch_norm(network, after)):
            weight, bias = _fold(conv, norm)
            _bypass(after)
        if (after := _only_user(node)) and (activation := _activation(network, after)):
            if _is_depthwise(conv):
                fused = activation
                _bypass(after)
            elif activation in _IN_PLACE:
                after.op, after.target, after.kwargs = "call_function", _IN_PLACE[activation], {"inplace": True}
        # Under a name of its own, because one module can be called in several places.
        node.target = f"convolutions.{node.name}"
        network.add_submodule(node.target, _rebuild(conv, weight, bias, fused))


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


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels and conv.padding_mode == "zeros"


def _is_pointwise(conv: nn.Conv2d) -> bool:
    unpadded = conv.padding in ((0, 0), "valid", "same")
    return conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 and unpadded


def _rebuild(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> nn.Conv2d:
    """The fastest layer for the convolution, with other parameters."""
    c, o = conv.in_channels, conv.out_channels
    common: dict[str, Any] = {"bias": bias is not None, "device": "meta"}
    geometry = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    layer: nn.Conv2d
    if _is_depthwise(conv):
        layer = DepthwiseConv2d(c, **geometry, **common, multiplier=o // c, activation=activation)
    elif _is_pointwise(conv):
        layer = PointwiseConv2d(c, o, **common)
    else:
        layer = Conv2d(c, o, **geometry, **common, groups=conv.groups, padding_mode=conv.padding_mode)
        weight = weight.contiguous(memory_format=torch.channels_last)
    layer.weight = nn.Parameter(weight)
    layer.bias = None if bias is None else nn.Parameter(bias)
    return layer.eval()


def _add_in_place(network: fx.GraphModule) -> None:
    network.add_submodule("add_in_place", _AddInPlace())
    for node in network.graph.nodes:
        if node.target not in (operator.add, torch.add) or node.kwargs:
            continue
        a, b = node.args
        if _owns_memory(network, b):
            a, b = b, a
        if _owns_memory(network, a) and isinstance(b, fx.Node):
            node.op, node.target, node.args = "call_module", "add_in_place", (a, b)


def _owns_memory(network: fx.GraphModule, node: Any) -> bool:
    """Whether the value is new memory that nothing but its one user will read."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    if node.target in _IN_PLACE.values() and node.kwargs == {"inplace": True}:
        return _owns_memory(network, node.args[0])
    return isinstance(_module(network, node), Conv2d)


class _AddInPlace(nn.Module):
    """a + b in the memory of a, where the result has a's shape and type. A module, so that fx does not look inside."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a.add_(b) if a.shape == b.shape and a.dtype == b.dtype else a + b


def _enter_channels_last(network: fx.GraphModule) -> None:
    network.add_submodule("to_channels_last", _ToChannelsLast())
    for node in list(network.graph.nodes):
        if node.op == "placeholder":
            with network.graph.inserting_after(node):
                converted = network.graph.call_module("to_channels_last")
            node.replace_all_uses_with(converted)
            converted.args = (node,)
        # What a contiguous tensor allows, channels_last may not; the values are the same.
        elif node.target == "view" and not node.kwargs and not isinstance(node.args[-1], torch.dtype):
            node.target = "reshape"


class _ToChannelsLast(nn.Module):
    """Lays out a batch of images with the channels innermost; returns anything else as it is."""

    def forward(self, input: Any) -> Any:
        image = isinstance(input, Tensor) and input.dim() == 4
        return input.contiguous(memory_format=torch.channels_last) if image else input

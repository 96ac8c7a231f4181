"""``torch.compile(model, backend="fastnets")``: what ``accelerate`` does, on the graphs that Dynamo finds.

Such a graph calls functions, and takes what modules hold as arguments. Convolutions and what follows them become modules
again, which hold their parameters; the rewriting is then that of ``accelerate``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastnets.accelerate._rewrite import rewrite
from fastnets.accelerate._table import Table


def compile_backend(network: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """Is what ``torch.compile(model, backend="fastnets")`` calls, for inference only.

    As in :func:`fastnets.accelerate`, and other than in PyTorch's own backends, parameters are read once: a call does not
    see what is written into them after the first.

    Args:
        network: from Dynamo.
        inputs: its arguments at the first call.

    Returns:
        What computes the same.

    Raises:
        RuntimeError: gradients would have to be recorded.
    """
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs):
        raise RuntimeError(
            'torch.compile(backend="fastnets") is for inference: call the model in torch.inference_mode(), or freeze it '
            "with .requires_grad_(False)"
        )
    held = _held(network, inputs)
    for node in list(network.graph.nodes):
        if (module := _module(node, held)) is not None:
            node.op, node.target = "call_module", f"layers.{node.name}"
            node.args, node.kwargs = node.all_input_nodes[:1], {}
            network.add_submodule(node.target, module.eval())
    _keep_layouts(network)
    rewrite(network, "", Table(), None)
    return network.forward


def _held(network: fx.GraphModule, inputs: Sequence[Any]) -> dict[fx.Node, Any]:
    """What modules hold: parameters, buffers and, where numbers are arguments too, those."""
    from torch._dynamo.source import is_from_unspecialized_nn_module_source  # Dynamo takes a second to import

    held = {}
    placeholders = (node for node in network.graph.nodes if node.op == "placeholder")
    for node, value in zip(placeholders, inputs, strict=True):
        source = getattr(node, "_dynamo_source", None)
        if source is not None and is_from_unspecialized_nn_module_source(source):
            held[node] = value
            held |= {user: value.item() for user in node.users if user.target == "item"}
    return held


def _keep_layouts(network: fx.GraphModule) -> None:
    """Returns images that were contiguous as such: the code after the graph may ask for views of them."""
    (output,) = network.graph.find_nodes(op="output")
    for node in output.all_input_nodes:
        value = node.meta.get("example_value")
        if isinstance(value, Tensor) and value.dim() == 4 and value.is_contiguous():
            with network.graph.inserting_before(output):
                output.replace_input_with(node, network.graph.call_method("contiguous", (node,)))


# ---- functions as modules --------------------------------------------------------------------
# Each takes what the function takes, the input as a tensor without data, and returns None where it knows no module.


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> nn.Module | None:  # fmt: skip
    o, c, *kernel = weight.shape
    shape: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    conv = nn.Conv2d(c * groups, o, groups=groups, bias=bias is not None, device="meta", **shape)
    conv.weight, conv.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
    return conv if x.dim() == 4 else None


def _grouped_conv2d(x: Tensor, *others: Any) -> nn.Module | None:
    return None if others[-1] else _conv(x, *others[:-1])  # an activation comes last


def _depthwise_conv2d(x: Tensor, *others: Any) -> nn.Module | None:
    return _grouped_conv2d(x, *others[:-1], x.shape[1], others[-1])


def _batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> nn.Module | None:  # fmt: skip
    if x.dim() != 4 or training or running_mean is None or (weight is None) != (bias is None):
        return None
    norm = nn.BatchNorm2d(len(running_mean), eps, affine=weight is not None, device="meta")
    norm.running_mean, norm.running_var = running_mean, running_var
    if weight is not None and bias is not None:
        norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)
    return norm


def _hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> nn.Module | None:
    return nn.ReLU6() if (min_val, max_val) == (0.0, 6.0) else None


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module | None:
    return None if training else nn.Identity()


_MAKERS: dict[Any, Callable[..., nn.Module | None]] = {
    torch.conv2d: _conv,
    torch.ops.fastnets.grouped_conv2d.default: _grouped_conv2d,
    torch.ops.fastnets.depthwise_conv2d.default: _depthwise_conv2d,
    F.batch_norm: _batch_norm,
    F.hardtanh: _hardtanh,
    F.dropout: _dropout,
}


def _module(node: fx.Node, held: dict[fx.Node, Any]) -> nn.Module | None:
    """The module that computes what a node does, if all that it holds is known."""
    if node.target not in _MAKERS or not node.args or any(n not in held for n in node.all_input_nodes[1:]):
        return None
    (x, *others), named = node.args, node.kwargs
    if not isinstance(x, fx.Node) or not isinstance(value := x.meta.get("example_value"), Tensor):
        return None
    return _MAKERS[node.target](value, *fx.map_arg(others, held.get), **fx.map_arg(named, held.get))

"""What a rewritten network's layers run on, for the table."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from fastnets.accelerate._graph import has_hooks
from fastnets.accelerate._layout import images_in
from fastnets.accelerate._table import Table
from fastnets.layers import (
    Conv2d,
    DepthwiseConv2d,
    GroupedConv2d,
    PackedAvgPool2d,
    PackedConv2d,
    PackedDenseBlock,
    PackedLinear,
    PackedMaxPool2d,
    PackedOuterSumConv2d,
    PackedPreactConv2d,
    PackedSqueezeExcitation,
    PackedSubPixelConv2d,
    PooledLinear,
)
from fastnets.ops._packed import TYPES

_RUNS: dict[Any, str] = {
    DepthwiseConv2d: "fastnets depthwise_conv2d",
    GroupedConv2d: "fastnets grouped_conv2d",
    PackedConv2d: "oneDNN, packed",
    PackedSubPixelConv2d: "oneDNN, packed",
    PackedLinear: "fastnets pointwise_conv2d, or PyTorch where it is large",
    PooledLinear: "fastnets pooled_linear",
    PackedMaxPool2d: "fastnets max_pool2d",
    PackedAvgPool2d: "fastnets avg_pool2d",
}

_IN_INT8: dict[Any, str] = {
    PackedLinear: "fastnets pointwise_conv2d in int8",
    PooledLinear: "fastnets pooled_linear in int8",
}


def tell(network: fx.GraphModule, name: str, table: Table, dtype: torch.dtype | None) -> None:
    """Adds what runs each layer of the network of that name, which is cast to that type, if any."""
    for node in network.graph.nodes:
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        own = node.name, str(getattr(node.target, "__name__", node.target))
        own = own if module is None else (str(node.target), type(module).__name__)
        layers = node.meta.get("were", [node.meta.get("was", own)])
        if own[1] in ("Addition", "InPlanes", "ToChannelsLast", "rectified_sum"):
            continue
        with_residual = len(node.args) > 1
        if "were" in node.meta:
            rows = _rows(module, with_residual, dtype)
        else:
            rows = [(_function(node), "") if module is None else _layer(module, with_residual, dtype)]
        for (layer, kind, *added), row in zip(layers, rows, strict=True):
            table.add(f"{name}.{layer}".lstrip("."), kind, *row)
            for other, kind in added:
                table.add(f"{name}.{other}".lstrip("."), kind, f"part of {layer}")


def tell_layer(table: Table, name: str, kind: str, layer: nn.Module, dtype: torch.dtype | None) -> None:
    """Adds what runs the layer of that name, which was of that kind, in code that was not traced."""
    table.add(name, kind, *_layer(layer, False, dtype))


def _function(node: fx.Node) -> str:
    """What runs a function, or gave one of its results."""
    made_by: Any = node.args[0] if node.target is operator.getitem else node
    ours = str(getattr(getattr(made_by, "target", None), "__module__", "")).startswith("fastnets.ops.")
    return f"fastnets {made_by.target.__name__}" if ours else "PyTorch"


def _layer(module: nn.Module, with_residual: bool, dtype: torch.dtype | None) -> tuple[str, str]:
    if type(module) in _RUNS and isinstance(module, Conv2d):
        return _convolution(module, with_residual, dtype)
    if has_hooks(module):
        return "PyTorch", "has hooks, or a forward of its own"
    if dtype == torch.int8 and type(module) in _IN_INT8:
        return _IN_INT8[type(module)], ""
    return _RUNS.get(type(module), "fastnets" if type(module).__module__.startswith("fastnets.") else "PyTorch"), ""


def _rows(module: Any, with_residual: bool, dtype: torch.dtype | None) -> list[tuple[str, str]]:
    """What runs each convolution of a layer that was several, and what is done with it."""
    if isinstance(module, PackedDenseBlock):
        rows = [
            row for preact, conv in module.layers for row in (_preact(preact, dtype), _convolution(conv, False, dtype))
        ]
        return rows if module.transition is None else [*rows, _preact(module.transition, dtype)]
    if isinstance(module, PackedPreactConv2d):
        return [_preact(module, dtype)]
    if isinstance(module, PackedOuterSumConv2d):
        runs, note = _convolution(module.conv, False, dtype)
        ours = _is_in(TYPES, module.conv, dtype) and dtype != torch.int8
        return [("fastnets outer_sum_conv2d" if ours else runs, note)]
    if isinstance(module, PackedSqueezeExcitation):
        runs = "fastnets squeeze_excitation" if _is_in(TYPES, module.squeeze, dtype) else ""
        rows = [_convolution(conv, False, dtype) for conv in (module.squeeze, module.excite)]
        return [(runs or of, note) for of, note in rows]
    if isinstance(module, PackedSubPixelConv2d):
        return [_convolution(module, False, dtype), ("fastnets, in its store", "")]
    together = "fastnets inverted_residual" if _is_in(TYPES, module.project, dtype) else ""
    if dtype == torch.int8:
        together = f"{together} in int8" if module.takes_int8() else ""
    squeeze = module.squeeze and (module.squeeze.squeeze, module.squeeze.excite)
    convs = [conv for conv in (module.expand, module.depthwise, *(squeeze or ()), module.project) if conv is not None]
    rows = [_convolution(conv, with_residual and conv is module.project, dtype) for conv in convs]
    return [(together or runs, note) for runs, note in rows]


def _preact(module: PackedPreactConv2d, dtype: torch.dtype | None) -> tuple[str, str]:
    conv = module.conv
    runs = "fastnets preact_conv2d" if _is_in(TYPES, conv, dtype) else _convolution(conv, False, dtype)[0]
    return runs, _with("norm", "relu", conv.activation, "pooling" if module.pool > 1 else None)


def _convolution(conv: Any, with_residual: bool, dtype: torch.dtype | None) -> tuple[str, str]:
    runs = _RUNS[type(conv)]
    if dtype == torch.int8 and type(conv) is PackedConv2d and conv.takes_int8():
        runs = f"fastnets {'pointwise_conv2d' if conv.is_pointwise() else 'direct_conv2d'} in int8"
    elif type(conv) in (PackedConv2d, PackedSubPixelConv2d) and _is_in(TYPES, conv, dtype):
        if conv.is_direct(images_in(dtype) or conv.weight.dtype) and not with_residual:
            runs = "fastnets direct_conv2d"
        elif conv.is_pointwise():
            runs = "fastnets pointwise_conv2d, or oneDNN where it is large"
        elif conv.is_winograd() and _is_in((torch.float32,), conv, dtype):
            runs = "fastnets winograd_conv2d, or oneDNN where the image is small"
    return runs, _with("residual" if with_residual else None, conv.activation)


def _is_in(types: tuple[torch.dtype, ...], conv: Any, dtype: torch.dtype | None) -> bool:
    return (images_in(dtype) or conv.weight.dtype) in types


def _with(*fused: str | None) -> str:
    names = ", ".join(filter(None, fused))
    return names and f"with {names}"

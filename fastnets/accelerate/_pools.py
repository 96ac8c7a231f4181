"""Maxima and means of windows, as layers that have kernels of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from fastnets.accelerate._graph import module_of
from fastnets.layers import PackedAvgPool2d, PackedMaxPool2d

PackedPool2d = PackedMaxPool2d | PackedAvgPool2d

_MODULES: dict[type, Callable[..., PackedPool2d]] = {nn.MaxPool2d: PackedMaxPool2d, nn.AvgPool2d: PackedAvgPool2d}


def _max_pool2d(
    kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> PackedMaxPool2d:  # fmt: skip
    """As of the function, whose order of arguments is not the module's."""
    return PackedMaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


_FUNCTIONS: dict[Any, Callable[..., PackedPool2d]] = {F.max_pool2d: _max_pool2d, F.avg_pool2d: PackedAvgPool2d}


def replace_pools(network: fx.GraphModule) -> None:
    """Replaces the modules and the functions of PyTorch."""
    for node in list(network.graph.nodes):
        layer = _layer(network, node)
        if layer is None or not layer.fits():
            continue
        module = module_of(network, node)
        called = str(node.target) if module is not None else node.name
        node.meta["was"] = called, (node.target.__name__ if module is None else type(module).__name__)
        node.op, node.target, node.args, node.kwargs = "call_module", f"pools.{node.name}", node.args[:1], {}
        network.add_submodule(node.target, layer.eval())


def _layer(network: fx.GraphModule, node: fx.Node) -> PackedPool2d | None:
    """The layer that does what the node does to its first argument, its only tensor."""
    if node.all_input_nodes != list(node.args[:1]):
        return None
    module: Any = module_of(network, node)
    if type(module) in _MODULES:
        simple = len(node.args) == 1 and not node.kwargs
        given = {name: getattr(module, name) for name in module.__constants__}
        return _MODULES[type(module)](**given) if simple else None
    return _FUNCTIONS[node.target](*node.args[1:], **node.kwargs) if node.target in _FUNCTIONS else None

"""The layout, and the type, that a network's inputs are brought to."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastnets.accelerate._graph import calls, module_of
from fastnets.accelerate._memory import is_new, is_written, sharing
from fastnets.layers import PackedConv2d


def images_in(dtype: torch.dtype | None) -> torch.dtype | None:
    """The type of images, and of parameters, where products are taken in this one."""
    return torch.float32 if dtype == torch.int8 else dtype


class ToChannelsLast(nn.Module):
    """Lays out a batch of images with the channels innermost, and casts; returns anything else as it is."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, input: Any) -> Any:
        if not isinstance(input, Tensor):
            return input
        if self.dtype is not None and input.is_floating_point():
            input = input.to(self.dtype)
        return input.contiguous(memory_format=torch.channels_last) if input.dim() == 4 else input


class InPlanes(nn.Module):
    """Lays out a tensor as PyTorch does by itself; returns anything else as it is."""

    def forward(self, input: Any) -> Any:
        return input.contiguous() if isinstance(input, Tensor) else input


def enter_channels_last(network: fx.GraphModule, dtype: torch.dtype | None) -> None:
    """Converts every input, and what convolutions take of a split; lets views follow the layout."""
    network.add_submodule("to_channels_last", ToChannelsLast(images_in(dtype)))
    network.add_submodule("in_planes", InPlanes())
    viewed = [node for node in network.graph.nodes if _needs_planes(network, node)]
    in_planes = {made for node in viewed for made in sharing(node) if made.op == "placeholder" or _makes(made)}
    for node in list(network.graph.nodes):
        if node.op == "placeholder":
            converted = _convert(node, "to_channels_last")
        if node in in_planes:
            _convert(converted if node.op == "placeholder" else node, "in_planes")
        # What a contiguous tensor allows, channels_last may not; the values are the same.
        elif calls(node, "view", "view_as") and node not in viewed and not _is_of_type(node):
            node.target = "reshape" if node.target == "view" else "reshape_as"
            node.kwargs = {"shape" if name == "size" else name: value for name, value in node.kwargs.items()}
        # A slice of the channels has gaps, with which PyTorch's convolution is left.
        elif (
            type(module_of(network, node)) is PackedConv2d and getattr(node.args[0], "target", None) is operator.getitem
        ):
            with network.graph.inserting_before(node):
                converted = network.graph.call_module("to_channels_last", node.args[:1])
            node.args = (converted, *node.args[1:])


def _convert(node: fx.Node, target: str) -> fx.Node:
    """Lets all that uses a node use what a layer makes of it."""
    with node.graph.inserting_after(node):
        converted = node.graph.call_module(target)
    node.replace_all_uses_with(converted)
    converted.args = (node,)
    return converted


_MAY_VIEW = ("view", "view_as", "reshape", "reshape_as", "flatten", "ravel", "contiguous")


def _needs_planes(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it is seen in the network's results which layout a node is given: it says strides, or may give a view."""
    may_view = calls(node, *_MAY_VIEW) or type(module_of(network, node)) is nn.Flatten
    # Who names a layout may have inputs in that one, in which it is a view, or in another; this is not known here.
    may_view = may_view and "memory_format" not in node.kwargs
    return calls(node, "as_strided") or (may_view and is_written(node, node))


def _makes(node: fx.Node) -> bool:
    """Whether a node makes a tensor."""
    return is_new(node) and node.target not in ("size", getattr)


def _is_of_type(view: fx.Node) -> bool:
    return "dtype" in view.kwargs or isinstance(view.args[-1], torch.dtype)

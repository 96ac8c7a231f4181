"""The layout, and the type, that a network's inputs are brought to."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastnets.accelerate._graph import module_of
from fastnets.layers import PackedConv2d


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


def enter_channels_last(network: fx.GraphModule, dtype: torch.dtype | None) -> None:
    """Converts every input, and what convolutions take of a split; lets views follow the layout."""
    network.add_submodule("to_channels_last", ToChannelsLast(dtype))
    for node in list(network.graph.nodes):
        if node.op == "placeholder":
            with network.graph.inserting_after(node):
                converted = network.graph.call_module("to_channels_last")
            node.replace_all_uses_with(converted)
            converted.args = (node,)
        # What a contiguous tensor allows, channels_last may not; the values are the same.
        elif node.target == "view" and not node.kwargs and not isinstance(node.args[-1], torch.dtype):
            node.target = "reshape"
        # A slice of the channels has gaps, with which PyTorch's convolution is left.
        elif (
            type(module_of(network, node)) is PackedConv2d and getattr(node.args[0], "target", None) is operator.getitem
        ):
            with network.graph.inserting_before(node):
                converted = network.graph.call_module("to_channels_last", node.args[:1])
            node.args = (converted, *node.args[1:])

"""Parts of a network that a batch goes through a few images at a time, where its images leave the caches.

Between the blocks of ResNet's first stage lie 51 MB of 16 photos, which each layer has to fetch from memory again; the
3.2 MB of one it finds in the caches. Later stages have small maps and large weights, which a batch reads once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastnets.accelerate._graph import concatenated, module_of
from fastnets.accelerate._layout import ToChannelsLast
from fastnets.accelerate._rewrite import Addition
from fastnets.layers import (
    DepthwiseConv2d,
    GroupedConv2d,
    PackedAvgPool2d,
    PackedConv2d,
    PackedDenseBlock,
    PackedInvertedResidual,
    PackedMaxPool2d,
    PackedPreactConv2d,
    PackedSqueezeExcitation,
    PackedSubPixelConv2d,
)

# Bytes for each thread: of values that the caches do not keep for the next layer, and of the largest in a slice. Nodes
# without such values that a part may have on end. Bytes of a layer's weights, which each slice reads again. Slices at
# most: a plan has all their operators.
_LARGE, _SLICE, _GAP, _WEIGHTS, _SLICES = 5 << 20, 2 << 20, 8, 2 << 20, 32

# Layers that make of each image what they would make of it alone.
_LAYERS: Any = (
    *(DepthwiseConv2d, GroupedConv2d, PackedConv2d, PackedSubPixelConv2d, PackedInvertedResidual, PackedDenseBlock),
    *(PackedPreactConv2d, PackedSqueezeExcitation, PackedMaxPool2d, PackedAvgPool2d, Addition, ToChannelsLast),
)


@dataclass(eq=False)
class Part:
    """Nodes that follow one another, what they use, what of theirs others use, and how many images go through at a time."""

    nodes: list[fx.Node]
    inputs: list[fx.Node]
    outputs: list[fx.Node]
    images: int


class _Run(fx.Interpreter):
    """Runs a network, whose errors are its own."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.extra_traceback = False
        self.network = network


class Sizes(_Run):
    """Notes how many bytes of images each node makes.

    Attributes:
        nbytes: of each node whose value is a batch of images.
        within: of the values that lie within a node's layer.
        batches: how many images there are in these: one number, or several.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.nbytes: dict[fx.Node, int] = {}
        self.within: dict[fx.Node, int] = {}
        self.batches: set[int] = set()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.dim() == 4:
            self.nbytes[n] = value.numel() * value.element_size()
            self.batches.add(len(value))
            if type(layer := module_of(self.network, n)) is PackedDenseBlock:
                source = self.nbytes.get(n.all_input_nodes[0], 0)
                self.within[n] = source * layer.all_channels // layer.in_channels
        return value

    def parts(self) -> list[Part]:
        """Those that pay."""
        if len(self.batches) != 1:
            return []
        (batch,) = self.batches
        found = []
        for can, run in groupby(self.network.graph.nodes, self._can_be_cut):
            for nodes in _pieces(list(run), self._is_large) if can else ():
                most = torch.get_num_threads() * _SLICE // (max(map(self._touched, nodes)) // batch)
                images = max(1, most, -(-batch // _SLICES))
                inside = {*nodes}
                inputs = dict.fromkeys(x for n in nodes for x in n.all_input_nodes if x not in inside)
                outputs = [n for n in nodes if any(user not in inside for user in n.users)]
                if 2 * images <= batch and self._pays(nodes, outputs):
                    found.append(Part(nodes, list(inputs), outputs, images))
        return found

    def _pays(self, nodes: list[fx.Node], outputs: list[fx.Node]) -> bool:
        """Whether much more stays in the caches than is passed on, which may be copied.

        The first of the large values may be one that its maxima alone are made of, in the same kernel.
        """
        inside = [self.nbytes[n] for n in nodes if n not in outputs] + [self.within.get(n, 0) for n in nodes]
        return 2 * sum(self.nbytes[n] for n in outputs) <= sum(inside) and sum(size > _large() for size in inside) > 1

    def _can_be_cut(self, node: fx.Node) -> bool:
        layer: Any = module_of(self.network, node)
        can = type(layer) in _LAYERS and not any(m.training for m in layer.modules() if isinstance(m, nn.BatchNorm2d))
        can = (can and _weights(layer) <= _WEIGHTS) or len(concatenated(node)) > 0
        return can and all(value in self.nbytes for value in (node, *node.all_input_nodes))

    def _touched(self, node: fx.Node) -> int:
        """Bytes of the largest value that a node makes, uses or has within."""
        return max(self.within.get(node, 0), *(self.nbytes[value] for value in (node, *node.all_input_nodes)))

    def _is_large(self, node: fx.Node) -> bool:
        return self._touched(node) > _large()


def _weights(layer: Any) -> int:
    """Bytes of its weights, or of the largest of its layers'; Winograd's points are four times as many."""
    return max(
        4 ** getattr(m, "is_winograd", bool)() * sum(p.numel() * p.element_size() for p in m.parameters(recurse=False))
        for m in layer.modules()
    )


def _large() -> int:
    return torch.get_num_threads() * _LARGE


def _pieces(nodes: list[fx.Node], is_large: Callable[[fx.Node], bool]) -> Iterator[list[fx.Node]]:
    """From one with large values to another, with few nodes between."""
    begin = end = None
    for i, node in enumerate(nodes):
        if not is_large(node):
            continue
        if begin is not None and end is not None and i - end > _GAP:
            yield nodes[begin : end + 1]
            begin = None
        begin, end = i if begin is None else begin, i
    if begin is not None and end is not None:
        yield nodes[begin : end + 1]


class InSlices(_Run):
    """Runs a network with these parts, each a slice of the batch after the other."""

    def __init__(self, network: fx.GraphModule, parts: list[Part]) -> None:
        super().__init__(network)
        self.first = {part.nodes[0]: part for part in parts}

    def run_node(self, n: fx.Node) -> Any:
        if (part := self.first.get(n)) is None:
            return super().run_node(n)
        batch = len(self.env[part.inputs[0]])
        slices = [self._run_slice(part, at) for at in range(0, batch, part.images)]
        self.env.update(dict.fromkeys(part.nodes))  # those that have a value are not run
        self.env.update(
            (node, torch.cat(made)) for node, made in zip(part.outputs, zip(*slices, strict=True), strict=True)
        )
        return self.env[n]

    def _run_slice(self, part: Part, at: int) -> list[Tensor]:
        values: dict[fx.Node, Any] = {x: self.env[x][at : at + part.images] for x in part.inputs}
        for node in part.nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)  # type: ignore[misc]
            values[node] = getattr(self, node.op)(node.target, args, kwargs)
        return [values[node] for node in part.outputs]

"""A module as a flowchart in Mermaid, drawn from the graph that torch.fx traces of it."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

HEAD = ('%%{init: {"flowchart": {"wrappingWidth": 400}}}%%', "flowchart TD")  # or Mermaid breaks lines of 200 pixels
CROWDED = 15  # a figure of more boxes is stacked
AFTER = {"BN", "LRN", "ReLU", "ReLU6", "LeakyReLU", "sigmoid", "dropout"}  # stand in the box of the layer before
NAMES = {
    "BatchNorm2d": "BN",
    "LocalResponseNorm": "LRN",
    "Sigmoid": "sigmoid",
    "Dropout": "dropout",
    "HalvingMaxPool": "MaxPool 3×3, /2",
    "HalvingAvgPool": "AvgPool 3×3, /2",
    "ChannelShuffle": "channel shuffle",
    "ShuffleSplit": "concat, shuffle, split",
}
# Mermaid takes a plus sign at the start of a label for a list.
FUNCTIONS: dict[Any, str] = {operator.add: "⊕", operator.mul: "⊗", F.relu: "ReLU", torch.relu: "ReLU"}
FUNCTIONS |= {torch.sigmoid: "sigmoid", "mean": "mean over pixels", "amax": "maximum over pixels"}


@dataclass(eq=False)
class Box:
    """A node of the figure, with the boxes that feed it and what is written on the arrows from them."""

    lines: list[str]
    shapes: list[tuple[int, ...]]
    sources: list[tuple[Box, str]] = field(default_factory=list)

    def holds_layers(self) -> bool:
        """Whether what follows it may stand in the same box."""
        return len(self.sources) == 1 and "Pool" not in self.lines[-1] and self.lines != ["output"]

    def resizes(self) -> bool:
        """Whether height or width are not those of what it reads."""
        return bool(self.sources) and self.shapes[0][2:] != self.sources[0][0].shapes[0][2:]


def draw(module: nn.Module, inputs: tuple[Tensor, ...], closed: tuple[str, ...] = ()) -> str:
    """Draws a module.

    Args:
        module: in eval mode, on the meta device, as the inputs.
        inputs: what it is called with.
        closed: names of classes whose modules are one box each.

    Returns:
        The flowchart, of ``CROWDED`` boxes or fewer where stacking the layers of one size in one box is enough.
    """
    network = fx.GraphModule(module, _Tracer(closed).trace(module))
    ShapeProp(network).propagate(*inputs)
    _remove_what_does_nothing(network)
    boxes = _boxes(network)
    return _mermaid(_stacked(boxes) if len(boxes) > CROWDED else boxes)


class _Tracer(fx.Tracer):
    """Looks into all modules that have modules in them, but those of closed classes."""

    def __init__(self, closed: tuple[str, ...]) -> None:
        super().__init__()
        self.closed = closed

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children()) or type(m).__name__ in self.closed


def _remove_what_does_nothing(network: fx.GraphModule) -> None:
    for node in network.graph.nodes:
        identity = node.op == "call_module" and isinstance(network.get_submodule(node.target), nn.Identity)
        if identity or (node.target is torch.cat and len(node.args[0]) == 1):
            node.replace_all_uses_with(node.all_input_nodes[0])
            network.graph.erase_node(node)


def _boxes(network: fx.GraphModule) -> list[Box]:
    boxes: list[Box] = []
    drawn: dict[fx.Node, tuple[Box, str]] = {}  # of each node, its box and, where it is a part of its result, which
    for node in network.graph.nodes:
        sources = [drawn[source] for source in node.all_input_nodes if source in drawn]
        if not (shapes := _shapes(node)):
            continue  # the size of a tensor, not a tensor
        if node.target is operator.getitem:
            whole = sources[0][0]
            drawn[node] = whole, f"part {node.args[1] % len(whole.shapes) + 1}"
            continue
        label = _label(network, node)
        if label in AFTER and len(node.all_input_nodes[0].users) == 1 and sources[0][0].holds_layers():
            drawn[node] = sources[0]
            drawn[node][0].lines[-1] += f" + {label}"
        else:
            drawn[node] = Box([label], shapes, sources), ""
            boxes.append(drawn[node][0])
    return boxes


def _shapes(node: fx.Node) -> list[tuple[int, ...]]:
    """Of each tensor that the node gives."""
    meta = node.meta.get("tensor_meta", ())
    return [tuple(m.shape) for m in ((meta,) if hasattr(meta, "shape") else meta)]


def _label(network: fx.GraphModule, node: fx.Node) -> str:
    """What people call it."""
    target: Any = node.target
    if node.op == "call_module":
        return _module_label(network.get_submodule(target))
    if node.op in ("placeholder", "output"):
        return target
    shapes, (shape, *_) = [_shapes(source)[0] for source in node.all_input_nodes if _shapes(source)], _shapes(node)
    if target is torch.cat:
        parts = [(c, len(list(same))) for c, same in groupby(s[1] for s in shapes)]
        return f"concat, {' + '.join(f'{n}·{c}' if n > 1 else f'{c}' for c, n in parts)} = {shape[1]}"
    if target is F.interpolate:
        return f"upsample to {_size(shape[2:])}"
    if target is F.avg_pool2d:
        return f"AvgPool {_size(node.args[1])}"
    if target == "chunk":
        return f"split in {node.args[1]}"
    if len(shapes) == 1 and target in (operator.mul, operator.sub):
        return f"× {node.args[0]:g}" if target is operator.mul else f"{node.args[0]:g} − ·"
    return FUNCTIONS.get(target, str(target))


def _module_label(module: Any) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.Conv2d):
        return f"Conv {_geometry([module])}"
    if isinstance(module, nn.Linear):
        return f"Linear {module.in_features} → {module.out_features}"
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return f"{kind[:7]} {_size(module.kernel_size)}" + (f", /{module.stride}" if module.stride != 1 else "")
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return f"AvgPool to {_size(module.output_size)}"
    if convs := [m for m in module.modules() if isinstance(m, nn.Conv2d)]:
        return f"{kind} {_geometry(convs)}"
    return NAMES.get(kind, kind)


def _geometry(convs: list[nn.Conv2d]) -> str:
    """From the channels before the first convolution to those after the last, and the most of what else they have."""
    first, stride = convs[0], max(conv.stride for conv in convs)[0]
    main = max(convs, key=lambda conv: conv.kernel_size)
    text = f"{_size(main.kernel_size)}, {first.in_channels} → {convs[-1].out_channels}"
    text += f", /{stride}" if stride > 1 else ""
    text += f", dilation {main.dilation[0]}" if main.dilation[0] > 1 else ""
    if len(convs) == 1 and main.groups > 1:
        text += ", depthwise" if main.groups == main.in_channels else f", {main.groups} groups"
    return text


def _size(size: Any) -> str:
    h, w = (size, size) if isinstance(size, int) else size
    return f"{h}×{w}"


def _stacked(boxes: list[Box]) -> list[Box]:
    """Puts layers that follow each other without a change of height and width in one box."""
    arrows = Counter(source for box in boxes for source, _ in box.sources)
    into: dict[Box, Box] = {}
    for box in boxes:
        last, part = box.sources[0] if box.sources else (box, "")
        box.sources = [(into.get(source, source), part) for source, part in box.sources]
        first = into.get(last, last)
        if first.holds_layers() and box.holds_layers() and not (part or box.resizes()) and arrows[last] == 1:
            first.lines += box.lines
            first.shapes, into[box] = box.shapes, first
    return [box for box in boxes if box not in into]


def _mermaid(boxes: list[Box]) -> str:
    return "\n".join([*HEAD, *(f"    {line}" for line in _statements(boxes))])


def _statements(boxes: list[Box]) -> Iterator[str]:
    numbers = {box: f"n{i}" for i, box in enumerate(boxes)}
    for box in boxes:
        counted = [(line, len(list(same))) for line, same in groupby(box.lines)]
        text = "<br/>".join(line if n == 1 else f"{n} × {line}" for line, n in counted)
        if not box.sources or box.lines == ["output"]:
            shapes = ", ".join("×".join(map(str, shape[1:])) for shape in box.shapes)
            yield f'{numbers[box]}(["{text}, {shapes}"])'
        else:
            yield f'{numbers[box]}(("{text}"))' if text in "⊕⊗" else f'{numbers[box]}["{text}"]'
        for source, part in box.sources:
            if not part and source.resizes() and box.lines != ["output"]:
                part = "×".join(map(str, source.shapes[0][1:]))
            arrow = f'-->|"{part}"|' if part else "-->"
            yield f"{numbers[source]} {arrow} {numbers[box]}"

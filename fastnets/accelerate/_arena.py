"""The memory that the results within a network share, dealt out when a plan is made.

A call's results come and go in the same order each time, so that each can have its place in one block of memory: no two
that are alive at once overlap, and no page of it is given back between calls. What the C library returns to the system
after a call, of 16 photos in 32 MB and more, has to be cleared and mapped again in the next, 1 to 2 µs for 4 KB.
"""

from __future__ import annotations

import operator
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastnets.accelerate._slices import writes_slices
from fastnets.accelerate._steps import Places, is_given_places, operator_of

aten = torch.ops.aten
_ALIGNMENT = 64  # bytes of a cache line, which stores past the caches fill as a whole

_WITH_OUT = {aten.cat.default: aten.cat.out, aten.add.Tensor: aten.add.out}


@dataclass(eq=False)
class Block:
    """The memory of a result: from the operator that makes it to the last that uses it, as numbers in their order."""

    maker: fx.Node
    first: int
    last: int
    offset: int = 0  # in bytes

    @property
    def value(self) -> Tensor:
        return self.maker.meta["val"]

    @property
    def nbytes(self) -> int:
        return -(-self.value.untyped_storage().nbytes() // _ALIGNMENT) * _ALIGNMENT

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


class Layout:
    """Where the results of a plan lie.

    Attributes:
        nbytes: of all of them together.
    """

    def __init__(self, blocks: list[Block]) -> None:
        self.nbytes = max((block.end for block in blocks), default=0)
        self.places = [(b.offset, b.value.dtype, b.value.shape, b.value.stride()) for b in blocks]

    def on(self, memory: Tensor) -> list[Tensor]:
        """The results as parts of some bytes."""
        return [
            memory[at : at + _nbytes(dtype, shape)].view(dtype).as_strided(shape, stride)
            for at, dtype, shape, stride in self.places
        ]


def _nbytes(dtype: torch.dtype, shape: torch.Size) -> int:
    return dtype.itemsize * shape.numel()


class Arena(threading.local):
    """A thread's memory for the plans of a network: as much as the largest takes. Plans run one after the other."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.results: dict[Layout, Places] = {}

    def results_of(self, layout: Layout) -> Places:
        """Where the results of a plan go in this thread."""
        if layout not in self.results:
            with torch.inference_mode(False):  # whose tensors could not be written to elsewhere
                if layout.nbytes > len(self.memory):
                    self.results.clear()
                    self.memory = torch.empty(0, dtype=torch.uint8)  # the old one goes before the new one comes
                    self.memory = torch.empty(layout.nbytes, dtype=torch.uint8)
                self.results[layout] = Places(layout.on(self.memory))
        return self.results[layout]


def lay_out(graph: fx.Graph) -> Layout:
    """Lets operators write their results to places that the graph is given as its first argument, ``results``.

    What a call returns is not among them, nor what operators make that cannot write elsewhere.
    """
    with graph.inserting_before(next(iter(graph.nodes))):
        results = graph.placeholder("results")
    blocks = _blocks(graph)
    _choose_offsets(blocks)
    for i, block in enumerate(blocks):
        with graph.inserting_before(block.maker):
            place = graph.call_function(operator.getitem, (results, i))
            place.meta["val"] = block.value
        _write(graph, block.maker, place)
    return Layout(blocks)


def _blocks(graph: fx.Graph) -> list[Block]:
    blocks: dict[Any, Block] = {}
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node, i in order.items():
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            blocks.setdefault(_storage(value), Block(node, order.get(operator_of(node), i), i))
        for used in node.all_input_nodes:
            if isinstance(used.meta.get("val"), Tensor):
                blocks[_storage(used.meta["val"])].last = i
    returned = {_storage(node.meta["val"]) for node in graph.output_node().all_input_nodes}
    in_place: set[int] = set()
    placed = []
    for key, block in blocks.items():
        if block.maker.op == "get_attr":
            in_place.add(key)
        elif returned.isdisjoint(_made_with(block)) and _can_write(block, in_place):
            in_place.add(key)
            placed.append(block)
    return placed


def _made_with(block: Block) -> list[int]:
    """The memory of the result and of all others of its operator."""
    step = operator_of(block.maker)
    return [_storage(node.meta["val"]) for node in ([step] if step is block.maker else step.users)]


def _storage(x: Tensor) -> int:
    """What tells one piece of memory from others; packed weights of oneDNN keep theirs to themselves."""
    return x.untyped_storage()._cdata if x.layout == torch.strided else id(x)


def _can_write(block: Block, in_place: set[int]) -> bool:
    """Whether the result is all of its memory, also later (``resize_``), and can be written to a given place.

    Steps can, which read only what is always in place: what the network holds, and results that have places.
    """
    node, value = block.maker, block.value
    if value.layout != torch.strided or value.numel() == 0:
        return False
    is_all = _nbytes(value.dtype, value.shape) == value.untyped_storage().nbytes()
    if node.target in _WITH_OUT or node.target is aten.empty.memory_format or writes_slices(node):
        return is_all
    return (
        is_all
        and is_given_places(node)
        and all(_storage(x.meta["val"]) in in_place for x in operator_of(node).all_input_nodes)
    )


def _choose_offsets(blocks: list[Block]) -> None:
    """The largest first, each as far in front as those allow that are alive with it."""
    chosen: list[Block] = []
    for block in sorted(blocks, key=lambda b: (-b.nbytes, b.first)):
        alive = [b for b in chosen if b.first <= block.last and block.first <= b.last]
        for other in sorted(alive, key=lambda b: b.offset):
            if block.end > other.offset:
                block.offset = max(block.offset, other.end)
        chosen.append(block)


def _write(graph: fx.Graph, maker: fx.Node, place: fx.Node) -> None:
    """Lets a node write its result there."""
    target: Any = maker.target
    maker.replace_all_uses_with(place)
    if target is aten.empty.memory_format:
        graph.erase_node(maker)
    elif is_given_places(maker):
        operator_of(maker).meta.setdefault("places", []).append(place.args[1])
    elif target in _WITH_OUT:
        maker.target = _WITH_OUT[target]
        maker.kwargs = {**maker.kwargs, "out": place}
    else:
        maker.kwargs = {"into": place, "channel": 0}

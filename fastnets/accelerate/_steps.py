"""Kernels of ours that follow one another in a plan, run as steps: without Python and without calls of operators.

A call of an op costs 10 to 30 µs in a network, whose kernels drive the code and the data of PyTorch's dispatcher from
the caches. Where all that such ops read and write has its place, their second call can only do what the first did.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fastnets.accelerate._slices import is_ours

# Kernels of ours that hand all their work to run_step, and write to a place that an argument or `begin_steps` gives.
_INTO = {
    "add_images", "avg_pool2d", "concat_images", "direct_conv2d", "direct_max_pool2d", "inverted_residual", "max_pool2d",
    "outer_sum_conv2d", "pointwise_conv2d", "preact_conv2d", "squeeze_excitation", "winograd_conv2d",
}  # fmt: skip
_GIVEN = {"channel_shuffle", "depthwise_conv2d", "grouped_conv2d", "shuffle_split"}

# Steps whose places are no more, which go when the next ones are written down: the garbage collector may find that out
# anywhere, also where operators are recorded or traced, so that it must call none.
_gone: list[int] = []


class Places(list[Tensor]):
    """The results of a plan in a thread, and the steps that write there."""

    def __init__(self, results: list[Tensor]) -> None:
        super().__init__(results)
        self.steps: dict[Steps, int] = {}


class Steps:
    """Operators on the places of results, which are called once in each thread.

    Args:
        call: takes the places.
        given: the numbers of the places for results that the operators are given no place for as an argument.
    """

    def __init__(self, call: Callable[[Places], None], given: list[int]) -> None:
        self.call = call
        self.given = given

    def __call__(self, places: Places) -> None:
        cpu = torch.ops.fastnets_cpu
        if steps := places.steps.get(self):
            return cpu.run_steps.default(steps)
        with contextlib.suppress(IndexError):
            while True:
                cpu.forget_steps.default(_gone.pop())
        cpu.begin_steps.default([places[i] for i in self.given])
        try:
            self.call(places)
        finally:
            steps = cpu.end_steps.default()
            weakref.finalize(places, _gone.append, steps).atexit = False
        places.steps[self] = steps
        return None


def function_of(graph: fx.Graph, held: Any) -> Callable[..., Any]:
    """The graph as a function of its placeholders; what its other names mean, ``held`` has."""
    code = graph.python_code("self")
    exec(code.src, namespace := dict(code.globals))  # noqa: S102  what fx writes of a graph
    forward = namespace["forward"]
    return lambda *args: forward(held, *args)


def gather_steps(graph: fx.Graph, places: fx.Node, held: Any) -> None:
    """Puts `Steps` in place of operators that follow one another and read and write what has its place.

    Args:
        graph: of a plan.
        places: the node that stands for the places of its results.
        held: is given the steps.
    """
    for node in reversed(graph.nodes):
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)  # a result whose place is used instead
    calls = [node for node in graph.nodes if node.op in ("call_function", "output") and not _is_in_place(node)]
    for are_steps, nodes in itertools.groupby(calls, _is_step):
        if are_steps:
            _gather(graph, places, held, list(nodes))
    for node in reversed(graph.nodes):
        if _is_in_place(node) and not node.users:
            graph.erase_node(node)


def _gather(graph: fx.Graph, places: fx.Node, held: Any, steps: list[fx.Node]) -> None:
    name = f"steps{len(vars(held))}"
    given = [place for node in steps for place in node.meta.get("places", ())]
    setattr(held, name, Steps(function_of(_alone(steps, places), held), given))
    with graph.inserting_before(steps[0]):
        graph.call_module(name, (places,))
    for node in reversed(steps):
        graph.erase_node(node)


def operator_of(node: fx.Node) -> fx.Node:
    """The operator that makes a result, which may be one of several."""
    made_by: Any = node.args[0] if node.target is operator.getitem else node
    return made_by


def is_given_places(node: fx.Node) -> bool:
    """Whether all results of the operator that makes this one can be given places, when it is written down."""
    return is_ours(operator_of(node), _GIVEN)


def _is_step(node: fx.Node) -> bool:
    if "places" in node.meta:
        return True
    return is_ours(node, _INTO) and "into" in node.kwargs and all(map(_is_in_place, node.all_input_nodes))


def _is_in_place(node: fx.Node) -> bool:
    """Whether this is what the network holds, the place of a result, or a view of such."""
    if node.op == "get_attr":
        return True
    if node.target is operator.getitem:
        return _is_place(node) or _is_in_place(node.args[0])  # type: ignore[arg-type]
    return _is_view(node) and _is_in_place(node.all_input_nodes[0])


def _is_place(node: fx.Node) -> bool:
    of: Any = node.args[0]
    return node.target is operator.getitem and of.op == "placeholder"


def _is_view(node: fx.Node) -> bool:
    """Whether an operator returns its first argument's memory, and writes nothing: ``contiguous`` may, or may copy.

    Several views have no sketch of their own.
    """
    schema = getattr(node.target, "_schema", None)
    if (
        not node.all_input_nodes
        or schema is None
        or schema.is_mutable
        or not schema.returns
        or not all(r.alias_info for r in schema.returns)
    ):
        return False
    made, of = (n.meta.get("val") for n in (node, node.all_input_nodes[0]))
    return made is None or (of is not None and made.untyped_storage()._cdata == of.untyped_storage()._cdata)


def _alone(steps: list[fx.Node], placeholder: fx.Node) -> fx.Graph:
    """The graph of these nodes, a function of the places of results."""
    graph = fx.Graph()
    places = graph.placeholder("places")
    copies = {placeholder: places}

    def copy(node: fx.Node) -> fx.Node:
        if node not in copies:
            copies[node] = graph.node_copy(node, copy)
        return copies[node]

    for node in steps:
        graph.node_copy(node, copy)
    graph.output(None)
    return graph

"""Kernels of ours that follow one another in a plan, run as steps: without Python and without calls of operators.

A call of an op costs 10 to 30 µs in a network, whose kernels drive the code and the data of PyTorch's dispatcher from
the caches. Where all that such ops read and write has its place, their second call can only do what the first did.
"""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

_FEWEST = 2  # ops that are worth it

# Kernels of ours that hand all their work to run_step.
_STEPS = {
    "avg_pool2d", "inverted_residual", "max_pool2d", "pointwise_conv2d", "preact_conv2d", "stem_conv2d",
    "winograd_conv2d",
}  # fmt: skip


class Places(list[Tensor]):
    """The results of a plan in a thread, and the steps that write there."""

    def __init__(self, results: list[Tensor]) -> None:
        super().__init__(results)
        self.steps: dict[Steps, int] = {}


class Steps:
    """A function of operators on the places of results, which is called once for each thread.

    Args:
        call: takes the places.
    """

    def __init__(self, call: Callable[[Places], None]) -> None:
        self.call = call

    def __call__(self, places: Places) -> None:
        if steps := places.steps.get(self):
            return torch.ops.fastnets_cpu.run_steps.default(steps)
        torch.ops.fastnets_cpu.begin_steps.default()
        try:
            self.call(places)
        finally:
            steps = torch.ops.fastnets_cpu.end_steps.default()
            weakref.finalize(places, torch.ops.fastnets_cpu.forget_steps.default, steps)
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
    for node in graph.nodes:
        if _is_place(node.kwargs.get("into")):
            node.replace_all_uses_with(node.kwargs["into"])
    calls = [node for node in graph.nodes if node.op in ("call_function", "output") and not _is_place(node)]
    for are_steps, nodes in itertools.groupby(calls, _is_step):
        if are_steps and len(steps := list(nodes)) >= _FEWEST:
            name = f"steps{len(vars(held))}"
            setattr(held, name, Steps(function_of(_alone(steps), held)))
            with graph.inserting_before(steps[0]):
                graph.call_module(name, (places,))
            for node in reversed(steps):
                graph.erase_node(node)
    for node in reversed(graph.nodes):
        if _is_place(node) and not node.users:
            graph.erase_node(node)


def _is_place(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.target is not operator.getitem:
        return False
    of: Any = node.args[0]
    return of.op == "placeholder"


def _is_step(node: fx.Node) -> bool:
    target: Any = node.target
    is_ours = getattr(target, "namespace", None) == "fastnets_cpu" and target._opname in _STEPS
    is_placed = all(used.op == "get_attr" or _is_place(used) for used in node.all_input_nodes)
    return is_ours and is_placed and "into" in node.kwargs


def _alone(nodes: list[fx.Node]) -> fx.Graph:
    """The graph of these nodes, a function of the places of results."""
    graph = fx.Graph()
    copies = {}
    places = graph.placeholder("results")
    for node in nodes:
        for used in node.all_input_nodes:
            if used not in copies:
                is_held = used.op == "get_attr"
                copies[used] = (
                    graph.get_attr(str(used.target)) if is_held else graph.call_function(operator.getitem, (places, used.args[1]))
                )
        graph.node_copy(node, copies.__getitem__)
    graph.output(None)
    return graph

"""Convolutions of one value whose results are added: one convolution, whose kernel is the sum of theirs."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastnets.accelerate._convolutions import convolution_of
from fastnets.accelerate._graph import ADDITIONS, IN_PLACE_ADDITIONS, batch_norm_of
from fastnets.accelerate._kernel import Kernel, kernel_of
from fastnets.accelerate._memory import is_written
from fastnets.ops._packed import scale_and_shift

_SUBTRACTIONS = (operator.sub, torch.sub, "sub")
_PRODUCTS = (operator.mul, torch.mul, "mul")
_SAME = Kernel()


def add_parallel_convolutions(network: fx.GraphModule) -> None:
    """Replaces sums of convolutions, BatchNorms and multiples of one value, where nothing else uses what is between.

    A kernel takes in others that have numbers only where it has some, so that work never grows.
    """
    sums = _Sums(network)
    for node in list(network.graph.nodes):
        found = sums.at(node)
        if found is not None and sums.is_worth(found):
            sums.put(found)
    for node, term in sums.exact.items():
        network.set_submodule(str(node.target), term.kernel.layer())


@dataclasses.dataclass(frozen=True, eq=False)
class _Term:
    """A linear map of a value.

    Args:
        source: the value.
        readers: the nodes that read it.
        kernel: the map.
        layers: that do this in the model, each with its type, the one with the largest kernel first.
    """

    source: fx.Node
    readers: tuple[fx.Node, ...]
    kernel: Kernel
    layers: tuple[tuple[str, str], ...] = ()

    def takes(self, other: _Term) -> bool:
        return self.source is other.source and self.kernel.takes(other.kernel)

    def plus(self, other: _Term) -> _Term:
        kernel = self.kernel.plus(other.kernel)
        return _Term(self.source, self.readers + other.readers, kernel, self.layers + other.layers)

    def scaled(self, scale: Any, shift: Any = 0.0) -> _Term:
        return dataclasses.replace(self, kernel=self.kernel.scaled(scale, shift))


@dataclasses.dataclass(frozen=True, eq=False)
class _Sum:
    """Terms, and the nodes that add these up and do nothing else, of which the last has the sum."""

    terms: tuple[_Term, ...] = ()
    nodes: tuple[fx.Node, ...] = ()


class _Sums:
    """What nodes of a network add up.

    Attributes:
        exact: the terms that convolutions are made of here, whose parameters are not rounded.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        self.network = network
        self.exact: dict[fx.Node, _Term] = {}

    def at(self, node: fx.Node) -> _Sum | None:
        """The value of a node; None where it is no sum of linear maps."""
        if node in self.exact:
            return _Sum((self.exact[node],), (node,))
        if (conv := convolution_of(self.network, node)) is not None:
            kernel, source, layer = kernel_of(conv), node.args[0], (str(node.target), type(conv).__name__)
            if kernel is None or not isinstance(source, fx.Node):
                return None
            return _Sum((_Term(source, (node,), kernel, (layer,)),), (node,))
        if len(node.args) == 1 and not node.kwargs and (norm := batch_norm_of(self.network, node)) is not None:
            return self._normalised(node, norm)
        if node.op not in ("call_function", "call_method") or len(node.args) != 2 or node.kwargs:
            return None
        if node.target in _PRODUCTS:
            return self._product(node, *node.args) or self._product(node, *reversed(node.args))
        return self._added(node) if node.target in (*ADDITIONS, *_SUBTRACTIONS) else None

    def _of(self, value: Any, reader: fx.Node) -> _Sum | None:
        """What a node reads: what only it reads as a sum, anything else as it is; None of numbers but 0."""
        if not isinstance(value, fx.Node):
            return _Sum() if isinstance(value, int | float) and value == 0 else None
        found = self.at(value) if list(value.users) == [reader] else None
        return found or _Sum((_Term(value, (reader,), _SAME),))

    def _normalised(self, node: fx.Node, norm: nn.BatchNorm2d) -> _Sum | None:
        found = self._of(node.args[0], node)
        if found is None or len(found.terms) != 1:
            return None
        (term,) = found.terms
        layers = term.layers or ((str(node.target), type(norm).__name__),)
        term = dataclasses.replace(term.scaled(*scale_and_shift(norm)), layers=layers)
        return _Sum((term,), (*found.nodes, node))

    def _product(self, node: fx.Node, value: Any, factor: Any) -> _Sum | None:
        """That of a convolution with a number, or with a parameter that has one for each channel."""
        found = self._of(value, node)
        conv = found.terms[0].kernel.conv if found is not None and len(found.terms) == 1 else None
        scale = None if found is None or conv is None else self._scale(factor, conv)
        if found is None or scale is None:
            return None
        parameters = (factor,) if isinstance(factor, fx.Node) else ()
        return _Sum((found.terms[0].scaled(scale),), (*found.nodes, *parameters, node))

    def _scale(self, factor: Any, conv: nn.Conv2d) -> Tensor | float | None:
        if isinstance(factor, int | float):
            return float(factor)
        if not isinstance(factor, fx.Node) or factor.op != "get_attr":
            return None
        value = operator.attrgetter(str(factor.target))(self.network)
        fits = isinstance(value, nn.Parameter) and value.shape == (conv.out_channels, 1, 1)
        is_kept = fits and value.dtype == conv.weight.dtype and not is_written(factor, next(iter(factor.graph.nodes)))
        return value.detach().double().flatten() if is_kept else None

    def _added(self, node: fx.Node) -> _Sum | None:
        a, b = (self._of(value, node) for value in node.args)
        is_over_others = node.target in IN_PLACE_ADDITIONS and (a is None or not a.nodes)
        if a is None or b is None or node.args[0] is node.args[1] or is_over_others:
            return None
        others = [term.scaled(-1.0) for term in b.terms] if node.target in _SUBTRACTIONS else b.terms
        return _Sum(_merged([*a.terms, *others]), (*a.nodes, *b.nodes, node))

    def is_worth(self, found: _Sum) -> bool:
        """Whether it takes fewer steps now, and none of them reads what was written over since."""
        convs = [term for term in found.terms if term.kernel.conv is not None]
        if not convs or any(term.kernel.conv is None and term.kernel is not _SAME for term in found.terms):
            return False
        # Of a sum that is written over one of its terms, another order might have another type.
        if len(found.terms) > 1 and any(node.target in IN_PLACE_ADDITIONS for node in found.nodes):
            return False
        # A BatchNorm that is right behind a convolution of the model costs nothing either way.
        steps = [n for n in found.nodes if batch_norm_of(self.network, n) is None or n.args[0] in self.exact]
        if len(convs) + len(found.terms) - 1 >= len(steps):
            return False
        last = found.nodes[-1]
        return not any(is_written(term.source, reader, last) for term in found.terms for reader in term.readers)

    def put(self, found: _Sum) -> None:
        """Computes it in the place of the nodes that did."""
        graph, last = self.network.graph, found.nodes[-1]
        with graph.inserting_before(last):
            value, *others = [self._value(term, f"sums.{last.name}.{i}") for i, term in enumerate(found.terms)]
            for other in others:
                value = graph.call_function(operator.add, (value, other))
        last.replace_all_uses_with(value)
        for node in reversed(found.nodes):
            if not node.users:
                self.exact.pop(node, None)
                graph.erase_node(node)

    def _value(self, term: _Term, name: str) -> fx.Node:
        if term.kernel is _SAME:
            return term.source
        assert term.kernel.conv is not None
        self.network.add_submodule(name, term.kernel.conv)  # until it is known whether more is added
        node = self.network.graph.call_module(name, (term.source,))
        (layer, kind), *others = term.layers
        node.meta["was"] = layer, kind, *others
        self.exact[node] = dataclasses.replace(term, readers=(node,))
        return node


def _merged(terms: list[_Term]) -> tuple[_Term, ...]:
    while pair := next(((a, b) for a in terms for b in terms if a is not b and a.takes(b)), None):
        a, b = pair
        terms[terms.index(a)] = a.plus(b)
        terms.remove(b)
    return tuple(terms)

"""The operators of a call, written down as a graph while they run, and made a function."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from fastnets._backends import BACKENDS
from fastnets.accelerate._arena import Layout, lay_out
from fastnets.accelerate._slices import add_where_they_lie, concatenate_in_place, pool_what_is_made, read_slices
from fastnets.accelerate._steps import function_of, gather_steps


class Recorder(TorchDispatchMode):
    """Writes down each operator that runs under it, with arguments and results.

    Results are free to go when the call has used them: the graph's nodes have sketches of them in ``meta["val"]``.

    Args:
        inputs: of the call.

    Attributes:
        operators: that ran, in their order.
        is_whole: whether the graph says all that ran, and no numbers were read from tensors.
    """

    def __init__(self, inputs: tuple[Tensor, ...] = ()) -> None:
        super().__init__()
        self.operators: list[Any] = []
        self.is_whole = True
        self._graph = fx.Graph()
        self._held = SimpleNamespace()  # tensors that the call uses and does not make
        self._nodes: Any = WeakTensorKeyDictionary()
        self._memories: dict[int, tuple[StorageWeakRef, Tensor]] = {}
        for i, x in enumerate(inputs):
            self._is_made(x, self._graph.placeholder(f"x{i}"))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: it would be imported for that, which takes 2 s, and never sees what runs here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, int | float | complex):  # a question of the code in between
            self.is_whole &= not any(isinstance(arg, Tensor) for arg in args)
            return result
        self.operators.append(func)
        try:
            self._write(func, args, kwargs or {}, result)
        # A call must not fail for what cannot be written down, such as nested tensors, which have no sizes.
        except Exception:  # noqa: BLE001
            self.is_whole = False
        return result

    def _write(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        call = self._graph.call_function(func, *pytree.tree_map(self._node, (args, kwargs)))
        if isinstance(result, Tensor):
            self._is_made(result, call)
        else:
            for i, tensor in enumerate(result or ()):
                if isinstance(tensor, Tensor):  # an LSTM has None among its results
                    self._is_made(tensor, self._graph.call_function(operator.getitem, (call, i)))

    def program(self, result: Any) -> tuple[Callable[..., Any], Layout]:
        """A function of places for the results in between and the call's arguments, and how those places lie."""
        graph, held = self._graph, self._held
        graph.output(pytree.tree_map(self._node, result))
        if BACKENDS["cpu"].missing() is None:
            pool_what_is_made(graph)
            add_where_they_lie(graph)
            concatenate_in_place(graph)
        read_slices(graph)
        layout = lay_out(graph)
        gather_steps(graph, next(iter(graph.nodes)), held)
        return function_of(graph, held), layout

    def _is_made(self, value: Tensor, by: fx.Node) -> None:
        by.meta["val"] = self._sketch(value)
        self._nodes.setdefault(value, by)  # what writes into an argument returns it

    def _node(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value not in self._nodes:
            name = f"held{len(vars(self._held))}"
            setattr(self._held, name, value)
            self._is_made(value, self._graph.get_attr(name))
        return self._nodes[value] if isinstance(value, Tensor) else value

    def _sketch(self, x: Tensor) -> Tensor:
        """A tensor without numbers of the same type, sizes and strides, on the memory that is in place of x's."""
        if x.layout != torch.strided:
            return x
        real = x.untyped_storage()
        if real._cdata not in self._memories:
            memory = torch.empty(real.nbytes(), dtype=torch.uint8, device="meta")
            # As long as the real one is referred to, nothing else gets its name.
            self._memories[real._cdata] = StorageWeakRef(real), memory
        memory = self._memories[real._cdata][1]
        sketch = torch.empty(0, dtype=x.dtype, device="meta")
        return sketch.set_(memory.untyped_storage(), x.storage_offset(), x.shape, x.stride())

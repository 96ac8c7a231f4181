"""The walk over a model: the parts of it that can be traced become networks, the others stay around theirs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastnets.accelerate._convolutions import rebuild
from fastnets.accelerate._graph import has_hooks
from fastnets.accelerate._plan import Network
from fastnets.accelerate._rewrite import rewrite
from fastnets.accelerate._table import Table
from fastnets.accelerate._tell import tell_layer
from fastnets.accelerate._timm import split_timms
from fastnets.accelerate._trace import trace
from fastnets.layers import Conv2d


class Accelerator:
    """Rewrites a module in place, as far into its parts as needed.

    Args:
        table: what is done goes here.
        dtype: what inputs are cast to; None leaves them.
    """

    def __init__(self, table: Table, dtype: torch.dtype | None) -> None:
        self.table = table
        self.dtype = dtype
        self.done: dict[int, nn.Module] = {}  # modules can be shared

    def __call__(self, module: nn.Module, name: str = "") -> nn.Module:
        """What takes the place of the module of that name."""
        if id(module) not in self.done:
            self.done[id(module)] = self._accelerate(module, name)
        return self.done[id(module)]

    def _accelerate(self, module: nn.Module, name: str) -> nn.Module:
        if has_hooks(module) and next(module.children(), None) is None:
            return module
        split_timms(module)
        try:
            graph = trace(module)
        # Tracing runs the module's own code on stand-ins for tensors, which can fail in any way.
        except Exception as error:  # noqa: BLE001
            return self._parts(module, name, "cannot be traced: " + str(error).partition("\n")[0])
        network = Network(module, graph, type(module).__name__)
        hooked = [
            str(n.target) for n in graph.nodes if n.op == "call_module" and has_hooks(network.get_submodule(n.target))
        ]
        for target in dict.fromkeys(hooked):
            network.set_submodule(target, self(network.get_submodule(target), f"{name}.{target}".lstrip(".")))
        rewrite(network, name, self.table, self.dtype)
        return run_by(module, network) if has_hooks(module) else network

    def _parts(self, module: nn.Module, name: str, why: str) -> nn.Module:
        """The module as it is, with its parts accelerated."""
        self.table.add(name, type(module).__name__, "itself", why)
        for child_name, child in module._modules.items():  # named_children leaves out what comes twice
            if child is None:
                continue
            path = f"{name}.{child_name}".lstrip(".")
            if next(child.children(), None) is not None:
                fast = self(child, path)
                self.done[id(child)] = run_by(child, fast) if isinstance(fast, Network) else fast
                continue
            layer = child
            if type(child) in (nn.Conv2d, Conv2d) and not has_hooks(child):
                assert isinstance(child, nn.Conv2d)
                # Code that cannot be traced may read attributes, which this layer has too.
                layer = rebuild(child, child.weight, child.bias)
                setattr(module, child_name, layer)
            tell_layer(self.table, path, type(child).__name__, layer, self.dtype)
        return module


class _Part:
    """A module that runs as a network when it is called, for code and hooks that may ask for anything else of it."""

    _network: Network  # not one of the module's children: code may go through these

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._network(*args, **kwargs)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        self._network._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[misc]

    def _load_from_state_dict(self, *args: Any) -> None:
        args[-1].append("this model was accelerated: load into the model that it was made from, and accelerate that")

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _new_part, (type(self).__mro__[2],), vars(self)


@functools.cache
def _part_of(kind: Any) -> Any:
    return type(kind.__name__, (_Part, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _new_part(kind: type) -> nn.Module:
    part = _part_of(kind)
    return part.__new__(part)


def run_by(module: nn.Module, network: Network) -> nn.Module:
    """The module itself, whose calls from now on run the network."""
    vars(module)["_network"] = network.eval().requires_grad_(False)
    kind: Any = type(module)
    module.__class__ = _part_of(kind)
    return module

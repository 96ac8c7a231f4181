"""A network, or the parts of it that can be traced, as graphs that are then rewritten."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import fx, nn

from fastnets.accelerate._graph import has_hooks
from fastnets.accelerate._plan import Network
from fastnets.accelerate._rewrite import CONVOLUTIONS, rebuild, rewrite
from fastnets.accelerate._table import Table


class Tracer(fx.Tracer):
    """Does not look into the layers of fastnets, nor into modules whose hooks look at what goes in or comes out."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Layers of fastnets ask for shapes and types, which fx's stand-ins for tensors do not have.
        ours = m.__module__.startswith("fastnets.") and next(m.children(), None) is None
        return ours or has_hooks(m) or super().is_leaf_module(m, module_qualified_name)


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


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
        if id(module) not in self.done:
            self.done[id(module)] = self._accelerate(module, name)
        return self.done[id(module)]

    def _accelerate(self, module: nn.Module, name: str) -> nn.Module:
        _split_norms(module)
        if has_hooks(module):
            hooks = {key: vars(module)[key] for key in _HOOKS}
            vars(module).update({key: OrderedDict() for key in _HOOKS})
            fast = self._accelerate(module, name) if list(module.children()) else module
            vars(fast).update(hooks)
            return fast
        try:
            graph = Tracer().trace(module)
        # Tracing runs the module's own code on stand-ins for tensors, which can fail in any way.
        except Exception as error:  # noqa: BLE001
            return self._parts(module, name, "cannot be traced: " + str(error).partition("\n")[0])
        for node in graph.nodes:
            node.type = None  # annotations, which fx cannot pickle where they are strings
        network = Network(module, graph, type(module).__name__)
        hooked = [
            str(n.target) for n in graph.nodes if n.op == "call_module" and has_hooks(network.get_submodule(n.target))
        ]
        for target in dict.fromkeys(hooked):
            network.set_submodule(target, self(network.get_submodule(target), f"{name}.{target}".lstrip(".")))
        rewrite(network, name, self.table, self.dtype)
        return network

    def _parts(self, module: nn.Module, name: str, why: str) -> nn.Module:
        """The module as it is, with its parts accelerated."""
        self.table.add(name, type(module).__name__, "itself", why)
        for child_name, child in module._modules.items():  # named_children leaves out what comes twice
            if child is None:
                continue
            path = f"{name}.{child_name}".lstrip(".")
            if type(child) in CONVOLUTIONS and not has_hooks(child):
                assert isinstance(child, nn.Conv2d)
                # Code that cannot be traced may read attributes, which this layer has too.
                setattr(module, child_name, rebuild(child, child.weight, child.bias))
            elif next(child.children(), None) is not None:
                setattr(module, child_name, self(child, path))
        return module


def _split_norms(module: nn.Module) -> None:
    """Makes timm's BatchNorm with activation two layers, which are known."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ != "BatchNormAct2d" or not isinstance(child, nn.BatchNorm2d) or has_hooks(child):
                continue
            norm = nn.BatchNorm2d(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            for key, value in (*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)):
                setattr(norm, key, value)
            parts = [part for part in (getattr(child, "drop", None), getattr(child, "act", None)) if part is not None]
            setattr(parent, name, nn.Sequential(norm, *parts).eval())

"""The graph of a module's code, where that is the same for all inputs."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch import fx, nn

from fastnets.accelerate._graph import has_hooks


class CannotTraceError(Exception):
    """A module's code does what a graph cannot say."""


def trace(module: nn.Module) -> fx.Graph:
    """The graph of what a module does in a call.

    fx runs the code once on stand-ins for tensors and notes what they are asked. What the code decides by anything else
    is decided for good, so code that does is found out and refused: it asks what an input is, does something else where an
    optional argument is given, keeps something from call to call, or draws random numbers.

    Raises:
        Exception: of any kind, which the module's code may raise on stand-ins.
    """
    if "forward" in vars(module):
        raise CannotTraceError("its forward was replaced")
    before, generators = _attributes(module), _generators()
    try:
        graph = Tracer().trace(module)
        optional = [node for node in graph.nodes if node.op == "placeholder" and node.args]
        # One that nothing uses may have been compared with something.
        is_same = all(node.users for node in optional)
        if optional and is_same:
            is_same = _is_same(graph, Tracer(leaves_out=True).trace(module))
    finally:
        kept, drawn = _restore(before), _has_drawn(*generators)
    if kept:
        raise CannotTraceError(f"it sets {kept} in a call")
    if drawn:
        raise CannotTraceError("it draws random numbers")
    if not is_same:
        raise CannotTraceError("what it does may depend on an optional argument")
    for node in graph.nodes:
        node.type = None  # annotations, which fx cannot pickle where they are strings
    return graph


class Tracer(fx.Tracer):
    """Does not look into the layers of fastnets, nor into modules whose hooks look at what goes in or comes out.

    Args:
        leaves_out: whether optional arguments have their defaults.
    """

    proxy_buffer_attributes = True  # a call may write into them

    def __init__(self, leaves_out: bool = False) -> None:
        super().__init__()
        self.leaves_out = leaves_out

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Layers of fastnets ask for shapes and types, which fx's stand-ins for tensors do not have.
        ours = m.__module__.startswith("fastnets.") and next(m.children(), None) is None
        return ours or has_hooks(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _StandIn(node, self)

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        function, inputs = super().create_args_for_root(*args, **kwargs)
        return function, [_default(x) for x in inputs] if self.leaves_out else inputs


class _StandIn(fx.Proxy):
    """For a tensor, or whatever else a call is given: what it is, the code may not ask, but of sizes."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        asking = sys._getframe(1)
        by_torch = asking.f_globals.get("__name__", "").partition(".")[0] == "torch"
        if by_torch or "isinstance" not in asking.f_code.co_names or _is_size(self.node):
            return _StandIn
        raise CannotTraceError("it asks for the type of what it is given")


def _is_size(node: fx.Node) -> bool:
    """Whether a node is made of sizes of tensors."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    module = getattr(node.target, "__module__", None)
    return module in ("_operator", "math", "builtins") and all(map(_is_size, node.all_input_nodes))


def _default(x: Any) -> Any:
    """Of an input, if it has one."""
    return x.node.args[0] if isinstance(x, fx.Proxy) and x.node.args else x


def _is_same(given: fx.Graph, left_out: fx.Graph) -> bool:
    """Whether two graphs do the same, where arguments of the one are constants of the other."""
    if len(given.nodes) != len(left_out.nodes):
        return False
    same: dict[fx.Node, Any] = {}
    for a, b in zip(given.nodes, left_out.nodes, strict=True):
        arguments = fx.map_arg((a.args, a.kwargs), same.__getitem__)
        if (a.op, a.target) != (b.op, b.target) or arguments != (b.args, b.kwargs):
            return False
        same[a] = a.args[0] if a.op == "placeholder" and a.args else b
    return True


def _attributes(module: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What modules hold, and a copy of that."""
    return [(held, dict(held)) for m in module.modules() for held in (vars(m), m._parameters, m._buffers, m._modules)]


def _restore(attributes: list[tuple[dict[str, Any], dict[str, Any]]]) -> str | None:
    """Brings back what a call has set, and says the name of one of these attributes, if any."""
    found = None
    for now, was in attributes:
        for name in {**now, **was}:
            if now.get(name) is not was.get(name) and not name.startswith("_tensor_constant"):  # of fx's own
                found = name
                now.update(was)
                if name not in was:
                    del now[name]
    return found


def _generators() -> tuple[Any, torch.Tensor]:
    return random.getstate(), torch.get_rng_state()


def _has_drawn(of_python: Any, of_torch: torch.Tensor) -> bool:
    """Whether random numbers were drawn since; the generators are set back."""
    drawn = of_python != random.getstate() or not torch.equal(of_torch, torch.get_rng_state())
    random.setstate(of_python)
    torch.set_rng_state(of_torch)
    return drawn

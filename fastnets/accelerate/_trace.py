"""The graph of a module's code, where that is the same for all inputs."""

from __future__ import annotations

import contextlib
import dis
import inspect
import itertools
import math
import operator
import random
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import fx, nn

from fastnets import ops
from fastnets.accelerate._graph import has_hooks


class CannotTraceError(Exception):
    """A module's code does what a graph cannot say."""


def trace(module: nn.Module) -> fx.Graph:
    """The graph of what a module does in a call.

    fx runs the code once on stand-ins for tensors and notes what they are asked. What the code decides by anything else
    is decided for good, so code that does is found out and refused: it asks what an input is, does something else where an
    argument is its default or None, keeps something from call to call, or draws random numbers.

    Raises:
        Exception: of any kind, which the module's code may raise on stand-ins.
    """
    if "forward" in vars(module):
        raise CannotTraceError("its forward was replaced")
    before, generators = _attributes(module), _generators()
    try:
        graph = Tracer().trace(module)
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        optional = {node.target: node.args[0] for node in inputs if node.args}
        # One that nothing uses may have been compared with something.
        is_same = all(node.users for node in inputs if node.args)
        if optional and is_same:
            is_same = _is_same(graph, Tracer(optional).trace(module), optional)
        for node in inputs[1:]:
            none = {node.target: None}
            if not node.args and not str(node.target).startswith("*"):
                with contextlib.suppress(Exception):  # where it cannot be None, there is nothing to compare
                    is_same = is_same and _is_same(graph, Tracer(none).trace(module), none)
    finally:
        kept, drawn = _restore(before), _has_drawn(*generators)
    if kept:
        raise CannotTraceError(f"it sets {kept} in a call")
    if drawn:
        raise CannotTraceError("it draws random numbers")
    if not is_same:
        raise CannotTraceError("what it does may depend on an optional argument, or on one that may be None")
    for node in graph.nodes:
        node.type = None  # annotations, which fx cannot pickle where they are strings
    return graph


class Tracer(fx.Tracer):
    """Does not look into the layers and ops of fastnets, nor into modules whose hooks look at what goes in or comes out.

    Args:
        given: what arguments of these names are, instead of stand-ins.
    """

    proxy_buffer_attributes = True  # a call may write into them

    def __init__(self, given: dict[Any, Any] | None = None) -> None:
        super().__init__(autowrap_modules=(math, ops))  # type: ignore[arg-type]  # any number
        self.given = given or {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        _refuse_type(root)
        return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.is_leaf_module(m, ""):
            _refuse_type(m)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Layers of fastnets ask for shapes and types, which fx's stand-ins for tensors do not have.
        ours = m.__module__.startswith("fastnets.") and next(m.children(), None) is None
        return ours or has_hooks(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _StandIn(node, self)

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        function, inputs = super().create_args_for_root(*args, **kwargs)
        return function, [self.given.get(x.node.target, x) if isinstance(x, fx.Proxy) else x for x in inputs]


class _StandIn(fx.Proxy):
    """For a tensor, or whatever else a call is given: what it is, the code may not ask, but of sizes."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        asking = sys._getframe(1)
        while asking.f_code.co_name == "__instancecheck__" and asking.f_back:  # of an abstract class, of nn.Parameter
            asking = asking.f_back
        # Setting an attribute asks too, whether it is a parameter; and functions in C ask, before the stand-in answers.
        by_torch = asking.f_globals.get("__name__", "").startswith(("torch.fx.", "torch.nn.modules.module"))
        by_c = "isinstance" not in asking.f_code.co_names and _is_calling(asking)
        if by_torch or by_c or _is_size(self.node):
            return _StandIn
        raise CannotTraceError("it asks for the type of what it is given")


def _is_calling(frame: FrameType) -> bool:
    """Whether it is at a call, and not at a ``match`` or at ``__class__``."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("CALL")


def _in_place(name: str) -> Any:
    """The statement's method; sizes are numbers, of which the statement makes others."""
    function = getattr(operator, name)

    def method(self: _StandIn, other: Any) -> Any:
        if _is_size(self.node):
            return NotImplemented
        if self.node.op == "placeholder":  # a number, or the caller's tensor
            raise CannotTraceError("it writes over what it is given")
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


# fx's own stand-ins have none of these, for which Python makes a new value.
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"):
    setattr(_StandIn, f"__i{_name}__", _in_place(f"i{_name}"))


def _refuse_type(module: nn.Module) -> None:
    """Raises CannotTraceError if a call of the module may run code that calls ``type``, of which stand-ins hear nothing."""
    kinds, seen = type(module).__mro__, set()
    todo = _theirs(getattr(kind, "forward", None) for kind in kinds)
    while todo:
        if (function := todo.pop()) in seen:
            continue
        seen.add(function)
        for code in _codes(function.__code__):
            if _calls_type(code):
                raise CannotTraceError("it asks for the type of something")
            for name in code.co_names:
                todo += _theirs([function.__globals__.get(name), *[getattr(kind, name, None) for kind in kinds]])


def _theirs(found: Iterable[Any]) -> list[FunctionType]:
    """The functions among these that are not of PyTorch or fastnets."""
    functions = [inspect.unwrap(f) for f in found if isinstance(f, FunctionType)]
    return [f for f in functions if (f.__module__ or "").partition(".")[0] not in ("torch", "fastnets")]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """That of a function, and of those in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _calls_type(code: CodeType) -> bool:
    """Whether it looks up ``type``, for anything but ``self``."""
    if "type" not in code.co_names:
        return False
    steps = list(dis.get_instructions(code))
    return any(
        step.opname == "LOAD_GLOBAL" and step.argval == "type" and after.argval != "self"
        for step, after in itertools.pairwise(steps)
    )


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


def _is_same(graph: fx.Graph, other: fx.Graph, given: dict[Any, Any]) -> bool:
    """Whether two graphs do the same, where arguments of the one are given in the other."""
    if len(graph.nodes) != len(other.nodes):
        return False
    same: dict[fx.Node, Any] = {}
    for a, b in zip(graph.nodes, other.nodes, strict=True):
        arguments = fx.map_arg((a.args, a.kwargs), same.__getitem__)
        if (a.op, a.target) != (b.op, b.target) or arguments != (b.args, b.kwargs):
            return False
        same[a] = given.get(a.target, b) if a.op == "placeholder" else b
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

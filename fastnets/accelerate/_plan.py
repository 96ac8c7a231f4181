"""What a network ran for inputs of some shapes, kept as one function of operators and run again.

A call of a network of modules spends 10 to 20 µs a layer on choosing what the call before has chosen: modules look up
parameters and hooks, layers read shapes and types, ops choose backends. None of this depends on numbers, so that for
inputs of the same shapes it ends in the same operators as long as the network is as it was.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as nn_module
from torch.utils.hooks import RemovableHandle

from fastnets._backends import requested
from fastnets._op import OPS, Implementation, is_plain, looked_on
from fastnets._tuning import untuned
from fastnets.accelerate._arena import Arena, Layout
from fastnets.accelerate._batches import InSlices, Sizes
from fastnets.accelerate._record import Recorder
from fastnets.layers import PrecisionGateConv2d
from fastnets.ops._packed import Packs

_KEPT = 16  # plans of a network at most, one for each combination of shapes, types and layouts


class Network(fx.GraphModule):
    """A traced network that runs by a plan from the third call on with inputs of the same shapes, types and layouts.

    The first call packs weights, and tells which parts a batch goes through in slices; the second is recorded. Calls for
    which something else has to happen (gradients, tracing, hooks), and networks with layers of others than PyTorch and
    fastnets, run as they are.
    """

    _plans: Plans | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        here = not kwargs and args and all(type(x) is Tensor and x.is_cpu and not x.is_nested for x in args)
        if not here or torch.compiler.is_compiling() or not is_plain(*args) or requested.get() not in (None, "cpu"):
            return super().__call__(*args, **kwargs)
        plans = self._plans
        if plans is None or not plans.state.lasts():
            self._plans = plans = Plans(State(self))
        return plans.run(self, super().__call__, args)

    # Copies have the hooks too, which fx.GraphModule's have not.

    def __copy__(self) -> Network:
        network = Network(self, self.graph, type(self).__name__)
        return _with_hooks(network, {name: copy.copy(hooks) for name, hooks in _hooks(self).items()})

    @torch.inference_mode(False)  # where tensors count their changes
    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        return _with_hooks(super().__deepcopy__(memo), copy.deepcopy(_hooks(self), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (*super().__reduce__(), _hooks(self))


def _restore(make: Callable[..., fx.GraphModule], args: tuple[Any, ...], hooks: dict[str, Any]) -> Network:
    """A network from what GraphModule pickles, which makes a GraphModule."""
    plain = make(*args)
    network = Network(plain, plain.graph, type(plain).__name__)
    vars(network).update({name: value for name, value in vars(plain).items() if name not in vars(network)})
    network = _with_hooks(network, hooks)
    return copy.deepcopy(network) if torch.is_inference_mode_enabled() else network


def _hooks(network: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(network).items() if "_hook" in name}


def _with_hooks(network: Any, hooks: dict[str, Any]) -> Any:
    vars(network).update(hooks)
    return network


class Plans:
    """The plans of a network for as long as it stays as it is; copies of the network make their own."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.ways: dict[Any, Callable[..., Any]] = {}  # that calls went which were not recorded yet
        self.plans: dict[Any, Plan | None] = {}
        self.arena = Arena()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def run(self, network: Network, call: Callable[..., Any], args: tuple[Tensor, ...]) -> Any:
        """What ``call``, the network's own, returns for the arguments."""
        if not self.state.is_known or self.state.needs_gradients():
            return call(*args)
        key = (
            requested.get(),
            torch._C._get_mkldnn_enabled(),
            torch.get_num_threads(),
            *[(x.shape, x.stride(), x.dtype) for x in args],
        )
        if plan := self.plans.get(key):
            return plan(self.arena, *args) if plan.was_reported() else call(*args)
        if key not in self.plans and self._can_tell_apart(args) and (way := self.ways.pop(key, None)):
            self.plans[key] = None  # until there is one
            result, self.plans[key] = record(way, args)
            return result
        if len(self.plans) + len(self.ways) < _KEPT and key not in self.plans:
            result, self.ways[key] = _first_call(network, call, args)
            return result
        return call(*args)

    def _can_tell_apart(self, args: tuple[Tensor, ...]) -> bool:
        """Whether a record says which argument an operator was given: none is another one, or the network's own."""
        ids = {*map(id, args)}
        return len(ids) == len(args) and ids.isdisjoint(map(id, self.state.tensors))


def _first_call(
    network: fx.GraphModule, call: Callable[..., Any], args: tuple[Tensor, ...]
) -> tuple[Any, Callable[..., Any]]:
    """What a network returns, and what gives the same sooner, whose weights are packed: itself, or in slices."""
    if not any(x.dim() > 0 and len(x) > 1 for x in args):
        return call(*args), call
    sizes = Sizes(network)
    result = sizes.run(*args)
    if not (parts := sizes.parts()):
        return result, call
    way = InSlices(network, parts).run
    way(*args)
    return result, way


class State:
    """What calls of a network depend on, beside their inputs.

    Attributes:
        is_known: whether operators are all that a call does.
    """

    def __init__(self, network: nn.Module) -> None:
        modules = list(network.modules())
        self.graphs = [type(module) for module in modules if isinstance(module, fx.GraphModule)]
        # Layers on packed weights do the same in both modes, but for PrecisionGateConv2d, which `_is_known` refuses.
        self.leaves = [module for module in modules if not module._modules and not isinstance(module, Packs)]
        self.packs = [module for module in modules if isinstance(module, Packs)]
        self.attributes = [vars(module) for module in modules]
        self.hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.hooks += [nn_module._global_forward_hooks, nn_module._global_forward_pre_hooks]
        self.holders: list[dict[str, Any]] = [
            held for m in modules for held in (m._parameters, m._buffers, m._modules) if held
        ]
        self.held = self._held()  # kept, so that no other object gets the id of one of them
        tensors = [t for t in self.held if isinstance(t, Tensor)]
        self.tensors = [t for t in tensors if type(t) in (Tensor, nn.Parameter) and t.layout == torch.strided]
        self.versioned = [t for t in self.tensors if not t.is_inference()]
        self.memory = [t.untyped_storage() for t in self.tensors]  # kept too: an address may become another tensor's
        self.marks = self._marks()
        self.hooks_made = RemovableHandle.next_id
        self.forgotten, self.all_forgotten = self._forgotten(), Packs.all_forgotten
        self.is_known = not any(self.hooks) and all(map(_is_known, modules)) and len(self.versioned) == len(tensors)

    def lasts(self) -> bool:
        """Whether all is as it was."""
        held = self._held()
        is_held = len(held) == len(self.held) and all(map(operator.is_, held, self.held))
        return is_held and self._marks() == self.marks and not self._has_new_hooks() and self._has_packs()

    def _has_new_hooks(self) -> bool:
        """Whether one of the hooks that were made since, by anyone, is on these modules."""
        if RemovableHandle.next_id != self.hooks_made:
            if any(self.hooks):
                return True
            self.hooks_made = RemovableHandle.next_id
        return False

    def _has_packs(self) -> bool:
        """Whether none of the layers that forgot their packs since is one of these."""
        if Packs.all_forgotten != self.all_forgotten:
            if self._forgotten() != self.forgotten:
                return False
            self.all_forgotten = Packs.all_forgotten
        return True

    def _forgotten(self) -> list[int]:
        return [layer._forgotten for layer in self.packs]

    def needs_gradients(self) -> bool:
        """Whether a call has to record gradients of parameters."""
        return torch.is_grad_enabled() and any(map(_REQUIRES_GRAD, self.tensors))

    def _held(self) -> list[Any]:
        """Parameters, buffers, modules and the functions of graphs."""
        return [*chain.from_iterable(map(dict.values, self.holders)), *[graph.forward for graph in self.graphs]]

    def _marks(self) -> tuple[Any, ...]:
        """What changes where these do not."""
        pointers, versions = map(Tensor.data_ptr, self.tensors), map(_VERSION, self.versioned)
        has_own = ["forward" in attributes for attributes in self.attributes]
        return list(pointers), list(versions), list(map(_TRAINING, self.leaves)), has_own


_REQUIRES_GRAD, _VERSION, _TRAINING = map(operator.attrgetter, ("requires_grad", "_version", "training"))
_UNSEEN = "tolist", "numpy", "tensor_split"  # read numbers past all operators


def _is_known(module: nn.Module) -> bool:
    if "_network" in vars(module) or "forward" in vars(module):  # parameters that are not among these, other code
        return False
    if isinstance(module, PrecisionGateConv2d):  # tells the density of each call
        return False
    if isinstance(module, fx.GraphModule):
        if any(getattr(node.target, "__name__", node.target) in _UNSEEN for node in module.graph.nodes):
            return False
        functions = [node.target for node in module.graph.nodes if node.op == "call_function"]
        return all(_package(f) in ("torch", "_operator", "math", "builtins", "fastnets") for f in functions)
    return type(module).__module__.startswith(("torch.nn.", "fastnets."))


def _package(function: Any) -> str:
    return (getattr(function, "__module__", None) or "torch").partition(".")[0]  # torch.cat says None


# ---- recording -------------------------------------------------------------------------------


def record(call: Callable[..., Any], args: tuple[Tensor, ...]) -> tuple[Any, Plan | None]:
    """What a call returns, and its plan; None where numbers may decide what runs, or an op runs its reference."""
    uncounted = _calls_of_references()
    with untuned(), looked_on(recorder := Recorder(args)):  # a plan is made of our kernels
        result = call(*args)
    tags = {tag for op in recorder.operators for tag in op.tags}
    if not recorder.is_whole or torch.Tag.dynamic_output_shape in tags:
        return result, None
    if uncounted != _calls_of_references() or not _is_simple(result):
        return result, None
    names = Counter(op._opname for op in recorder.operators if op.namespace == "fastnets_cpu")
    counts = [(OPS[name].implementations["cpu"], n) for name, n in names.items()]
    try:
        return result, Plan(*recorder.program(result), counts)
    # The call has its result, whatever operators there are that a plan cannot have.
    except Exception:  # noqa: BLE001
        return result, None


def _is_simple(result: Any) -> bool:
    if type(result) in (tuple, list, dict):
        return all(map(_is_simple, result.values() if isinstance(result, dict) else result))
    return result is None or type(result) is Tensor or isinstance(result, int | float | str)


def _calls_of_references() -> int:
    return sum(op.implementations["reference"].calls for op in OPS.values())


class Plan:
    """What a call ran.

    Args:
        program: takes places for the results in between and the call's arguments, and returns the call's result.
        layout: of those places.
        counts: how often each of our kernels runs in it.
    """

    def __init__(self, program: Callable[..., Any], layout: Layout, counts: list[tuple[Implementation, int]]) -> None:
        self.program = program
        self.layout = layout
        self.counts = counts

    def __call__(self, arena: Arena, *args: Tensor) -> Any:
        for implementation, n in self.counts:
            implementation.calls += n
        return self.program(arena.results_of(self.layout), *args)

    def was_reported(self) -> bool:
        """Whether ``backend_report`` knows why no other backend ran: ops say so at their first call after a reset."""
        return all(implementation.calls for implementation, _ in self.counts)

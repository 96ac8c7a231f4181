"""What all ops share: registration, the choice of a backend, and the record of what ran.

The choice is made inside the device implementation, on real tensors, so that no tracer ever
sees it: a compiled or exported graph holds ``fastnets::<op>`` and nothing of this file.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.utils._python_dispatch import TorchDispatchMode

from fastnets._backends import BACKENDS, named, requested, use_backend
from fastnets._tuning import current, from_environment, ignored

_library = torch.library.Library("fastnets", "DEF")
# Where the compiled kernels register themselves, under the schemas that are given here.
native_libraries = {name: torch.library.Library(f"fastnets_{name}", "FRAGMENT") for name in ("cpu", "cuda")}

OPS: dict[str, Op] = {}


class Implementation:
    """One op on one backend.

    Attributes:
        name: of the backend.
        fn: takes the arguments of the schema.
        why_not: takes them too; every reason to decline the call. None: it never does.
        validates: whether ``fn`` itself raises on arguments that the op's check refuses.
        calls: how often it ran.
    """

    def __init__(
        self, name: str, fn: Callable[..., Any], why_not: Callable[..., list[str]] | None, validates: bool
    ) -> None:
        self.name = name
        self.fn = fn
        self.why_not = why_not
        self.validates = validates
        self.calls = 0

    def reasons(self, args: tuple[Any, ...]) -> list[str]:
        """Every reason why it cannot run this call; an empty list means that it can."""
        reasons = BACKENDS[self.name].why_not(args[0].device.type)
        return reasons + self.why_not(*args) if self.why_not else reasons


class Op:
    """A PyTorch operator ``fastnets::<name>`` with several implementations.

    Args:
        schema: the operator's schema; its leading arguments are the tensors, the first of which
            decides the device.
        check: raises if the arguments, those of the schema, are not valid.
        autocast: whether autocast casts its tensors, as it does for ``F.conv2d``.
    """

    def __init__(self, schema: str, check: Callable[..., Any], *, autocast: bool = False) -> None:
        self.name = schema.partition("(")[0]
        self.schema = schema
        _library.define(schema)
        _library.impl(self.name, self.run, "CompositeExplicitAutograd")
        if autocast:
            for device in ("CPU", "CUDA"):
                _library.impl(self.name, self._autocast(device), f"Autocast{device}")
        self.torch_op = getattr(torch.ops.fastnets, self.name).default
        self.tensors = sum("Tensor" in str(a.type) for a in self.torch_op._schema.arguments)
        self.check = check
        self.implementations: dict[str, Implementation] = {}
        self.automatic: dict[str, list[Implementation]] = {}
        self.declined: dict[str, list[str]] = {}
        self.differentiable: Callable[..., Any] | None = None
        self.transformable: Callable[..., Any] | None = None
        OPS[self.name] = self

    def backend(
        self, name: str, why_not: Callable[..., list[str]] | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Registers the decorated function, which takes the schema's arguments, as a backend's."""

        def register(fn: Callable[..., Any]) -> Callable[..., Any]:
            self.implementations[name] = Implementation(name, fn, why_not, validates=False)
            return fn

        return register

    def native(self, name: str, why_not: Callable[..., list[str]] | None = None) -> None:
        """Registers the C++ operator ``fastnets_<backend>::<name>``, of the same schema, as a backend's.

        The compiled library holds only its kernel: the schema is declared here.
        """
        native_libraries[name].define(self.schema)

        def first_call(*args: Any) -> Any:  # only now is the library loaded
            operator = getattr(getattr(torch.ops, f"fastnets_{name}"), self.name).default
            self.implementations[name].fn = operator._op  # which operator would call from one more frame of Python
            return operator(*args)

        self.implementations[name] = Implementation(name, first_call, why_not, validates=True)

    def fake(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Registers the decorated function as what tracing sees: shapes, types and strides."""

        def checked(*args: Any) -> Any:
            self.check(*args)
            return fn(*args)

        torch.library.register_fake(f"fastnets::{self.name}", checked, lib=_library)
        return fn

    def autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """Registers the gradient, which runs on the backend that was asked for when the op was called.

        See ``torch.library.register_autograd`` for the two functions.
        """

        def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.backend = requested.get()
            setup_context(ctx, inputs, output)

        def on_same_backend(ctx: Any, *grads: Any) -> Any:
            with use_backend(ctx.backend):  # autograd may call this after the block, and from a thread of its own
                return backward(ctx, *grads)

        torch.library.register_autograd(f"fastnets::{self.name}", on_same_backend, setup_context=setup, lib=_library)

        # What PyTorch makes of these two costs 100 µs a step, and knows no transform (torch.func.grad, vmap).
        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                output = self.run(*args)
                setup(ctx, args, output)
                return output

            backward = staticmethod(on_same_backend)

        class Transformable(torch.autograd.Function):  # 10 µs slower
            generate_vmap_rule = True
            forward = staticmethod(self.torch_op)
            setup_context = staticmethod(setup)
            backward = staticmethod(on_same_backend)

        self.differentiable, self.transformable = Function.apply, Transformable.apply

    def __call__(self, *args: Any) -> Any:
        """Calls the operator with the arguments of its schema, by the shortest way that is right."""
        if is_dynamo_compiling():  # first, as it cannot trace what follows
            return self._traced(*args)
        if forward_ad._current_level >= 0:
            self._refuse_tangents(args)
        # A call that nothing listens to (mode, transform, tracer, autocast) skips PyTorch's
        # dispatcher, which would cost 4 µs to arrive at this same line.
        if nothing_listens():
            needs = _needs(args[: self.tensors])
            if needs == "nothing":
                return self.run(*args)
            if needs == "gradient" and self.differentiable and _excluded().raw_repr() in _PLAIN_EXCLUDED:
                return self.differentiable(*args)
        elif torch.compiler.is_compiling():
            return self._traced(*args)
        elif self.transformable and torch._C._are_functorch_transforms_active():
            return self.transformable(*args)
        elif torch.onnx.is_in_onnx_export():  # the exporter before torch.export, which traces
            return self._for_onnx(*args)
        return self.torch_op(*args)

    def _traced(self, *args: Any) -> Any:
        if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
            return self._for_onnx(*args)
        return self.torch_op(*args)

    def _for_onnx(self, *args: Any) -> Any:
        """ONNX has no fastnets operators: an exported network is made of standard ones."""
        self.check(*args)
        return self.implementations["reference"].fn(*args)

    def _refuse_tangents(self, args: tuple[Any, ...]) -> None:
        """Raises where PyTorch would give a derivative of zero: it takes that of an operator without one."""
        if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in args[: self.tensors]):
            raise NotImplementedError(
                f"{self.name} has no derivative in forward mode (torch.func.jvp, torch.autograd.forward_ad); "
                "it has one in reverse mode (torch.func.vjp, torch.func.jacrev)"
            )

    def run(self, *args: Any) -> Any:
        """The implementation on real tensors: choose a backend, check, record, call."""
        chosen = self._choose(args)
        if not chosen.validates:
            self.check(*args)
        chosen.calls += 1
        try:
            return chosen.fn(*args)
        except RuntimeError as error:
            self.check(*args)  # whose message is that of every backend
            if chosen.validates and type(error) is RuntimeError:
                raise RuntimeError(f"{self.name}: {_in_words(error)}") from error
            raise

    def _choose(self, args: tuple[Any, ...]) -> Implementation:
        if name := requested.get():
            chosen = self.implementations[named(name, "FASTNETS_BACKEND")]
            if reasons := chosen.reasons(args):
                raise RuntimeError(f"{self.name} cannot run on backend {name!r}: " + "; ".join(reasons))
            return chosen
        device = "cpu" if args[0].is_cpu else args[0].device.type
        if device not in self.automatic:
            from_environment()
            here = [name for name, backend in BACKENDS.items() if backend.is_automatic(device)]
            self.automatic[device] = [self.implementations[name] for name in here if name in self.implementations]
        candidates, table, tuned = self.automatic[device], current.table, None
        if table is not None and not ignored.get() and (tuned := table.choice(self, args)):
            candidates = sorted(candidates, key=lambda i: i.name != tuned)
        for chosen in candidates:
            if chosen.why_not is None or not chosen.why_not(*args):
                break
        if chosen.calls == 0:
            self._explain(args, chosen, "was the fastest when tuned" if chosen.name == tuned else "comes first")
        return chosen

    def _explain(self, args: tuple[Any, ...], chosen: Implementation, why: str) -> None:
        for other in self.implementations.values():
            if other is not chosen:
                self.declined[other.name] = other.reasons(args) or [f"{chosen.name} {why}"]

    def _autocast(self, device: str) -> Callable[..., Any]:
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))
        device = device.lower()

        def cast(arg: Any, dtype: torch.dtype) -> Any:
            # The rule of F.conv2d: every floating tensor of the device, but float64.
            eligible = isinstance(arg, Tensor) and arg.is_floating_point() and arg.device.type == device
            return arg.to(dtype) if eligible and arg.dtype != torch.float64 else arg

        def kernel(*args: Any) -> Any:
            dtype = torch.get_autocast_dtype(device)
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return self.torch_op(*(cast(arg, dtype) for arg in args))

        return kernel


def _in_words(error: RuntimeError) -> str:
    """What C++ says, without its place in the source, or where PyTorch's C interface passed no words on, a guess."""
    if "API call failed" in str(error):
        return "the kernel failed, probably for want of memory"
    return re.sub(r"^\w+, \S+:\d+, ", "", str(error))


# This thread's dispatch keys, beside those of tensors. Modes, transforms and tracers show in the included ones, and below
# autograd, where nothing is recorded, some are excluded.
_included, _excluded = torch._C._dispatch_tls_local_include_set, torch._C._dispatch_tls_local_exclude_set
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled


def _plain_keys() -> tuple[set[int], set[int]]:
    with torch.inference_mode(False):
        included, excluded = {_included().raw_repr()}, {_excluded().raw_repr()}
    with torch.inference_mode():
        return included | {_included().raw_repr()}, excluded


_PLAIN_INCLUDED, _PLAIN_EXCLUDED = _plain_keys()


_onlooker = threading.local()


@contextlib.contextmanager
def looked_on(mode: TorchDispatchMode) -> Iterator[None]:
    """Calls in this block go by the same ways as without the mode, which sees what they run but changes nothing."""
    with mode:
        _onlooker.keys = _included().raw_repr()
        try:
            yield
        finally:
            del _onlooker.keys


def nothing_listens() -> bool:
    """Whether no mode, transform, tracer or autocast sees what is called."""
    keys = _included().raw_repr()
    quiet = keys in _PLAIN_INCLUDED or keys == getattr(_onlooker, "keys", None)
    return quiet and not _is_any_autocast_enabled()


def _needs(tensors: tuple[Tensor | None, ...]) -> str:
    """What a call on these tensors needs: "nothing", a "gradient", or the "dispatcher" itself."""
    needs, records = "nothing", torch.is_grad_enabled()
    for t in tensors:
        if t is None:
            continue
        if type(t) is not Tensor and type(t) is not torch.nn.Parameter:
            return "dispatcher"
        # No data, or a lazy conjugate or negative, which only the dispatcher writes out for a kernel.
        if t.is_meta or t.is_neg() or t.is_conj():
            return "dispatcher"
        if records and t.requires_grad:
            needs = "gradient"
    return needs


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors computes numbers and nothing else: no mode, transform, tracer or gradient."""
    return nothing_listens() and _needs(tensors) == "nothing"


class Report(dict[str, dict[str, Any]]):
    """For each op that ran: ``calls``, a count per backend, and ``declined``, the others' reasons."""

    def __str__(self) -> str:
        lines = []
        for op, entry in self.items():
            ran = ", ".join(f"{name} {count}" for name, count in entry["calls"].items())
            lines.append(f"{op}: {ran}")
            lines += [f"  not {name}: {'; '.join(reasons)}" for name, reasons in entry["declined"].items()]
        return "\n".join(lines) or "no op has run"


def backend_report(*, reset: bool = False) -> Report:
    """Says which backends ran since the start (or the last reset), how often, and why others did not.

    Args:
        reset: whether to begin counting anew after this report.

    Returns:
        A dict ``{op: {"calls": {backend: count}, "declined": {backend: [reason, ...]}}}`` of the ops
        that ran; printing it gives readable lines.

    Example:
        >>> import torch, fastnets
        >>> _ = fastnets.backend_report(reset=True)
        >>> with fastnets.use_backend("reference"):
        ...     _ = fastnets.ops.depthwise_conv2d(torch.ones(1, 2, 3, 3), torch.ones(2, 1, 3, 3))
        >>> print(fastnets.backend_report())
        depthwise_conv2d: reference 1
    """
    report = Report()
    for op in OPS.values():
        calls = {i.name: i.calls for i in op.implementations.values() if i.calls}
        if calls:
            declined = {n: r for n, r in op.declined.items() if n not in calls}
            report[op.name] = {"calls": calls, "declined": declined}
        if reset:
            op.declined.clear()
            for implementation in op.implementations.values():
                implementation.calls = 0
    return report

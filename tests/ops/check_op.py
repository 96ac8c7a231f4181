"""The contract of an op (CONTRIBUTING.md), checked for one op, one case and one backend.

A result is judged against the reference in float64, element by element, by the rounding that its sum can have at most:
a few units of the result's type, and of the type of the sum times the sum of the magnitudes of its terms. That second
figure is the op itself on absolute values, so no tolerance is picked by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import fastnets
from fastnets._backends import INTERPRETED

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}
SUM = {dtype: torch.float64 if dtype == torch.float64 else torch.float32 for dtype in DTYPES}


@dataclass
class Case:
    """A call: float64 tensors, the others' arguments, and how many terms the longest sum has.

    ``magnitudes`` gives for the same arguments those of the call whose result bounds the sum's terms.
    """

    name: str
    fn: Callable[..., Tensor]
    tensors: list[Tensor | None]
    kwargs: dict[str, Any] = field(default_factory=dict)
    terms: int = 1
    magnitude_kwargs: dict[str, Any] | None = None

    def __str__(self) -> str:
        return self.name

    def cast(self, dtype: torch.dtype) -> list[Tensor | None]:
        return [None if t is None else t.to(dtype) for t in self.tensors]


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that an op allocates starts as NaN: an element that is not written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same numbers (n, c, h, w) in every kind of memory layout."""
    n, c, h, w = x.shape
    wide = torch.full((n, c + 3, h, w), math.nan, dtype=x.dtype).contiguous(memory_format=torch.channels_last)
    wide[:, 1 : c + 1] = x
    sparse = torch.full((n, c, h, 2 * w), math.nan, dtype=x.dtype)
    sparse[..., ::2] = x
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "channel slice of channels_last": wide[:, 1 : c + 1],
        "every second column": sparse[..., ::2],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }


def run(case: Case, tensors: list[Tensor | None], dy: Tensor | None = None) -> list[Tensor | None]:
    """The result and, given its gradient, the gradients of all tensors."""
    leaves = [None if t is None else t.detach().requires_grad_(dy is not None) for t in tensors]
    y = case.fn(*leaves, **case.kwargs)
    if dy is None:
        return [y]
    grads = iter(torch.autograd.grad(y, [t for t in leaves if t is not None], dy))
    return [y.detach(), *(None if t is None else next(grads) for t in leaves)]


def oracle(case: Case, tensors: list[Tensor | None], dy: Tensor | None) -> tuple[list, list]:
    """Result and gradients in float64 on the reference, and the sums of magnitudes of their terms."""
    exact = [None if t is None else t.double().contiguous() for t in tensors]
    absolute = Case("", case.fn, [], {**case.kwargs, **(case.magnitude_kwargs or {})})
    with fastnets.use_backend("reference"):
        values = run(case, exact, None if dy is None else dy.double())
        sizes = run(
            absolute, [None if t is None else t.abs() for t in exact], None if dy is None else dy.double().abs()
        )
    return values, sizes


def assert_close(case: Case, got: list, values: list, sizes: list, dtype: torch.dtype, what: str) -> None:
    names = ["result", *(f"gradient {i}" for i in range(len(got) - 1))]
    for name, g, value, size in zip(names, got, values, sizes, strict=True):
        if g is None:
            continue
        assert g.shape == value.shape and g.dtype == dtype, f"{case}, {what}: {name} is {g.dtype} {tuple(g.shape)}"
        # Gradients add rounding of an activation's slope, and results that of the activation: a few units each.
        bound = 8 * EPS[dtype] * value.abs() + (2 * math.sqrt(case.terms) + 6) * EPS[SUM[dtype]] * size
        if case.kwargs.get("activation"):
            bound = bound + 8 * EPS[dtype] * size
        bound = bound + 4 * torch.finfo(dtype).smallest_normal
        error = (g.double() - value).abs()
        assert (error <= bound).all(), (
            f"{case}, {dtype}, {what}: {name} is off by {(error / bound).nan_to_num(math.inf).max():.3g} times the bound"
        )


def check_values(case: Case, dtype: torch.dtype) -> None:
    """Results and gradients, in every layout; inputs untouched, memory written, the same bits again."""
    tensors = case.cast(dtype)
    shape = case.fn(*(None if t is None else t.to("meta") for t in tensors), **case.kwargs).shape
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
    values, sizes = oracle(case, tensors, dy)
    for what, x in layouts(tensors[0]).items():
        inputs = [x, *tensors[1:]]
        copies = [None if t is None else t.clone() for t in inputs]
        with poisoned():
            got = run(case, inputs, dy)
        assert_close(case, got, values, sizes, dtype, what)
        meta = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device="meta")
        expected = case.fn(meta, *(None if t is None else t.to("meta") for t in tensors[1:]), **case.kwargs)
        assert got[0].stride() == expected.stride(), f"{case}, {what}: strides {got[0].stride()}"
        assert all(c is None or torch.equal(c, t) for c, t in zip(copies, inputs, strict=True)), (
            f"{case}: input changed"
        )
        again = got if INTERPRETED else run(case, inputs, dy)  # the interpreter knows one order of the programs
        assert all(a is None or torch.equal(a, g) for a, g in zip(again, got, strict=True)), (
            f"{case}: not deterministic"
        )


def check_gradients(case: Case) -> None:
    """float64 gradcheck and gradgradcheck; a gradient of stride 0; only the gradients asked for."""
    tensors = [None if t is None else t.detach().requires_grad_() for t in case.cast(torch.float64)]
    given = [t for t in tensors if t is not None]

    def call(*leaves: Tensor) -> Tensor:
        rest = iter(leaves)
        return case.fn(*(None if t is None else next(rest) for t in tensors), **case.kwargs)

    assert torch.autograd.gradcheck(call, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True)
    y = call(*given)
    expanded = torch.autograd.grad(y.sum(), given, retain_graph=True)
    full = torch.autograd.grad(y, given, torch.ones_like(y), retain_graph=True)
    for a, b in zip(expanded, full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for i, t in enumerate(given):
        alone = [u.detach().requires_grad_(i == j) for j, u in enumerate(given)]
        (only,) = torch.autograd.grad(call(*alone), [alone[i]], torch.ones_like(y))
        torch.testing.assert_close(only, full[i], rtol=1e-12, atol=1e-12)
        assert only.shape == t.shape


def check_tracing(case: Case, operators: list[tuple[Any, tuple[Any, ...]]]) -> None:
    """opcheck's four utilities on the operators; torch.compile and torch.export of the public function."""
    for operator, arguments in operators:
        torch.library.opcheck(operator, arguments)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(case.fn, backend=counter, fullgraph=True, dynamic=True)
    first, *others = case.cast(torch.float32)
    n, c, h, w = first.shape
    for size in ((n, c, h, w), (n + 1, c, h + 1, w + 2), (n + 3, c, h + 4, w + 1)):
        x = torch.randn(size)
        torch.testing.assert_close(compiled(x, *others, **case.kwargs), case.fn(x, *others, **case.kwargs))
    assert counter.frame_count <= 2, f"{case}: compiled {counter.frame_count} times for three sizes"
    exported = torch.export.export(_Module(case), (first,), strict=False)
    torch.testing.assert_close(exported.module()(first), case.fn(first, *others, **case.kwargs))


class _Module(torch.nn.Module):
    """The op with all but its first argument as parameters, as a network has it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.others = torch.nn.ParameterList(
            [torch.nn.Parameter(t) for t in case.cast(torch.float32)[1:] if t is not None]
        )

    def forward(self, x: Tensor) -> Tensor:
        others = iter(self.others)
        rest = [None if t is None else next(others) for t in self.case.tensors[1:]]
        return self.case.fn(x, *rest, **self.case.kwargs)


def check_onnx(case: Case, tmp_path: Any) -> None:
    """Exported with batch, height and width free it is standard ONNX, and ONNX Runtime gives the same numbers."""
    import onnxruntime

    x = case.cast(torch.float32)[0]
    axes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=8), 3: torch.export.Dim("w", min=8)}
    assert x is not None and min(x.shape[2:]) >= 8
    program = torch.onnx.export(_Module(case).eval(), (x,), dynamo=True, dynamic_shapes=(axes,), verbose=False)
    path = str(tmp_path / "op.onnx")
    program.save(path)
    assert {node.domain for node in program.model.graph} <= {"", "ai.onnx"}, "not standard ONNX"
    session = onnxruntime.InferenceSession(path)
    for size in (tuple(x.shape), (x.shape[0] + 2, x.shape[1], x.shape[2] + 3, x.shape[3] + 5)):
        y = torch.randn(size)
        (got,) = session.run(None, {session.get_inputs()[0].name: y.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), _Module(case)(y).detach(), rtol=1e-4, atol=1e-4)

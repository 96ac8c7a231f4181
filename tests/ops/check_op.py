"""The contract of an op (CONTRIBUTING.md), checked for one op, one case and one backend.

A result is judged against the reference in float64, element by element, by the rounding that its sum can have at most:
a few units of the result's type, and of the type of the sum times the sum of the magnitudes of its terms. That second
figure is the op itself on absolute values, so no tolerance is picked by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from walls import walled

import fastnets
from fastnets._backends import INTERPRETED, requested

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}
# What an integer tensor is surrounded with in the place of NaN.
POISON = {dtype: torch.iinfo(dtype).max for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)}
POISON[torch.bool] = True
SUM = {dtype: torch.float64 if dtype == torch.float64 else torch.float32 for dtype in DTYPES}


LAYOUTS = (torch.contiguous_format, torch.channels_last)


def in_types(
    name: str, cases: Iterable[Any], dtypes: Sequence[torch.dtype], each: Collection[str]
) -> pytest.MarkDecorator:
    """Runs a test for every case, under that name, in every dtype.

    Interpreted, where a program takes milliseconds, all cases run in the first type, and those that ``each`` names in
    the others: in a kernel a type is a conversion at load and store, a type of sums and a size of blocks.
    """
    pairs = [(c, t) for t in dtypes for c in cases if not INTERPRETED or t == dtypes[0] or str(c) in each]
    return pytest.mark.parametrize((name, "dtype"), pairs, ids=str)


in_both_layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=str)


@dataclass
class Case:
    """A call: its tensors (floating ones in float64), and the other arguments.

    Attributes:
        terms: how many terms the longest sum has.
        magnitude_kwargs: the arguments of the call on absolute values whose result bounds the sum's terms, where
            they differ from kwargs.
        magnitude_of_inputs: whether that call takes the inputs' absolute values, or, for an op that only selects or
            averages inputs, the inputs themselves.
        sums: whether results come in the type of sums (float32 of a 16-bit input).
        exact: whether results are numbers of the input, and so equal the reference bit for bit; gradients may be sums.
    """

    name: str
    fn: Callable[..., Any]
    tensors: list[Tensor | None]
    kwargs: dict[str, Any] = field(default_factory=dict)
    terms: int = 1
    magnitude_kwargs: dict[str, Any] | None = None
    magnitude_of_inputs: bool = True
    sums: bool = False
    exact: bool = False

    def __str__(self) -> str:
        return self.name

    def cast(self, dtype: torch.dtype) -> list[Tensor | None]:
        return [t.to(dtype) if t is not None and t.is_floating_point() else t for t in self.tensors]


def flat(results: Any) -> list[Tensor]:
    """The tensors that an op returned: one, or a tuple."""
    return [results] if isinstance(results, Tensor) else list(results)


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
    """The same numbers in every kind of memory layout; an image batch is (n, c, h, w)."""
    sparse = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), POISON.get(x.dtype, math.nan))
    sparse[..., ::2] = x
    several = {
        "contiguous": x.contiguous(),
        "every second of the last dimension": sparse[..., ::2],
        "transposed": x.mT.contiguous().mT if x.dim() > 1 else x.contiguous(),
    }
    if x.dim() == 4:
        n, c, h, w = x.shape
        wide = x.new_full((n, c + 3, h, w), POISON.get(x.dtype, math.nan)).contiguous(memory_format=torch.channels_last)
        wide[:, 1 : c + 1] = x
        several["channels_last"] = x.contiguous(memory_format=torch.channels_last)
        several["channel slice of channels_last"] = wide[:, 1 : c + 1]
    return several


def run(case: Case, tensors: list[Tensor | None], dy: list[Tensor] | None = None) -> tuple[list[Tensor], list]:
    """The results and, given their gradients, the gradients of all tensors."""
    leaves = [t if t is None else t.detach().requires_grad_(dy is not None and t.is_floating_point()) for t in tensors]
    results = flat(case.fn(*leaves, **case.kwargs))
    if dy is None:
        return results, []
    differentiable = [t for t in leaves if t is not None and t.requires_grad]
    grads = iter(torch.autograd.grad([y for y in results if y.requires_grad], differentiable, dy))
    gradients = [None if t is None or not t.requires_grad else next(grads) for t in leaves]
    return [y.detach() for y in results], gradients


def output_gradients(case: Case, tensors: list[Tensor | None]) -> list[Tensor] | None:
    """Random gradients of the results that have one; None where none has."""
    meta = [t if t is None else t.detach().to("meta").requires_grad_(t.is_floating_point()) for t in tensors]
    make = torch.Generator().manual_seed(7)
    results = [y for y in flat(case.fn(*meta, **case.kwargs)) if y.requires_grad]
    return [torch.randn(y.shape, generator=make, dtype=torch.float64).to(y.dtype) for y in results] or None


def oracle(case: Case, tensors: list[Tensor | None], dy: list[Tensor] | None) -> tuple[list, list]:
    """Results and gradients in float64 on the reference, and the sums of magnitudes of their terms."""
    absolute = Case("", case.fn, [], {**case.kwargs, **(case.magnitude_kwargs or {})})
    exact = [t.double().contiguous() if t is not None and t.is_floating_point() else t for t in tensors]
    sizes = [t.abs() if t is not None and t.is_floating_point() and case.magnitude_of_inputs else t for t in exact]
    with fastnets.use_backend("reference"):
        values, gradients = run(case, exact, dy and [d.double() for d in dy])
        value_sizes, gradient_sizes = run(absolute, sizes, dy and [d.double().abs() for d in dy])
    return values + gradients, value_sizes + gradient_sizes


def assert_close(case: Case, got: tuple[list, list], values: list, sizes: list, dtype: torch.dtype, what: str) -> None:
    results, gradients = got
    names = [f"result {i}" for i in range(len(results))] + [f"gradient {i}" for i in range(len(gradients))]
    for name, g, value, size in zip(names, results + gradients, values, sizes, strict=True):
        if g is None:
            continue
        if not g.is_floating_point():
            assert torch.equal(g, value), f"{case}, {what}: {name}"
            continue
        kind = SUM[dtype] if case.sums and name.startswith("result") else dtype
        assert g.shape == value.shape and g.dtype == kind, f"{case}, {what}: {name} is {g.dtype} {tuple(g.shape)}"
        # Gradients add rounding of an activation's slope, and results that of the activation: a few units each.
        bound = 8 * EPS[kind] * value.abs() + (2 * math.sqrt(case.terms) + 6) * EPS[SUM[dtype]] * size.abs()
        if case.kwargs.get("activation"):
            bound = bound + 8 * EPS[dtype] * size.abs()
        bound = bound + 4 * torch.finfo(dtype).smallest_normal
        error = (g.double() - value).abs()
        assert (error <= bound).all(), (
            f"{case}, {dtype}, {what}: {name} is off by {(error / bound).nan_to_num(math.inf).max():.3g} times the bound"
        )


def check_call(case: Case, tensors: list[Tensor | None], dtype: torch.dtype, what: str = "as given") -> None:
    """Results and gradients of one call, whose tensors are of that type."""
    dy = output_gradients(case, tensors)
    assert_close(case, run(case, tensors, dy), *oracle(case, tensors, dy), dtype, what)


def same(a: list, b: list) -> bool:
    return all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def check_values(case: Case, dtype: torch.dtype) -> None:
    """Results and gradients, in every layout; inputs untouched, what lies beside them unread, memory written, the same bits again."""
    tensors = case.cast(dtype)
    if not dtype.is_floating_point:  # an op that moves numbers of any type
        tensors = [None if t is None else _integers(t, dtype) for t in tensors]
    dy = output_gradients(case, tensors)
    if dtype.is_floating_point:
        values, sizes = oracle(case, tensors, dy)
    with fastnets.use_backend("reference"):
        exact = run(case, [None if t is None else t.contiguous() for t in tensors])[0]
    several = layouts(tensors[0])
    if INTERPRETED and dtype != torch.float32:  # strides are arguments; which lanes are neighbours is compiled in
        several = {what: several[what] for what in ("contiguous", "channels_last") if what in several}
    for what, x in several.items():
        inputs = walled([x, *tensors[1:]], "before")
        copies = [None if t is None else t.clone() for t in inputs]
        with poisoned():
            got = run(case, inputs, dy and walled(dy, "before"))
        if dtype.is_floating_point:
            assert_close(case, got, values, sizes, dtype, what)
        assert not case.exact or same(got[0], exact), f"{case}, {dtype}, {what}: not the reference bit for bit"
        meta = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device="meta")
        expected = flat(case.fn(meta, *(None if t is None else t.to("meta") for t in tensors[1:]), **case.kwargs))
        for y, fake in zip(got[0], expected, strict=True):
            assert y.shape == fake.shape and y.stride() == fake.stride() and y.dtype == fake.dtype, (
                f"{case}, {what}: {y.dtype} {tuple(y.shape)} strides {y.stride()}, but traced as "
                f"{fake.dtype} {tuple(fake.shape)} {fake.stride()}"
            )
        assert same(copies, inputs), f"{case}: input changed"
        if not INTERPRETED:  # the interpreter knows one order of the programs
            # PyTorch's sums may depend on where tensors begin: those of float64 do on a Zen 4.
            side = "before" if requested.get() == "reference" else "after"
            again = run(case, walled(inputs, side), dy and walled(dy, side))
            assert same(again[0], got[0]) and same(again[1], got[1]), f"{case}: not deterministic"


def _integers(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Different numbers of that type in place of random ones."""
    return (t * 100).to(torch.int64).to(dtype) if dtype != torch.bool else t > 0


def check_gradients(case: Case) -> None:
    """float64 gradcheck and gradgradcheck; a gradient of stride 0; only the gradients asked for."""
    tensors = [t if t is None else t.detach().requires_grad_(t.is_floating_point()) for t in case.cast(torch.float64)]
    given = [t for t in tensors if t is not None and t.requires_grad]

    def call(*leaves: Tensor) -> list[Tensor]:
        rest = iter(leaves)
        args = [next(rest) if t is not None and t.requires_grad else t for t in tensors]
        return [y for y in flat(case.fn(*args, **case.kwargs)) if y.requires_grad]

    def grad(leaves: list[Tensor], asked: list[Tensor], expanded: bool) -> tuple[Tensor, ...]:
        results = call(*leaves)
        ones = [torch.ones((), dtype=y.dtype).expand(y.shape) if expanded else torch.ones_like(y) for y in results]
        return torch.autograd.grad(results, asked, ones)

    assert torch.autograd.gradcheck(call, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True)
    full = grad(given, given, expanded=False)
    for a, b in zip(grad(given, given, expanded=True), full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for i, t in enumerate(given):
        alone = [u.detach().requires_grad_(i == j) for j, u in enumerate(given)]
        (only,) = grad(alone, [alone[i]], expanded=False)
        torch.testing.assert_close(only, full[i], rtol=1e-12, atol=1e-12)
        assert only.shape == t.shape


def other_sizes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Two more sizes for the same graph: another batch and, of images, another height and width."""
    n, *rest = shape
    if len(shape) != 4:
        return [(n + 1, *rest), (n + 3, *rest)]
    c, h, w = rest
    return [(n + 1, c, h + 1, w + 2), (n + 3, c, h + 4, w + 1)]


# opcheck's utilities that look at what a call returns, and those that look at graphs. A graph holds the operator,
# whichever backend will run it: the interpreter would repeat at length what the other run has done.
OF_RESULTS, OF_GRAPHS = ("test_schema", "test_faketensor"), ("test_autograd_registration", "test_aot_dispatch_dynamic")


def check_tracing(
    case: Case, operators: list[tuple[Any, tuple[Any, ...]]], sizes: list[tuple[int, ...]] | None = None
) -> None:
    """opcheck's four utilities on the operators; torch.compile and torch.export of the public function.

    ``sizes``: of the first tensor, in place of `other_sizes`, where some would not fit the others or the op.
    """
    for operator, arguments in operators:
        torch.library.opcheck(operator, arguments, test_utils=OF_RESULTS + (() if INTERPRETED else OF_GRAPHS))
    if INTERPRETED:
        return
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(case.fn, backend=counter, fullgraph=True, dynamic=True)
    first, *others = case.cast(torch.float32)
    for size in (tuple(first.shape), *(sizes or other_sizes(tuple(first.shape)))):
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


def check_onnx(case: Case, tmp_path: Path) -> list[Any]:
    """As a module it becomes standard ONNX; see `check_onnx_module`."""
    x = case.cast(torch.float32)[0]
    assert x is not None
    return check_onnx_module(_Module(case), x, tmp_path)


def check_onnx_module(module: torch.nn.Module, x: Tensor, tmp_path: Path, step: int = 1) -> list[Any]:
    """Exported with batch, height and width free it is standard ONNX, and ONNX Runtime gives the same numbers.

    ``step``: what height and width must be a multiple of. Returns the nodes of the graph.
    """
    axes = {0: torch.export.Dim("n")}
    more = (x.shape[0] + 2, *x.shape[1:])
    if x.dim() == 4:
        assert min(x.shape[2:]) >= 8
        axes |= {i: step * torch.export.Dim(name, min=8 // step) for i, name in ((2, "h"), (3, "w"))}
        more = (x.shape[0] + 2, x.shape[1], x.shape[2] + 3 * step, x.shape[3] + 5 * step)
    nodes, onnx = export_to_onnx(module, (x,), (axes,), tmp_path)
    for size in (tuple(x.shape), more):
        y = torch.randn(size)
        for a, b in zip(onnx(y), flat(module(y)), strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-4)
    return nodes


def export_to_onnx(
    module: torch.nn.Module, args: tuple[Tensor, ...], axes: tuple[dict[int, Any], ...], tmp_path: Path
) -> tuple[list[Any], Callable[..., list[Tensor]]]:
    """The nodes of its graph, which are of standard ONNX, and a function that runs it in ONNX Runtime.

    ``axes``: of each argument, the free ones.
    """
    import onnxruntime

    program = torch.onnx.export(module.eval(), args, dynamo=True, dynamic_shapes=axes, verbose=False)
    nodes = list(program.model.graph)
    assert {node.domain for node in nodes} <= {"", "ai.onnx"}, "not standard ONNX"
    path = tmp_path / "op.onnx"
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path))

    def run(*args: Tensor) -> list[Tensor]:
        inputs = {i.name: a.numpy() for i, a in zip(session.get_inputs(), args, strict=True)}
        return [torch.from_numpy(y) for y in session.run(None, inputs)]

    return nodes, run

"""Correct or not timed: the results of a candidate against those in float64, and on other inputs against these."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from types import FunctionType

import torch
from torch import Tensor

from benchmarks._candidate import Candidate, Local, WrongResult

# Largest error over the largest value. The longest sums here, of 4608 products in float32, are off by some 1e-6.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def check(name: str, candidate: Candidate, exact: Sequence[Tensor], tolerance: float | None = None) -> None:
    """Runs the candidate.

    Args:
        name: of the candidate.
        candidate: what runs.
        exact: what it should return, in float64.
        tolerance: the largest error over the largest value; that of its precision if not said.

    Raises:
        WrongResult: it returns something else.
    """
    try:
        got = candidate.result()
        if [t.shape for t in got] != [t.shape for t in exact]:
            raise WrongResult(f"returns shapes {[*map(_size, got)]}, not {[*map(_size, exact)]}")
        error = max((_error(g, e) for g, e in zip(got, exact, strict=True) if e.numel()), default=0.0)
        if not error <= (tolerance or TOLERANCE[candidate.precision]):  # true for NaN
            raise WrongResult(f"is wrong by {error:.1e} of the largest value")
    except WrongResult as wrong:
        raise WrongResult(f"{name} {wrong}, and is not timed") from None


def check_reads(name: str, candidate: Local, exact: Sequence[Tensor]) -> None:
    """Runs the candidate on other inputs: who hands out copies of a result that it has kept does not see them.

    Its inputs are all tensors that its function refers to, in functions within it too, but for those that hold what it
    should return.

    Args:
        name: of the candidate.
        candidate: what runs; its inputs are changed, and changed back.
        exact: what it should return, in float64.

    Raises:
        WrongResult: it returns the same as before.
    """
    tolerance = TOLERANCE[candidate.precision]
    inputs = {
        tensor.untyped_storage().data_ptr(): tensor  # each memory once
        for tensor in _referred_to(candidate.fn)
        if tensor.is_floating_point()
        and not any(tensor.shape == e.shape and _error(tensor, e) <= tolerance for e in exact)
    }
    before = candidate.result()
    _roll(inputs.values(), 1)
    try:
        after = candidate.result()
    finally:
        _roll(inputs.values(), -1)
    if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        raise WrongResult(f"{name} returns the same whatever its inputs are, and is not timed")


def _referred_to(thing: object) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from _referred_to(part)
    elif isinstance(thing, FunctionType):
        names = inspect.getclosurevars(thing)
        for part in (*names.nonlocals.values(), thing.__defaults__):
            yield from _referred_to(part)
        yield from (part for part in names.globals.values() if isinstance(part, Tensor))


def _roll(tensors: Iterable[Tensor], by: int) -> None:
    """Moves all numbers by so many places: no sum or order of them is left as it was, and none of them is lost."""
    for tensor in tensors:
        tensor.copy_(tensor.flatten().roll(by).view(tensor.shape))


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _error(got: Tensor, exact: Tensor) -> float:
    largest = exact.abs().max().clamp(min=1e-300)
    return ((got.double() - exact).abs().max() / largest).item()

"""Correct or not timed: the results of a candidate against those in float64."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from benchmarks._candidate import Candidate, WrongResult

# Largest error over the largest value. The longest sums here, of 4608 products in float32, are off by some 1e-6.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def check(name: str, candidate: Candidate, exact: Sequence[Tensor]) -> None:
    """Runs the candidate.

    Args:
        name: of the candidate.
        candidate: what runs.
        exact: what it should return, in float64.

    Raises:
        WrongResult: it returns something else.
    """
    try:
        got = candidate.result()
        if [t.shape for t in got] != [t.shape for t in exact]:
            raise WrongResult(f"returns shapes {[*map(_size, got)]}, not {[*map(_size, exact)]}")
        error = max((_error(g, e) for g, e in zip(got, exact, strict=True) if e.numel()), default=0.0)
        if not error <= TOLERANCE[candidate.precision]:  # true for NaN
            raise WrongResult(f"is wrong by {error:.1e} of the largest value")
    except WrongResult as wrong:
        raise WrongResult(f"{name} {wrong}, and is not timed") from None


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _error(got: Tensor, exact: Tensor) -> float:
    largest = exact.abs().max().clamp(min=1e-300)
    return ((got.double() - exact).abs().max() / largest).item()

"""The comparison of an accelerated copy with its model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# Of float results that differ by rounding alone, relative to the largest value.
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-10}


def prove(model: nn.Module, fast: nn.Module, example: tuple[Any, ...]) -> None:
    """Raises RuntimeError if the copy's results on the example are not the model's, but for rounding.

    Where results have 16 bits they are compared with the model's in float32, and the model itself, run in that type,
    says how large rounding is; four times that is allowed, as of two such roundings one may be twice the other by chance.
    """
    with torch.inference_mode():
        got = _tensors(fast(*cast(example, None)))
        low = next((t.dtype for t in got if t.is_floating_point() and t.dtype not in _ROUNDING), None)
        if low is None:
            expected = plain = _tensors(model(*cast(example, None)))
        else:
            expected, plain = (_tensors(copy.deepcopy(model).to(t)(*cast(example, t))) for t in (torch.float32, low))
    if len(expected) != len(got):
        raise RuntimeError(f"accelerate failed: {len(expected)} results became {len(got)}")
    for i, (e, p, g) in enumerate(zip(expected, plain, got, strict=True)):
        error, allowed = _difference(g, e), _ROUNDING.get(g.dtype, 0.0)
        if g.dtype == low:
            allowed = 4 * _difference(p, e) + torch.finfo(low).eps
        if not error <= allowed:
            raise RuntimeError(
                f"accelerate failed: on the example, result {i} differs from the model's by {error:.1e} of its largest "
                f"value, where rounding explains {allowed:.1e}"
            )


def _difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0
    a, b = a.double(), b.double()
    return ((a - b).abs().max() / b.abs().max()).item()


def _tensors(results: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(results) if isinstance(t, Tensor)]


def cast(example: tuple[Any, ...], dtype: torch.dtype | None) -> tuple[Any, ...]:
    """A copy of the example, for models that write into their inputs; floating tensors in that type, if any."""

    def one(t: Any) -> Any:
        return t.to(dtype if t.is_floating_point() else None, copy=True) if isinstance(t, Tensor) else t

    return pytree.tree_map(one, example)

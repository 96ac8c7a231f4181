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
    The same holds in float32, by float64, for a model that makes more of rounding than most.
    """
    with torch.inference_mode():
        plain = expected = results(model, example)
        try:
            got = results(fast, example)
        except Exception as raised:
            raise RuntimeError(f"accelerate failed: on the example, the copy raises {raised!r}") from raised
        if len(expected) != len(got):
            raise RuntimeError(f"accelerate failed: {len(expected)} results became {len(got)}")
        kinds = {t.dtype for t in got if t.is_floating_point()}
        low = next((kind for kind in kinds if kind not in _ROUNDING), None)
        if low is None and any(
            _difference(g, e) > _ROUNDING.get(g.dtype, 0) for g, e in zip(got, expected, strict=True)
        ):
            low = torch.float32
        if low is not None:
            high = torch.float64 if low == torch.float32 else torch.float32
            expected, plain = (results(copied(model).to(kind), example, kind) for kind in (high, low))
    for i, (e, p, g) in enumerate(zip(expected, plain, got, strict=True)):
        error, allowed = _difference(g, e), _ROUNDING.get(g.dtype, 0.0)
        if g.dtype == low:
            allowed = max(allowed, 4 * _difference(p, e) + torch.finfo(low).eps)
        if not error <= allowed:
            raise RuntimeError(
                f"accelerate failed: on the example, result {i} differs from the model's by {error:.1e} of its largest "
                f"value, where rounding explains {allowed:.1e}"
            )


def _difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    finite = b.isfinite()
    if not torch.isclose(a[~finite], b[~finite], equal_nan=True).all():
        return float("inf")
    a, b = a[finite], b[finite]
    if torch.equal(a, b):
        return 0.0
    return ((a - b).abs().max() / b.abs().max()).item()


def results(model: nn.Module, example: tuple[Any, ...], dtype: torch.dtype | None = None) -> list[Tensor]:
    """All tensors that a model makes of the example, in that type."""
    with torch.inference_mode():
        return [t for t in pytree.tree_leaves(model(*cast(example, dtype))) if isinstance(t, Tensor)]


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. Weights that weight_norm or pruning computes anew in each call, which PyTorch does not copy, are shared."""
    computed = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    return copy.deepcopy(model, {id(t): t.detach() for t in computed})


def cast(example: tuple[Any, ...], dtype: torch.dtype | None) -> tuple[Any, ...]:
    """A copy of the example, for models that write into their inputs; floating tensors in that type, if any."""

    def one(t: Any) -> Any:
        return t.to(dtype if t.is_floating_point() else None, copy=True) if isinstance(t, Tensor) else t

    return pytree.tree_map(one, example)

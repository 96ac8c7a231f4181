"""The comparison of an accelerated copy with its model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# Of float results that differ by rounding alone, relative to the largest value.
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-10}


def prove(model: nn.Module, fast: nn.Module, example: tuple[Any, ...], dtype: torch.dtype | None) -> None:
    """Raises RuntimeError if the copy's results on the example are not the model's, but for rounding.

    In 16 bits the model itself, run in that type, says how large rounding is; twice that is allowed.
    """
    with torch.inference_mode():
        expected, got = _tensors(model(*_copied(example))), _tensors(fast(*_copied(example)))
        kinds = {t.dtype for t in got if t.is_floating_point()}
        plain = None
        if not kinds <= _ROUNDING.keys():
            low = copy.deepcopy(model).to(dtype) if dtype is not None else model
            plain = _tensors(low(*_cast(example, dtype)))
    if len(expected) != len(got):
        raise RuntimeError(f"accelerate failed: {len(expected)} results became {len(got)}")
    for i, (e, g) in enumerate(zip(expected, got, strict=True)):
        error = _difference(g, e)
        allowed = (
            _ROUNDING.get(g.dtype, 0.0) if plain is None else 2 * _difference(plain[i], e) + torch.finfo(g.dtype).eps
        )
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


def _copied(example: tuple[Any, ...]) -> tuple[Any, ...]:
    return pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, example)


def _cast(example: tuple[Any, ...], dtype: torch.dtype | None) -> tuple[Any, ...]:
    return pytree.tree_map(lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, example)

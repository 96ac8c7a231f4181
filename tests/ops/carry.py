"""Lets the backends of GPUs run on CPU tensors when they are asked for by name: tensors go to the GPU and back.

So the tests of ops, which make their tensors and what they expect on the CPU, run unchanged on a GPU's kernels. The
CPU's twin of it is tests/cuda/emulate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastnets import _op
from fastnets._backends import BACKENDS

GPU_BACKENDS = ("cuda", "triton")
carried: list[str] = []  # the backend of every call that ran so, for the fixture `backend` to look at


def copy_to(t: Tensor, device: str) -> Tensor:
    """The same view of a copy of all its memory: strides, offset and what lies between stay as they are."""
    memory = torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage()).to(device, copy=True)
    empty = torch.empty(0, dtype=t.dtype, device=device)
    return empty.set_(memory.untyped_storage(), t.storage_offset(), t.size(), t.stride())


def carry(fn: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The function on a device: takes CPU tensors there and its results back; other calls it leaves as they are."""

    def there_and_back(*args: Any) -> Any:
        if not any(isinstance(a, Tensor) and a.is_cpu for a in args):
            return fn(*args)
        results = fn(*tree_map_only(Tensor, lambda t: copy_to(t, device), args))
        return tree_map_only(Tensor, lambda t: copy_to(t, "cpu"), results)

    return there_and_back


class Carried(_op.Implementation):
    """An implementation whose function is carried to a device; the function may be set anew, as the first call does."""

    def __init__(self, implementation: _op.Implementation, device: str) -> None:
        self.device = device
        super().__init__(**{k: vars(implementation)[k] for k in ("name", "fn", "why_not", "validates")})

    @property
    def fn(self) -> Callable[..., Any]:
        """The function, recorded and carried."""

        def recorded(*args: Any) -> Any:
            carried.append(self.name)
            return self._fn(*args)

        return carry(recorded, self.device)

    @fn.setter
    def fn(self, fn: Callable[..., Any]) -> None:
        self._fn = fn


@cache
def carry_to(device: str) -> None:
    """Carries every op's GPU backends to that device from now on."""
    for name in GPU_BACKENDS:
        BACKENDS[name].devices = {"cpu", "cuda"}
        for op in _op.OPS.values():
            if name in op.implementations:
                op.implementations[name] = Carried(op.implementations[name], device)

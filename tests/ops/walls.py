"""Memory that ends where a tensor does: a kernel that reads or writes beside its tensors is stopped by the processor."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fastnets._op import looked_on

PAGE = mmap.PAGESIZE
_protect = ctypes.CDLL(None, use_errno=True).mprotect
_protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def walled(tensors: Sequence[Tensor | None], side: str) -> list[Any]:
    """Copies of the same strides; a page that nobody may touch lies right "before" each or right "after" it."""
    return [t if t is None or t.numel() == 0 or not t.is_cpu else _between_walls(t, side) for t in tensors]


def _between_walls(t: Tensor, side: str) -> Tensor:
    count = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    length = -(-count * t.itemsize // PAGE) * PAGE
    pages = mmap.mmap(-1, PAGE + length + PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for wall in (start, start + PAGE + length):
        if _protect(wall, PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE if side == "before" else PAGE + length - count * t.itemsize
    copy = torch.frombuffer(pages, dtype=t.dtype, count=count, offset=offset)
    copy.copy_(t.detach().as_strided((count,), (1,)))  # with what lies between its numbers
    return copy.as_strided(t.shape, t.stride())


class _Walls(TorchDispatchMode):
    def __init__(self, side: str) -> None:
        super().__init__()
        self.side = side

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace != "fastnets_cpu":
            return func(*args, **(kwargs or {}))
        inside = tree_map_only(Tensor, lambda t: walled([t], self.side)[0], args)
        result = func(*inside)
        for given, copy, argument in zip(args, inside, func._schema.arguments[: len(args)], strict=True):
            if argument.is_write or argument.name == "into":  # of packed ops, which return what they are given
                given.copy_(copy)
                result = given if result is copy else result
        return result


@contextmanager
def walls(side: str) -> Iterator[None]:
    """Kernels of the CPU library get such copies of all their tensors in this block."""
    with looked_on(_Walls(side)):
        yield

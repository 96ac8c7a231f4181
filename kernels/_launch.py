"""What a launch of a kernel consists of, and the choices that every launcher makes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Launch(NamedTuple):
    """A kernel and all that its launch needs: made from sizes, strides and types alone, so also from meta tensors."""

    kernel: triton.JITFunction
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]

    def run(self) -> None:
        """Puts the kernel on the current stream of its first argument's device."""
        with torch.cuda.device_of(self.args[0]):
            self.kernel[self.grid](*self.args, **self.constants)


def index_type(*tensors: Tensor | None) -> tl.dtype:
    """The type of a kernel's offsets: 64 bits where a tensor's, or a count of its elements, may pass 31."""
    extents = [_extent(t) for t in tensors if t is not None]
    # A program's tile may begin below a tensor's end and pass it, by less than this.
    return tl.int64 if max(extents) >= 2**31 - 2**16 else tl.int32


def _extent(t: Tensor) -> int:
    return max(t.numel(), sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)))


def sum_type(t: Tensor) -> tl.dtype:
    """The type in which sums over t are taken."""
    return tl.float64 if t.dtype == torch.float64 else tl.float32

"""What layers whose products may be taken in int8 share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnets.ops import _int8
from fastnets.ops._int8 import Levels
from fastnets.ops._packed import cpu_kernels, is_image_like, pack_for_cpu, pack_int8


class InInt8:
    """A layer that multiplies in int8 where ``levels`` are set, of its input."""

    levels: Levels | None = None


class StoresBytes(InInt8):
    """Such a layer that stores bytes where ``result_levels`` are set too.

    An input, or a residual, of bytes is of ``levels``, or ``residual_levels``; who sets them sees to it that all who take
    what a layer stores know its levels.
    """

    residual_levels: Levels | None = None
    result_levels: Levels | None = None

    def _can_store(self, residual: Tensor | None, size: Sequence[int]) -> bool:
        """Whether the kernels add a residual to results of this size: it is of their type."""
        if residual is None or self.result_levels is None:
            return residual is None or is_image_like(residual, size, torch.float32)
        return self.residual_levels is not None and is_image_like(residual, size, torch.uint8)


def pack_linear(
    weight: Tensor, bias: Tensor | None, levels: Levels | None
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Panels and a bias for the CPU, and what the ops take as ``quantized``: in int8 where there are levels."""
    if levels is not None and weight.dtype == torch.float32:
        return pack_int8(weight, bias, levels)
    return *pack_for_cpu(weight, bias), []


def can_multiply(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels multiply such images, with such weights, in int8."""
    fits = x.is_cpu and x.dim() == 4 and x.numel() > 0 and weight.dtype == torch.float32
    fits = fits and (x.dtype == torch.float32 or (x.dtype == torch.uint8 and x.shape[1] % 4 == 0))
    return fits and x.is_contiguous(memory_format=torch.channels_last) and cpu_kernels()


def numbers(x: Tensor, levels: Levels | None) -> Tensor:
    """What bytes stand for; anything else as it is."""
    if x.dtype != torch.uint8:
        return x
    if levels is None:
        raise RuntimeError("expected a floating image, or the levels that its bytes are of")
    return _int8.numbers(x, levels.packed())

"""Numbers as bytes, for layers whose products are taken in int8.

Level q of 0 to 255 stands for (q - zero) step; a whole number stands for 0, so that padding is exact. Weights are whole
numbers of -127 to 127, with a step for each result. Sums of at most LONGEST products are exact, in 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOST = 255  # Levels::kMost in csrc/cpu/levels.h
LONGEST = (2**31 - 1) // (MOST * 127)


class Levels(NamedTuple):
    """Those of a tensor, of which level q stands for (q - zero) step."""

    step: float
    zero: int

    def packed(self) -> Tensor:
        """Inverse and zero, as the ops take them."""
        return torch.tensor([1 / self.step, self.zero])


def levels_between(low: float, high: float) -> Levels:
    """Levels that reach from low, or 0, to high, or 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / MOST or 1.0
    return Levels(step, round(-low / step))


def stored(results: Levels, residual: Levels | None) -> Tensor:
    """The ops' ``levels``: those of results, and of the residual, if there is one."""
    return torch.stack([results.packed(), (residual or results).packed()])


def quantize(x: Tensor, levels: Tensor) -> Tensor:
    """The levels of float32 numbers, or bytes, as float64, in which sums of their products are exact."""
    if x.dtype == torch.uint8:
        return x.double()
    inverse, zero = levels
    return ((x * inverse).nan_to_num(0.0).clamp(-zero, MOST - zero).round() + zero).double()


def numbers(x: Tensor, levels: Tensor) -> Tensor:
    """What bytes stand for."""
    inverse, zero = levels
    return (x.float() - zero) * (1 / inverse)


def scale(sums: Tensor, bias: Tensor | None, quantized: Sequence[Tensor]) -> Tensor:
    """Numbers of exact sums (n, o, h, w)."""
    y = sums.float() * quantized[0].view(-1, 1, 1)
    return y if bias is None else y + bias.view(-1, 1, 1)

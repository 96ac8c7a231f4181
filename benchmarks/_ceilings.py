"""What this machine can do at most, measured in the same run: bytes copied and operations a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache

import torch

from benchmarks._candidate import local

# Bytes that a copy reads and writes: in the first caches, in the last, far outside of them.
SETS = [1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28]
SIDE = 1024  # of the matrices: 2 · 1024³ operations a product
SECONDS = 0.5  # for each ceiling


@dataclass
class Ceilings:
    """The limits of a machine.

    Attributes:
        bandwidth: bytes that a copy reads and writes -> bytes a second.
        rate: type -> operations a second in a product of matrices.
    """

    bandwidth: dict[int, float]
    rate: dict[str, float]

    def floor(self, nbytes: float, flops: float, dtype: str = "float32") -> float:
        """The least seconds for so many bytes and operations: the larger of what either takes at its ceiling.

        The bandwidth is that of the copy whose size is nearest: what fits into a cache is measured there.
        """
        nearest = min(self.bandwidth, key=lambda size: abs(math.log(size / max(nbytes, 1))))
        return max(nbytes / self.bandwidth[nearest], flops / self.rate[dtype])

    def as_dict(self) -> dict[str, dict[str, float]]:
        """For the JSON."""
        return asdict(self)


@cache
def measure(quick: bool = False) -> Ceilings:
    """Measures once in a run; the best of many blocks counts, for a ceiling is what cannot be passed."""
    seconds = 0 if quick else SECONDS
    return Ceilings({size: size / _copy(size, seconds) for size in SETS}, _rates(seconds))


def _best(fn: Callable[[], object], lasting: float) -> float:
    candidate, end, seconds = local(lambda: (fn(),)), time.monotonic() + lasting, []
    while len(seconds) < 5 or time.monotonic() < end:
        seconds.append(candidate.block(max(1, int(5e-4 / seconds[-1])) if seconds else 1, 1))
    return min(seconds)


def _copy(size: int, lasting: float) -> float:
    x = torch.rand(size // 8)
    y = torch.empty_like(x)
    return _best(lambda: y.copy_(x), lasting)


def _rates(lasting: float) -> dict[str, float]:
    a, b = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    half_a, half_b = a.bfloat16(), b.bfloat16()
    bytes_a, bytes_b = ((t * 100).to(torch.int8) for t in (a, b))
    products = {
        "float32": lambda: a @ b,
        "bfloat16": lambda: half_a @ half_b,
        "int8": lambda: torch._int_mm(bytes_a, bytes_b),
    }
    return {dtype: 2 * SIDE**3 / _best(product, lasting) for dtype, product in products.items()}

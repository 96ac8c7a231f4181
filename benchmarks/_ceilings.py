"""What this machine can do at most, measured in the same run: bytes copied and operations a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks._candidate import local
from fastnets import accelerate
from fastnets.ops import precision_gate_conv2d

# Bytes that a copy reads and writes: in the first caches, in the last, far outside of them.
SETS = [1 << bits for bits in range(20, 29)]
SIDES = {256: (16, 16), 512: (16, 32), 1024: (32, 32)}  # of the matrices, and the pixels that make as many columns
SECONDS = 0.2  # for each of some 30 ways to reach a ceiling
LONG = 0.1  # seconds of a product after which no larger one is tried: it emulates its type


@dataclass
class Ceilings:
    """The limits of a machine.

    Attributes:
        bandwidth: bytes that a copy reads and writes -> bytes a second.
        rate: type -> operations a second in a product of matrices, the fastest of several; of a type for which the
            machine has no faster instructions, that in float32.
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
    while not seconds or time.monotonic() < end:
        seconds.append(candidate.block(max(1, int(5e-4 / seconds[-1])) if seconds else 1, 0))
    return min(seconds)


def _copy(size: int, lasting: float) -> float:
    x = torch.rand(size // 8)
    y = torch.empty_like(x)
    return _best(lambda: y.copy_(x), lasting)


@torch.no_grad()
def _rates(lasting: float) -> dict[str, float]:
    rates: dict[str, float] = {}
    for name, ways in WAYS.items():
        dtype, rates[name] = getattr(torch, name), 0.0
        for way in ways if torch.get_default_device().type == "cpu" else ways[:1]:
            for side in SIDES:
                seconds = _best(way(side, dtype), lasting)
                rates[name] = max(rates[name], 2 * side**3 / seconds)
                if seconds > LONG:
                    break
    return {name: max(rate, rates["float32"]) for name, rate in rates.items()}


Product = Callable[[], object]


def _matmul(side: int, dtype: torch.dtype) -> Product:
    a, b = (torch.rand(side, side).to(dtype) for _ in range(2))
    return lambda: a @ b


def _int_mm(side: int, dtype: torch.dtype) -> Product:
    a, b = ((torch.rand(side, side) * 100).to(dtype) for _ in range(2))
    return lambda: torch._int_mm(a, b)


def _pixels(side: int, channels: int) -> Tensor:
    return torch.rand(1, channels, *SIDES[side]).contiguous(memory_format=torch.channels_last)


def _convolution(side: int, dtype: torch.dtype) -> Product:
    """oneDNN's, 1x1."""
    conv = nn.Conv2d(side, side, 1).requires_grad_(False).to(dtype, memory_format=torch.channels_last)
    x = _pixels(side, side).to(dtype)
    return lambda: conv(x)


def _ours(side: int, dtype: torch.dtype) -> Product:
    layers = nn.Sequential(nn.Conv2d(side, side, 1), nn.ReLU()).eval().requires_grad_(False)
    fast, x = accelerate(layers, dtype=None if dtype == torch.float32 else dtype), _pixels(side, side)
    return lambda: fast(x)


def _ours_of_bytes(side: int, dtype: torch.dtype) -> Product:
    """With all gates open: two products of half as many channels."""
    x, w, opened = _pixels(side, side // 2), torch.rand(side, side // 2, 1, 1), torch.full((side,), -math.inf)
    return lambda: precision_gate_conv2d(x, w, opened, scale=1.0)


# The first runs everywhere; on a CPU the others have been up to twice as fast.
WAYS: dict[str, list[Callable[[int, torch.dtype], Product]]] = {
    "float32": [_matmul, _convolution, _ours],
    "bfloat16": [_matmul, _convolution, _ours],
    "int8": [_int_mm, _ours_of_bytes],
}

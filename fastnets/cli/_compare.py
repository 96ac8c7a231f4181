"""The same network in eager PyTorch and here: time and answer, side by side."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastnets.cli._network import Network
from fastnets.layers import Conv2d

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
WARM_UP, ROUNDS, SECONDS = 2, 20, 3.0
T = TypeVar("T")


class Eager:
    """A network in eager PyTorch, on ``torch.nn``'s own convolutions.

    Args:
        network: the one to compare with.
        layout: a key of ``FORMATS``, for the weights and the input.
    """

    def __init__(self, network: Network, layout: str) -> None:
        self.network = network
        self.layout = layout
        self.model = copy.deepcopy(network.plain).to(memory_format=FORMATS[layout])  # type: ignore[call-overload]
        for module in self.model.modules():
            if type(module) is Conv2d:
                module.__class__ = nn.Conv2d  # type: ignore[assignment]

    def input(self, pixels: Tensor) -> Tensor:
        """The network's input, already in its layout."""
        return self.network.input(pixels).contiguous(memory_format=FORMATS[self.layout])

    def run(self, x: Tensor) -> tuple[Tensor, float]:
        """The logits of ``x``, and the seconds they took."""
        return self.network.timed(self.model, x)


def faster_eager(network: Network, batch: int) -> Eager:
    """Eager PyTorch in the layout that is faster on this machine, for batches of ``batch`` photos."""
    size = network.info.input_size
    black = torch.zeros(batch, size, size, 3, dtype=torch.uint8)

    def seconds(eager: Eager) -> float:
        x = eager.input(black)
        return median(_repeat(lambda: eager.run(x)[1]))

    return min((Eager(network, layout) for layout in FORMATS), key=seconds)


@dataclass
class Comparison:
    """What one photo took and gave in both.

    Attributes:
        eager_ms: median time in eager PyTorch, in milliseconds; that of a batch is shared evenly.
        ms: the same here.
        ratio: median of the rounds' ratios, eager time by time here.
        difference: the largest absolute difference between the logits.
        agree: whether that is no more than the type's rounding explains.
        same_top: whether the five likeliest classes are the same, in the same order.
    """

    eager_ms: float
    ms: float
    ratio: float
    difference: float
    agree: bool
    same_top: bool


def compare(eager: Eager, pixels: Tensor) -> list[Comparison]:
    """Runs one batch through eager PyTorch and here, in alternation.

    Args:
        eager: the peer; ours is its network.
        pixels: uint8 (n, size, size, 3).

    Returns:
        n comparisons.
    """
    network = eager.network
    x, ours = eager.input(pixels), network.input(pixels)
    rounds = _repeat(lambda: (eager.run(x), network.timed(network.fast, ours)))
    seconds = [(e, s) for (_, e), (_, s) in rounds]
    (expected, _), (got, _) = rounds[-1]
    eager_ms = 1e3 * median(e for e, _ in seconds) / len(pixels)
    ms = 1e3 * median(s for _, s in seconds) / len(pixels)
    ratio = median(e / s for e, s in seconds)
    return [
        Comparison(eager_ms, ms, ratio, *_agreement(a, b, network.dtype)) for a, b in zip(expected, got, strict=True)
    ]


def _repeat(once: Callable[[], T]) -> list[T]:
    """What ``once`` gives, after a warm-up, in 20 rounds, or in as many as 3 seconds allow but at least 3."""
    for _ in range(WARM_UP):
        once()
    results: list[T] = []
    end = time.monotonic() + SECONDS
    while len(results) < 3 or (len(results) < ROUNDS and time.monotonic() < end):
        results.append(once())
    return results


def _agreement(expected: Tensor, got: Tensor, dtype: torch.dtype) -> tuple[float, bool, bool]:
    # 1e-3 in float32. In half precision, 16 roundings of the largest logit.
    tolerance = max(1e-3, 16 * torch.finfo(dtype).eps * expected.abs().max().item())
    difference = (expected.double() - got.double()).abs().max().item()
    same_top = torch.equal(expected.topk(5).indices, got.topk(5).indices)
    return difference, difference <= tolerance, same_top

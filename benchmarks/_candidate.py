"""A candidate of a race: run once for its result, run in blocks of calls for its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SETTLE = 0.01  # seconds in which work that a call left behind may end, before its memory is spoilt


class WrongResult(AssertionError):
    """A candidate does not compute what the case asks for, so it is not timed."""


@dataclass
class Missing:
    """A peer that cannot take part.

    Attributes:
        reason: why not, in a few words.
    """

    reason: str


class Candidate:
    """Something that computes in a process of its own or here.

    Attributes:
        precision: of its arithmetic. The ratio that counts is against the fastest of the precision of ours.
    """

    precision = "float32"

    def result(self) -> tuple[Tensor, ...]:
        """What a call has left in memory at the moment it returns."""
        raise NotImplementedError

    def block(self, calls: int, warm: float) -> float:
        """Seconds of one call, the mean of ``calls`` in a row after ``warm`` seconds of others."""
        raise NotImplementedError


class Local(Candidate):
    """A function of this process, on the CPU.

    Args:
        fn: takes nothing, returns a tuple of tensors.
        precision: see `Candidate`.
    """

    def __init__(self, fn: Callable[[], tuple[Tensor, ...]], precision: str = "float32") -> None:
        self.fn = fn
        self.precision = precision

    def result(self) -> tuple[Tensor, ...]:
        """What a call has left in memory at the moment it returns.

        The call before has its results spoilt. Whoever returns early, or returns what was computed before, hands out
        the spoilt numbers: in a buffer of its own, or in the same memory given out again.
        """
        before = self._tensors()
        time.sleep(SETTLE)
        for tensor in before:
            tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.bitwise_not_()
        del before, tensor
        return tuple(tensor.clone() for tensor in self._tensors())

    def _tensors(self) -> tuple[Tensor, ...]:
        results = self.fn()
        for result in results if isinstance(results, tuple | list) else [results]:
            if not isinstance(result, Tensor):
                raise WrongResult(f"returns {type(result).__name__}, not tensors")
        return tuple(results)

    def block(self, calls: int, warm: float) -> float:
        """Seconds of one call, the mean of ``calls`` in a row after ``warm`` seconds of others."""
        end = time.perf_counter() + warm
        while time.perf_counter() < end:
            result = self.fn()
        start = time.perf_counter()
        for _ in range(calls):
            result = self.fn()  # noqa: F841  as in a network: the result before is still there meanwhile
        return (time.perf_counter() - start) / calls


class OnGpu(Local):
    """The same on a GPU, timed by events there, as a CUDA graph where launching its kernels takes longer than they do.

    Written without a GPU: it has not run yet.
    """

    FLUSH = 2  # times the size of the second-level cache that is written between calls

    @torch.no_grad()
    def __init__(self, fn: Callable[[], tuple[Tensor, ...]], precision: str = "float32") -> None:
        super().__init__(_as_graph(fn) if _is_launch_bound(fn) else fn, precision)

    def block(self, calls: int, warm: float) -> float:
        """Seconds of one call whose inputs are no longer in the second-level cache."""
        size = torch.cuda.get_device_properties("cuda").L2_cache_size
        flush = torch.empty(self.FLUSH * size, dtype=torch.uint8, device="cuda")
        end = time.perf_counter() + warm
        while time.perf_counter() < end:
            self.fn()
            torch.cuda.synchronize()
        marks = []
        for _ in range(calls):
            flush.fill_(1)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.fn()
            end.record()
            marks.append((start, end))
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in marks) / 1e3 / calls


def _is_launch_bound(fn: Callable[[], object]) -> bool:
    """Whether the GPU has little left to do when a call returns."""
    fn()  # compiles
    torch.cuda.synchronize()
    start = time.perf_counter()
    fn()
    launched = time.perf_counter()
    torch.cuda.synchronize()
    return time.perf_counter() - launched < launched - start


def _as_graph(fn: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            results = fn()
    except RuntimeError:  # it waits for the GPU, or brings graphs of its own
        return fn

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return results

    return replay


def local(fn: Callable[[], tuple[Tensor, ...]], precision: str = "float32") -> Local:
    """The candidate for a function, on the device where tensors are made."""
    return (OnGpu if torch.get_default_device().type == "cuda" else Local)(fn, precision)

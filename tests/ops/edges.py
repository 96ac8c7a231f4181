"""What surrounds the numbers of a call: the error of a bad one, threads, memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from check_op import flat, same

from fastnets._backends import requested


def error_of(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[type[BaseException], str]:
    """Type and text of what a bad call raises."""
    with pytest.raises(Exception) as error:
        fn(*args, **kwargs)
    return type(error.value), str(error.value)


def check_refuses(op: Callable[..., Any], good: Sequence[Any], place: int, value: Any) -> None:
    """A kernel takes the good arguments, and with another value in one place says what it expected."""
    op(*good)
    with pytest.raises(RuntimeError, match="expected|positive|larger"):
        op(*good[:place], value, *good[place + 1 :])


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_thread_counts(fn: Callable[[], Any]) -> None:
    """One thread and several give the same bits."""
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(flat(fn()))
    assert same(results[0], results[1]) and same(results[0], results[2])


def check_at_once(calls: Sequence[Callable[[], Any]], rounds: int = 8) -> None:
    """Eight threads that call at once, in inference mode, each get what the call gives alone."""

    def in_inference_mode(call: Callable[[], Any]) -> list[torch.Tensor]:
        with torch.inference_mode():
            return flat(call())

    alone = [flat(call()) for call in calls]
    # A thread does not inherit use_backend.
    with ThreadPoolExecutor(8, initializer=requested.set, initargs=(requested.get(),)) as pool:
        for got, expected in zip(pool.map(in_inference_mode, [*calls] * rounds), alone * rounds, strict=True):
            assert same(got, expected)


def allocated(fn: Callable[[], Any]) -> int:
    """Bytes that a call allocates: of PyTorch's memory all together; of any other what it has at once.

    PyTorch's profiler counts the first to the byte. The second is what the process grows by, less a megabyte:
    what two threads may use for themselves, in their caches.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with threads(2):
        fn()  # what only the first call allocates
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
            fn()
        growth = min(_growth(fn) for _ in range(5))  # others may only add to it
    events = profiler.profiler.kineto_results.events()
    tensors = sum(e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0)
    return max(tensors, growth - (1 << 20))


def _growth(fn: Callable[[], Any]) -> int:
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory would serve the call, unseen
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # resets the peak
    before = _status("VmRSS")
    result = fn()  # noqa: F841
    return _status("VmHWM") - before


def _status(field: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) << 10


def need_memory(gigabytes: float) -> None:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of free memory, there are {free:.1f}")

"""What the tests of ops that only move data share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OTHERS = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64),
    *(torch.complex32, torch.complex64, torch.complex128, torch.float8_e4m3fn),
)
SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def of_type(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random bits as a type, and as another of that size whose numbers equal themselves and which PyTorch moves."""
    size = torch.empty((), dtype=dtype).element_size()
    other = SAME_SIZE[size]
    if size == 16:
        x = torch.randn(shape, dtype=other)
    elif dtype == torch.bool:
        x = torch.randint(0, 2, shape, dtype=other)
    else:
        x = torch.randint(torch.iinfo(other).min, torch.iinfo(other).max, shape, dtype=other)
    return x.view(dtype), x


def allocated(fn) -> int:
    """Bytes that were allocated on the CPU at once, at most, beyond those before."""
    from torch.profiler import ProfilerActivity, profile

    fn()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = fn()
    del result
    now = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def check_many_threads(fn, *args) -> None:
    """Calls from eight threads at once, in inference mode, all agree with one alone."""
    alone = fn(*args)
    alone = [alone] if isinstance(alone, Tensor) else list(alone)

    def call(_: int) -> bool:
        with torch.inference_mode():
            result = fn(*args)
        return all(map(torch.equal, [result] if isinstance(result, Tensor) else result, alone))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(64)))


def need_memory(gigabytes: float) -> None:
    import os

    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of free memory, there are {free:.1f}")

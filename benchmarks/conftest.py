"""A race: candidates take turns, the medians of paired ratios count, and a wrong result is not timed."""

from __future__ import annotations

import ctypes
import gc
import math
import sys
import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
from torch import Tensor

ROUNDS, BLOCK = 25, 8e-3  # rounds; seconds that a candidate runs in a row
UNCOUNTED = 2  # calls before the counted ones: the candidate before has left its own memory in the caches

# The C library gives large results back to the system and maps new pages for the next one, or does not, by heuristics
# that depend on what other candidates allocated. Here it keeps them, for all: no candidate is charged for page faults.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
if sys.platform == "linux":
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)

_rows: list[tuple[str, str, dict[str, float], float]] = []
_lines: dict[str, list[str]] = {}


def _relative_error(got: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    return max(((g.double() - e).norm() / e.norm()).item() for g, e in zip(got, exact, strict=True))


def _block(fn: Callable[[], object], calls: int) -> float:
    for _ in range(UNCOUNTED):
        result = fn()
    start = time.perf_counter()
    for _ in range(calls):
        result = fn()  # noqa: F841  as in a network: the result before is still there while this one is computed
    return (time.perf_counter() - start) / calls


@pytest.fixture
def race(request, benchmark):
    """Races functions of no arguments, ours under the name 'fastnets', and records the fastest peer's time over ours.

    Args:
        group: the cases over which the geometric mean is printed.
        name: of this case.
        candidates: name -> function that returns tensors.
        exact: what they should return, in float64.
    """

    def run(group: str, name: str, candidates: dict[str, Callable[[], tuple[Tensor, ...]]], exact) -> float:
        with torch.no_grad():
            for candidate, fn in candidates.items():
                error = _relative_error(fn(), exact)
                assert error < 1e-4, f"{candidate} is wrong by {error:.1e} and is not timed"
            for fn in candidates.values():
                _block(fn, 2)
            calls = {c: min(50, max(2, round(BLOCK / _block(fn, 2)))) for c, fn in candidates.items()}
            gc.disable()
            try:
                times: dict[str, list[float]] = {c: [] for c in candidates}
                for _ in range(ROUNDS):
                    for candidate, fn in candidates.items():
                        times[candidate].append(_block(fn, calls[candidate]))
            finally:
                gc.enable()
            benchmark.pedantic(candidates["fastnets"], rounds=3)
        medians = {c: median(t) for c, t in times.items()}
        peer = min((c for c in candidates if c != "fastnets"), key=medians.__getitem__)
        ratio = median(theirs / ours for theirs, ours in zip(times[peer], times["fastnets"], strict=True))
        benchmark.extra_info.update(group=group, medians=medians, peer=peer, ratio=ratio)
        _rows.append((group, name, medians, ratio))
        return ratio

    return run


@pytest.fixture
def record_line():
    """Prints a line under a heading at the end."""
    return lambda heading, line: _lines.setdefault(heading, []).append(line)


def pytest_terminal_summary(terminalreporter):
    write = terminalreporter.write_line
    for heading, lines in _lines.items():
        write(f"\n{heading}")
        for line in lines:
            write(f"  {line}")
    for group in dict.fromkeys(row[0] for row in _rows):
        rows = [row for row in _rows if row[0] == group]
        write("")
        write(f"{group}, µs, {torch.get_num_threads()} threads")
        for _, name, medians, ratio in rows:
            write(
                f"  {name:28} " + "  ".join(f"{c} {1e6 * t:9.1f}" for c, t in medians.items()) + f"  ratio {ratio:5.2f}"
            )
        ratios = [row[3] for row in rows]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        write(f"  geometric mean {mean:.2f}, least {min(ratios):.2f}")

"""What a call costs beside its work: every op on the smallest tensor there is, over the cheapest op of PyTorch."""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch
from examples import examples

CALLS, ROUNDS = 2000, 15
SMALLEST = examples(1)
x = torch.ones(1)


def _microseconds(fn) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        fn()
    return (time.perf_counter() - start) / CALLS * 1e6


@pytest.mark.parametrize("name", SMALLEST)
def test_overhead(benchmark, record_line, name):
    fn = SMALLEST[name]
    with torch.no_grad():
        over = [_microseconds(fn) - _microseconds(lambda: torch.neg(x)) for _ in range(ROUNDS)]
        benchmark.pedantic(fn, rounds=3)
    benchmark.extra_info.update(over_neg_us=median(over))
    record_line("overhead over torch.neg, one number, no gradient", f"{name:28} {median(over):5.1f} µs")

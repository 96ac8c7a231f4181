"""What a call costs beside its work: of every op, and of networks as `accelerate` returns them."""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch
from examples import examples

import fastnets
from benchmarks.test_networks import IN_BFLOAT16, network

CALLS, ROUNDS = 2000, 15
SMALLEST = examples(1)
x = torch.ones(1)


def _microseconds(fn, calls=CALLS) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    return (time.perf_counter() - start) / calls * 1e6


@pytest.mark.parametrize("name", SMALLEST)
def test_overhead(benchmark, record_line, name):
    """On the smallest tensor there is, over the cheapest op of PyTorch."""
    fn = SMALLEST[name]
    with torch.no_grad():
        over = [_microseconds(fn) - _microseconds(lambda: torch.neg(x)) for _ in range(ROUNDS)]
        benchmark.pedantic(fn, rounds=3)
    benchmark.extra_info.update(over_neg_us=median(over))
    record_line("overhead over torch.neg, one number, no gradient", f"{name:28} {median(over):5.1f} µs")


@pytest.mark.parametrize("name", IN_BFLOAT16)
def test_overhead_of_a_network(benchmark, record_line, name):
    """A call on a photo of 32 x 32 less what its operators take, by PyTorch's profiler, which counts their dispatch."""
    fast, photo = fastnets.accelerate(network(name)[0]), torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        calls = [_microseconds(lambda: fast(photo), 20) for _ in range(ROUNDS)]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            _microseconds(lambda: fast(photo), 100)
        benchmark.pedantic(lambda: fast(photo), rounds=3)
    operators = sum(event.self_cpu_time_total for event in profile.key_averages()) / 100
    benchmark.extra_info.update(call_us=median(calls), beside_operators_us=median(calls) - operators)
    line = f"{name:28} {median(calls):5.0f} µs, {median(calls) - operators:5.0f} µs beside its operators"
    record_line("a network on one photo of 32 x 32", line)

"""What a call costs beside its work: every op on the smallest tensor there is, over the cheapest op of PyTorch."""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch

from fastnets import ops

CALLS, ROUNDS = 2000, 15
x, w, one = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.ones(1)
box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
SMALLEST = {
    "batch_moments": lambda: ops.batch_moments(x),
    "batched_nms": lambda: ops.batched_nms(box, one, torch.zeros(1, dtype=torch.int64), 0.5),
    "channel_shuffle": lambda: ops.channel_shuffle(x, 1),
    "conv2d": lambda: ops.conv2d(x, w),
    "corner_pool": lambda: ops.corner_pool(x, "top"),
    "corner_pool_sum": lambda: ops.corner_pool_sum(x, x, "top_left"),
    "depthwise_conv2d": lambda: ops.depthwise_conv2d(x, w),
    "grouped_conv2d": lambda: ops.grouped_conv2d(x, w),
    "nms": lambda: ops.nms(box, one, 0.5),
    "pixel_shuffle": lambda: ops.pixel_shuffle(x, 1),
    "pixel_shuffle_to_uint8": lambda: ops.pixel_shuffle_to_uint8(x, 1),
    "precision_gate_conv2d": lambda: ops.precision_gate_conv2d(x, w, one),
    "shuffle_split": lambda: ops.shuffle_split(x, x),
    "soft_nms": lambda: ops.soft_nms(box, one),
    "strip_pool": lambda: ops.strip_pool(x),
    "sync_batch_norm": lambda: ops.sync_batch_norm(x, one, one),
}


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

"""A network on one thread, on all cores, on more threads than cores, and beside a neighbour that keeps a core busy."""

from __future__ import annotations

import time
from functools import partial
from statistics import median

import pytest
import torch

from benchmarks import _ceilings
from benchmarks._candidate import Missing, local
from benchmarks._provenance import cores
from benchmarks.test_networks import cost, everyone, network, photos

NAME = "mobilenet_v2"
CORES = cores()
THREADS = {"one thread": 1, "a thread for each core": CORES, "two threads for each core": 2 * CORES}
SECONDS, ROUNDS = 0.5, 5  # in which the neighbour's work is counted


@pytest.fixture
def contest(quick):
    """On so many threads, all candidates, which are told to use as many, the exact logits, and what the race is told."""
    before = torch.get_num_threads()
    _ceilings.measure(quick)  # those of the machine, on all its cores

    def on(threads):
        torch.set_num_threads(threads)
        (model, missing), x = network(NAME), photos(NAME, 1)
        candidates, exact = everyone(model, x, ["onnxruntime", "openvino"])
        return candidates | missing, (exact,), cost(model, x)

    yield on
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", THREADS)
def test_threads(race, contest, name):
    candidates, exact, costs = contest(THREADS[name])
    race(NAME, name, candidates, exact, **costs)


def test_beside_a_neighbour(race, contest, neighbour, benchmark, record_line, quick):
    """Also what the neighbour loses while each of the candidates computes without a pause."""
    candidates, exact, costs = contest(CORES)
    race(NAME, "a thread for each core, beside a neighbour", candidates, exact, **costs)
    benchmark.extra_info["neighbour loses"] = lost = _lost(neighbour, candidates, quick)
    for candidate, share in lost.items():
        record_line("what a neighbour that keeps a core busy loses meanwhile", f"{candidate:14} {share:5.0%}")


@torch.no_grad()
def _lost(neighbour, candidates, quick):
    """The share of its work that the neighbour does not get done, by candidate; all take turns."""
    seconds, rounds = (0.01, 1) if quick else (SECONDS, ROUNDS)
    running = {name: local(c) if callable(c) else c for name, c in candidates.items() if not isinstance(c, Missing)}
    lost = {name: [] for name in running}
    for _ in range(rounds):
        alone = neighbour.rate(partial(time.sleep, seconds))
        for name, candidate in running.items():
            lost[name].append(1 - neighbour.rate(partial(candidate.block, 1, seconds)) / alone)
    return {name: median(shares) for name, shares in lost.items()}

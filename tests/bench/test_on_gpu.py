"""How a candidate on a GPU becomes a CUDA graph, with a CUDA that is made up: there is no GPU here."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
import torch

from benchmarks import _candidate


@pytest.fixture
def cuda(monkeypatch):
    """Work is launched at once and takes as long as `busy` says; a graph runs what it has captured."""

    class Cuda:
        busy, captured, replays, refuses = 0.0, False, 0, False

        def synchronize(self):
            time.sleep(self.busy)

        def CUDAGraph(self):
            return self

        @contextmanager
        def graph(self, graph):
            if self.refuses:
                raise RuntimeError("operation not permitted when stream is capturing")
            yield
            self.captured = True

        def replay(self):
            self.replays += 1

    made_up = Cuda()
    for name in ("synchronize", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(made_up, name))
    return made_up


def launch():
    time.sleep(0.01)
    return (torch.ones(2),)


def test_a_launch_bound_function_becomes_a_graph(cuda):
    candidate = _candidate.OnGpu(launch)
    assert cuda.captured and cuda.replays == 0
    (y,) = candidate.fn()
    assert cuda.replays == 1 and y.sum() == 2


def test_a_function_that_keeps_the_gpu_busy_stays_itself(cuda):
    cuda.busy = 0.05
    assert _candidate.OnGpu(launch).fn is launch and not cuda.captured


def test_a_function_that_cannot_be_captured_stays_itself(cuda):
    cuda.refuses = True
    assert _candidate.OnGpu(launch).fn is launch

"""What must hold, or no ratio of the run means anything: a function is as fast as itself, a peer as fast as alone."""

from __future__ import annotations

from statistics import median

import pytest
import torch
import torch.nn.functional as F

from benchmarks import _peers
from benchmarks._candidate import Candidate, Missing, local
from benchmarks._race import WARM_AFTER_SLEEP

x, w = torch.randn(1, 96, 56, 56), torch.randn(96, 1, 3, 3)
wide = torch.randn(16, 96, 56, 56)
FUNCTIONS = {
    "microseconds": lambda: (torch.neg(x[:, :1]),),
    "a convolution": lambda: (F.conv2d(x, w, padding=1, groups=96),),
    "memory": lambda: (wide.neg(),),
}  # fmt: skip


def race_itself(race, group, name, within):
    fn = FUNCTIONS[name]
    exact = [t.double() for t in fn()]
    nbytes = 8 * exact[0].numel()  # a number is read and one written
    ratio = race(group, name, {"itself": fn, "fastnets": fn}, exact, nbytes=nbytes, flops=0)
    assert within is None or abs(ratio - 1) < within


@pytest.mark.parametrize("name", FUNCTIONS)
def test_left_alone(race, quick, name):
    race_itself(race, "left alone", name, None if quick else 0.02)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_beside_a_busy_process(race, quick, neighbour, name):
    race_itself(race, "beside a busy process", name, None if quick else 0.05)


@pytest.mark.parametrize("runtime", ("onnxruntime", "openvino"))
def test_turns_do_not_slow_a_peer(benchmark, record_line, quick, runtime):
    """A runtime that is stopped while we compute, and then woken up, against the same left alone."""
    x, weights = torch.randn(1, 96, 28, 28), {f"w{i}": torch.randn(96, 96, 3, 3) / 30 for i in range(4)}
    nodes = [("Conv", f"{'x' if i == 0 else i - 1} w{i}", str(i), {"pads": [1] * 4}) for i in range(4)]
    peer = _peers.onnx_op(nodes, {"x": x}, "3", weights)[runtime]
    if isinstance(peer, Missing):
        pytest.skip(peer.reason)
    ratio = benchmark.pedantic(lambda: _in_turns_over_alone(peer, 1 if quick else 15), rounds=1)
    benchmark.extra_info["in turns over alone"] = ratio
    record_line("time of a peer whose turns are between ours, over its time left alone", f"{runtime:12} {ratio:5.2f}")
    assert quick or 0.9 < ratio < 1.1


def _in_turns_over_alone(peer: Candidate, rounds: int) -> float:
    ours, ratios = local(FUNCTIONS["memory"]), []
    for _ in range(rounds):
        alone = peer.block(50, 0.1)
        ours.block(1, WARM_AFTER_SLEEP)
        ratios.append(peer.block(1, WARM_AFTER_SLEEP) / alone)
    return median(ratios)

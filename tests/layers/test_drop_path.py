"""Dropping paths: how many, what becomes of the others, and the schedule."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from fastnets.layers import DropPath, schedule_drop_path


def test_samples_are_dropped_whole_and_the_others_made_up_for():
    torch.manual_seed(0)
    x = torch.rand(10_000, 2, 3) + 1
    y = DropPath(0.3)(x)
    dropped = (y == 0).flatten(1)
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert dropped.all(1).float().mean() == pytest.approx(0.3, abs=0.02)
    kept = ~dropped.all(1)
    torch.testing.assert_close(y[kept], x[kept] / 0.7)
    assert y.mean() == pytest.approx(x.mean().item(), rel=0.02)


def test_eval_mode_drops_nothing():
    x = torch.randn(100, 3)
    assert DropPath(0.9).eval()(x) is x


@pytest.mark.parametrize("progress", [0, 0.25, 1])
def test_the_schedule_scales_every_probability(progress):
    torch.manual_seed(0)
    network = nn.Sequential(DropPath(0.8), nn.Sequential(DropPath(0.4)))
    schedule_drop_path(network, progress)
    x = torch.ones(10_000, 1)
    for layer, probability in ((network[0], 0.8), (network[1][0], 0.4)):
        assert (layer(x) == 0).float().mean() == pytest.approx(progress * probability, abs=0.02)


def test_it_leaves_no_trace_in_the_state_dict():
    assert not DropPath(0.5).state_dict()


def test_a_compiled_layer_follows_the_schedule_without_compiling_again():
    torch._dynamo.reset()
    layer = DropPath(0.9)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.ones(1000, 1)
    shares = []
    for progress in (0, 0.5, 1):
        schedule_drop_path(layer, progress)
        shares.append((compiled(x) == 0).float().mean().item())
    assert shares == [0, pytest.approx(0.45, abs=0.06), pytest.approx(0.9, abs=0.06)]
    assert counter.frame_count == 1


@pytest.mark.parametrize("probability", [-0.1, 1, 1.5, float("nan")])
def test_impossible_probabilities_are_refused(probability):
    with pytest.raises(ValueError, match="from 0 up to but not including 1"):
        DropPath(probability)


@pytest.mark.parametrize("progress", [-0.1, 1.1])
def test_impossible_progress_is_refused(progress):
    with pytest.raises(ValueError, match="from 0 to 1, but got"):
        schedule_drop_path(DropPath(0.5), progress)

"""Who computes something else, or returns before its work is done, is not timed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import _peers, test_nms, test_soft_nms, test_training
from benchmarks._candidate import Local, Missing, WrongResult
from benchmarks._correct import check
from benchmarks._race import QUICK, NoPeer, Pace, race
from benchmarks.test_precision_gate_conv2d import check_gates
from fastnets.ops import precision_gate_conv2d

make = torch.Generator().manual_seed(0)
x, w = torch.randn(2, 16, 32, 32, generator=make), torch.randn(16, 1, 3, 3, generator=make)
EXACT = (F.conv2d(x.double(), w.double(), padding=1, groups=16),)
BRIEF = Pace(block=1e-4, slow=5, fewest=5, least=5, most=5, error=0, seconds=0, patience=0)


def right():
    return (F.conv2d(x, w, padding=1, groups=16),)


def one_number_wrong():
    (y,) = right()
    y[1, 7, 31, 31] += 0.01
    return (y,)


def borders_left_out():
    return (F.pad(F.conv2d(x, w, groups=16), [1] * 4),)


def in_half_precision():
    return (F.conv2d(x.bfloat16(), w.bfloat16(), padding=1, groups=16),)


def not_a_number():
    (y,) = right()
    y[0, 0, 0, 0] = float("nan")
    return (y,)


def other_shape():
    return (right()[0][:1],)


def one_too_many():
    return right() * 2


WRONG = (one_number_wrong, borders_left_out, in_half_precision, not_a_number, other_shape, one_too_many)


@pytest.mark.parametrize("fn", WRONG, ids=lambda fn: fn.__name__)
@pytest.mark.parametrize("place", ("fastnets", "peer"))
def test_a_wrong_candidate_fails_the_case(place, fn):
    candidates = {"fastnets": right, "peer": right} | {place: fn}
    with pytest.raises(WrongResult, match=f"^{place} .* is not timed$"):
        race(candidates, EXACT, BRIEF)


def test_tolerance_of_a_case():
    def off_by(error):
        (y,) = right()
        y[0, 0, 0, 0] += error * y.abs().max()
        return (y,)

    def raced(error):
        return race({"peer": right, "fastnets": lambda: (x, w) and off_by(error)}, EXACT, BRIEF, tolerance=4e-4)

    assert raced(3e-4)["ratio"] > 0
    with pytest.raises(WrongResult, match="^fastnets is wrong by 5.0e-04"):
        raced(5e-4)


def test_tolerance_of_training_is_that_of_its_sums():
    """And too small for a batch norm that divides by n - 1, in all layers of MobileNetV2: 7e-4."""
    norms = nn.Sequential(*(nn.BatchNorm2d(1) for _ in range(52)))
    tolerance = test_training.tolerance(norms, torch.empty(16, 3, 224, 224))
    assert tolerance == pytest.approx(2 * 2**-24 * (200704 * 52) ** 0.5) and 1.3e-4 < tolerance < 7e-4


def test_right_candidates_are_timed():
    result = race({"peer": right, "absent": Missing("not installed"), "fastnets": right}, EXACT, BRIEF)
    assert result["peer"] == "peer" and result["missing"] == {"absent": "not installed"}
    assert set(result["times"]) == {"peer", "fastnets"} and len(result["rounds"]) == 5
    assert result["ratios"]["peer"]["p20"] <= result["ratio"] <= result["ratios"]["peer"]["p80"]


def test_wrong_only_when_it_counts():
    """Right while it is checked before the race, wrong from then on."""
    calls = []

    def tires():
        calls.append(0)
        return right() if len(calls) <= 2 else one_number_wrong()

    with pytest.raises(WrongResult, match="^fastnets "):
        race({"peer": right, "fastnets": tires}, EXACT, BRIEF)


class Early:
    """Returns at once, and lets a thread do the work a little later."""

    def __init__(self, buffer):
        self.buffer = buffer
        self.threads = []

    def __call__(self):
        y = torch.empty(EXACT[0].shape) if self.buffer is None else self.buffer
        self.threads.append(threading.Thread(target=self.work, args=(y,)))
        self.threads[-1].start()
        return (y,)

    def work(self, y):
        time.sleep(0.05)
        y.copy_(right()[0])


@pytest.mark.parametrize("buffer", ("new", "own"))
def test_a_candidate_that_returns_early(buffer):
    """Also where its buffer holds the right result from the call before."""
    early = Early(None if buffer == "new" else right()[0].clone())
    with pytest.raises(WrongResult, match="^early "):
        check("early", Local(early), EXACT)
    (y,) = early()
    for thread in early.threads:
        thread.join()
    assert torch.equal(y, right()[0])  # its work was right, only late


def test_a_candidate_that_returns_a_promise():
    with ThreadPoolExecutor() as pool, pytest.raises(WrongResult, match="^promise returns Future, not tensors"):
        check("promise", Local(lambda: pool.submit(right)), EXACT)


def test_a_candidate_that_remembers_its_result():
    kept = right()
    with pytest.raises(WrongResult, match="^lazy "):
        check("lazy", Local(lambda: kept), EXACT)


class CopyOfAResult:
    """Computes once; later calls copy what is kept, in one of the ways to keep it."""

    def __init__(self):
        self.kept = None

    def __call__(self):
        if self.kept is None:
            self.kept = right()
        return tuple(t.clone() for t in self.kept)


def copy_of_a_closure():
    kept = [t.contiguous(memory_format=torch.channels_last) for t in right()]
    return lambda: tuple(t.clone() for t in kept)


@pytest.mark.parametrize("kind", (CopyOfAResult, copy_of_a_closure), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", ("fastnets", "peer"))
@pytest.mark.parametrize("pace", (BRIEF, QUICK), ids=("brief", "quick"))
def test_a_candidate_that_copies_what_it_remembers(kind, place, pace):
    """New memory each time, and right: only other inputs show that nothing is computed."""
    before = x.clone(), w.clone()
    with pytest.raises(WrongResult, match=f"^{place} returns the same whatever its inputs are, and is not timed"):
        race({"fastnets": right, "peer": right} | {place: kind()}, EXACT, pace)
    assert torch.equal(before[0], x) and torch.equal(before[1], w)


@pytest.mark.parametrize("gates", ("shut", "half", "open"))
def test_a_kernel_that_ignores_its_gates(gates):
    """Where all are open or all shut, one of the two ways to ignore them is right."""
    shape = (32, 96, 7, 3)

    def gated(x, w, threshold, b, scale):
        return precision_gate_conv2d(x, w, threshold, b, 1, 1, scale=scale)

    def ignoring(always):
        return lambda x, w, threshold, *rest: gated(x, w, torch.full_like(threshold, always), *rest)

    check_gates(gated, shape, gates)
    for always, right_for in ((float("inf"), "shut"), (float("-inf"), "open")):
        if gates != right_for:
            with pytest.raises(WrongResult, match="^fastnets is wrong by"):
                check_gates(ignoring(always), shape, gates)


def test_our_own_nms_is_what_is_blamed(monkeypatch):
    """The reference is no op of ours: where our op is wrong, it is ours that is told, and not a peer."""
    for module, name, test in (
        (test_nms, "nms", lambda race: test_nms.test_nms(race, 1000, 60)),
        (test_nms, "batched_nms", test_nms.test_batched_nms),
        (test_soft_nms, "batched_soft_nms", test_soft_nms.test_batched_soft_nms),
    ):
        real = getattr(module, name)

        def backwards(*args, real=real):
            y = real(*args)
            return y.flip(0) if isinstance(y, torch.Tensor) else tuple(t.flip(0) for t in y)

        def checked(group, case, candidates, exact, **cost):
            check("fastnets", Local(candidates["fastnets"]), exact)

        monkeypatch.setattr(_peers, "onnx_op", lambda *args: {})
        test(checked)
        monkeypatch.setattr(module, name, backwards)
        with pytest.raises(WrongResult, match="^fastnets "):
            test(checked)


def test_integers_are_spoilt_as_well():
    kept = (torch.arange(5),)
    check("new", Local(lambda: (torch.arange(5),)), (torch.arange(5.0, dtype=torch.float64),))
    with pytest.raises(WrongResult):
        check("lazy", Local(lambda: kept), (torch.arange(5.0, dtype=torch.float64),))


def test_quick_checks_too():
    with pytest.raises(WrongResult):
        race({"peer": right, "fastnets": one_number_wrong}, EXACT, QUICK)


def test_nobody_to_race_with():
    with pytest.raises(NoPeer, match="onnxruntime: not installed"):
        race({"onnxruntime": Missing("not installed"), "fastnets": right}, EXACT, BRIEF)


def test_patience_ends_after_the_fewest_rounds():
    def slow():
        time.sleep(0.005)
        return (F.conv2d(x, w, padding=1, groups=16),)

    pace = replace(BRIEF, fewest=3, least=50, most=50, patience=0.02)
    assert len(race({"peer": slow, "fastnets": slow}, EXACT, pace)["rounds"]) == 3

"""A race: candidates take turns, and what counts is the ratio of their times in the same round."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks._candidate import Candidate, Local, Missing, local
from benchmarks._correct import check, check_reads
from fastnets.cli.bench.run_file import OURS, Spread

LONG = 0.05  # seconds of a call for which it does not matter what the candidate before has left
# Seconds of uncounted calls before the others. The candidate before has left its own memory in the caches.
WARM = 0.002
# And where some have slept meanwhile: threads may wake up on one core, and it takes the system some turns of its
# scheduler to move them apart. After 2 ms MobileNetV2 took 2.4 ms in OpenVINO, after 12 ms and left alone 1.8; every
# fourth call of ONNX Runtime took three times as long. Our own threads sleep while a process has its turn.
WARM_AFTER_SLEEP = 0.012
NOISY = 0.02  # the standard error of a ratio from which on it is called noisy


class NoPeer(Exception):
    """Every peer of our precision is missing."""


@dataclass
class Pace:
    """How long a race takes.

    Attributes:
        block: seconds that a candidate runs in a row; it makes at least one call.
        slow: rounds in which a peer takes part that is four times as slow as the fastest.
        fewest: rounds after which patience may end.
        least: rounds.
        most: rounds.
        error: the standard error of the ratio at which a race is decided.
        seconds: after which no round begins once there are `least`,
        patience: or this many, if more, as long as the ratio is noisy.
    """

    block: float
    slow: int
    fewest: int
    least: int
    most: int
    error: float
    seconds: float
    patience: float


# Blocks no longer than a turn of the system's scheduler, a few milliseconds: beside a busy process most are then either
# disturbed or not.
FULL = Pace(block=1e-3, slow=2, fewest=5, least=11, most=1000, error=0.004, seconds=1.6, patience=5)
QUICK = Pace(block=0, slow=1, fewest=1, least=1, most=1, error=0, seconds=0, patience=0)


def race(
    candidates: dict[str, Callable[[], tuple[Tensor, ...]] | Candidate | Missing],
    exact: Sequence[Tensor],
    pace: Pace,
    tolerance: float | None = None,
) -> dict[str, object]:
    """Races candidates, one of them named ``"fastnets"``.

    Args:
        candidates: functions that return tuples of tensors, or candidates of another kind.
        exact: what they should return, in float64.
        pace: how long.
        tolerance: see `check`.

    Returns:
        What goes into the JSON: ``times`` (seconds a call) and ``ratios`` (a peer's time over ours in the same round)
        as spreads, ``precision`` and ``missing`` by name, ``peer`` the fastest of our precision, ``ratio`` to it,
        ``noisy`` whether that is uncertain, and ``rounds``, our time in each.

    Raises:
        NoPeer: there is nobody to race with.
        WrongResult: a candidate returns something else, before its race or after it, or does not read its inputs.
    """
    missing = {name: c.reason for name, c in candidates.items() if isinstance(c, Missing)}
    running = {
        name: c if isinstance(c, Candidate) else local(c)
        for name, c in candidates.items()
        if not isinstance(c, Missing)
    }
    if not _peers(running):
        raise NoPeer("no peer is there: " + ", ".join(f"{name}: {reason}" for name, reason in missing.items()))
    with torch.no_grad():
        for name, candidate in running.items():
            check(name, candidate, exact, tolerance)
        times = _take_turns(running, pace)
        if pace is not QUICK:
            for name, candidate in running.items():
                if len(times[name]) == len(times[OURS]):  # has raced to the end
                    check(name, candidate, exact, tolerance)
        for name, candidate in running.items():
            if isinstance(candidate, Local):
                check_reads(name, candidate, exact)
    ratios = {name: Spread.of(_ratios(times, name)) for name in times if name != OURS}
    spreads = {name: Spread.of(seconds) for name, seconds in times.items()}
    peer = _fastest_peer(running, times)
    return {
        "times": {name: asdict(spread) for name, spread in spreads.items()},
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
        "precision": {name: candidate.precision for name, candidate in running.items()},
        "missing": missing,
        "peer": peer,
        "ratio": ratios[peer].median,
        "noisy": ratios[peer].error > NOISY,
        "rounds": times[OURS],
    }


def _take_turns(running: dict[str, Candidate], pace: Pace) -> dict[str, list[float]]:
    """Each candidate's seconds a call, round by round; in a new order in each, so that nobody has one neighbour."""
    if pace is QUICK:
        return {name: [candidate.block(1, 0)] for name, candidate in running.items()}
    warm = WARM if all(isinstance(candidate, Local) for candidate in running.values()) else WARM_AFTER_SLEEP
    once = {name: _once(candidate, warm) for name, candidate in running.items()}
    calls = {name: max(1, min(200, round(pace.block / seconds))) for name, seconds in once.items()}
    fastest = min(once[name] for name in _peers(running))
    slow = {name for name, seconds in once.items() if seconds > max(4 * fastest, pace.block) and name != OURS}
    limits = pace.seconds, max(pace.seconds, pace.patience)
    times: dict[str, list[float]] = {name: [] for name in running}
    order, shuffle, start = list(running), random.Random(0).shuffle, time.monotonic()
    gc.collect()
    gc.disable()
    try:
        for done in range(pace.most):
            if done == pace.slow:
                order = [name for name in order if name not in slow]
            if done >= pace.fewest and time.monotonic() - start > limits[True]:
                break
            if done >= pace.least:
                error = Spread.of(_ratios(times, _fastest_peer(running, times))).error
                if error < pace.error or time.monotonic() - start > limits[error > NOISY]:
                    break
            shuffle(order)
            for name in order:
                times[name].append(running[name].block(calls[name], 0 if once[name] > LONG else warm))
    finally:
        gc.enable()
    return times


def _once(candidate: Candidate, warm: float) -> float:
    """About how long a call takes; it has been called before."""
    seconds = candidate.block(1, 0)
    return seconds if seconds > LONG else min(candidate.block(1, warm) for _ in range(2))


def _ratios(times: dict[str, list[float]], peer: str) -> list[float]:
    # A slow peer has stopped earlier.
    return [theirs / ours for theirs, ours in zip(times[peer], times[OURS], strict=False)]


def _peers(running: dict[str, Candidate]) -> list[str]:
    return [name for name, c in running.items() if name != OURS and c.precision == running[OURS].precision]


def _fastest_peer(running: dict[str, Candidate], times: dict[str, list[float]]) -> str:
    return min(_peers(running), key=lambda name: median(times[name]))

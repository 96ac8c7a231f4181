"""What the terminal shows: a line for each case as it ends, and at the end what counts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from benchmarks._race import NOISY


class Live:
    """Counts cases, estimates the time left, and sums up.

    Args:
        total: the number of cases.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()
        self.cases: list[dict[str, Any]] = []
        self.lines: dict[str, list[str]] = {}

    def progress(self, what: str) -> str:
        """The line for a case that has ended."""
        self.done += 1
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        return f"{self.done:4}/{self.total}  {minutes(left):>7} left  {what}"

    def summary(self) -> list[str]:
        """Lines for the end of a run."""
        lines = []
        for heading, rows in self.lines.items():
            lines += ["", heading, *(f"  {row}" for row in rows)]
        lines += ["", f"{'time of the fastest peer / ours':62}  cases  geometric mean   least"]
        for op, group in dict.fromkeys((case["op"], case["group"]) for case in self.cases):
            ratios = [case["ratio"] for case in self.cases if (case["op"], case["group"]) == (op, group)]
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            lines.append(f"  {f'{op}: {group}':60}  {len(ratios):5}  {mean:14.2f}  {min(ratios):6.2f}")
        return [*lines, *self._losses(), *self._missing()]

    def _losses(self) -> list[str]:
        losses = sorted((case for case in self.cases if case["ratio"] < 1), key=lambda case: case["ratio"])
        if not losses:
            return []
        return ["", f"slower than a peer in {len(losses)} of {len(self.cases)} cases:"] + [
            f"  {case['ratio']:5.2f}  {describe(case)}" for case in losses
        ]

    def _missing(self) -> list[str]:
        reasons: dict[tuple[str, str], int] = {}
        for case in self.cases:
            for peer in case["missing"].items():
                reasons[peer] = reasons.get(peer, 0) + 1
        return [""] * bool(reasons) + [
            f"missing peer: {peer}, in {count} cases: {reason}" for (peer, reason), count in reasons.items()
        ]


def describe(case: dict[str, Any]) -> str:
    """A case in one line."""
    peer, times = case["peer"], case["times"]
    return (
        f"{case['op']}: {case['group']}, {case['case']}: "
        f"{1e6 * times['fastnets']['median']:.1f} µs, {peer} {1e6 * times[peer]['median']:.1f} µs"
    )


def warnings(origin: dict[str, Any], cases: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know before the figures: the machine was busy, or the figures scatter."""
    lines = []
    if origin["load"] > origin["cores"] / 2:
        lines.append(f"other processes ran at the start: load {origin['load']} on {origin['cores']} cores")
    if origin["dirty"]:
        lines.append(f"the files differ from commit {origin['commit'][:9]}")
    noisy = sum(case["noisy"] for case in cases)
    if noisy:
        lines.append(f"the ratio is uncertain by more than {NOISY:.0%} in {noisy} of {len(cases)} cases")
    return lines


def minutes(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"

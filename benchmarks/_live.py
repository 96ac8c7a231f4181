"""What the terminal shows: a line for each case as it ends, and at the end what counts."""

from __future__ import annotations

import time
from typing import Any

from benchmarks._race import NOISY
from fastnets.cli.bench.run_file import OURS, Case, Failure, geometric_mean, groups, missing, title

LIMIT = 35 * 60  # seconds that a full run may take on a busy machine; on a quiet one it takes less


class Live:
    """Counts cases, estimates the time left, and sums up.

    Args:
        origin: from ``_provenance``.
        total: the number of cases.
        quick: whether results are checked, and times mean nothing.
    """

    def __init__(self, origin: dict[str, Any], total: int, quick: bool) -> None:
        self.origin, self.total, self.quick, self.done, self.start = origin, total, quick, 0, time.monotonic()
        self.ended = 0  # done, with what comes after
        self.cases: list[Case] = []
        self.failed: list[Failure] = []
        self.lines: dict[str, list[str]] = {}

    def progress(self, what: str) -> str:
        """The line for a case that has ended."""
        self.done += 1
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        return f"{self.done:4}/{self.total}  {minutes(left):>7} left  {what}"

    def patience(self) -> float:
        """Seconds that each of the cases to come may take, so that the run ends in time."""
        return (LIMIT - (time.monotonic() - self.start)) / max(1, self.total - self.done)

    def interrupted(self) -> str | None:
        """After how many cases the run was, if it was."""
        return f"after {self.done} of {self.total} cases" if self.ended < self.total else None

    def warnings(self) -> list[str]:
        """What a reader must know before the figures: the machine was busy, or the figures scatter."""
        if self.quick:
            return ["with --quick results are checked, and times mean nothing"]
        origin, lines = self.origin, []
        if interrupted := self.interrupted():
            lines.append(f"the run was interrupted {interrupted}")
        if origin["load"] > origin["cores"] / 2:
            lines.append(f"other processes ran at the start: load {origin['load']} on {origin['cores']} cores")
        if origin["dirty"]:
            lines.append(f"the files differ from commit {origin['commit'][:9]}")
        if noisy := sum(case.noisy for case in self.cases):
            lines.append(f"the ratio is uncertain by more than {NOISY:.0%} in {noisy} of {len(self.cases)} cases")
        if beaten := sum(case.beats_floor for case in self.cases):
            lines.append(f"{beaten} of {len(self.cases)} cases beat their floor: the ceiling is measured too low there")
        return lines

    def summary(self) -> list[str]:
        """Lines for the end of a run."""
        lines = ["", *(f"warning: {warning}" for warning in self.warnings())]
        if not self.quick:
            lines += self._figures()
        return [
            *lines,
            *(
                f"missing peer of {op}: {peer}, in {n} cases: {why}"
                for (op, peer, why), n in missing(self.cases).items()
            ),
        ]

    def _figures(self) -> list[str]:
        lines = []
        for heading, rows in self.lines.items():
            lines += ["", heading, *(f"  {row}" for row in rows)]
        lines += ["", f"{'time of the fastest peer / ours':62}  cases  geometric mean   least"]
        for (op, group), cases in groups(self.cases).items():
            ratios = [case.ratio for case in cases]
            name = f"{op}: {group}"
            lines.append(f"  {name:60}  {len(ratios):5}  {geometric_mean(ratios):14.2f}  {min(ratios):6.2f}")
        losses = sorted((case for case in self.cases if case.ratio < 1), key=lambda case: case.ratio)
        if losses:
            lines += ["", f"slower than a peer in {len(losses)} of {len(self.cases)} cases:"]
            lines += [f"  {case.ratio:5.2f}  {_describe(case)}" for case in losses]
        if beaten := [case for case in self.cases if case.beats_floor]:
            lines += ["", "beats its floor: the ceiling is measured too low:"]
            lines += [f"  {case.share:5.0%}  {title(case.key)}" for case in beaten]
        return [*lines, ""]


def _describe(case: Case) -> str:
    ours, theirs = (1e6 * case.times[name].median for name in (OURS, case.peer))
    return f"{title(case.key)}: {ours:.1f} µs, {case.peer} {theirs:.1f} µs"


def minutes(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"

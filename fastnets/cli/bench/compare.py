"""Two runs: what got faster or slower beyond noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastnets.cli._terminal import UsageError
from fastnets.cli.bench.run_file import Case, Run, geometric_mean

ERRORS = 4  # a change is beyond noise when it is larger than this many standard errors


@dataclass
class Change:
    """What became of one case.

    Attributes:
        case: as it is now.
        peer: that both runs have raced; it takes the machine's own drift out.
        old: the peer's time over ours, before.
        new: the same now.
        noise: the change of their quotient that chance explains.
    """

    case: Case
    peer: str
    old: float
    new: float
    noise: float

    @property
    def speed(self) -> float:
        """How many times as fast as before."""
        return self.new / self.old

    @property
    def real(self) -> bool:
        """Whether the change is more than chance explains."""
        return abs(math.log(self.speed)) > self.noise


def compare(old: Run, new: Run) -> list[Change]:
    """The cases that both runs have, the one that lost most first.

    Raises:
        UsageError: they have none in common.
    """
    before, changes = {case.key: case for case in old.cases}, []
    for case in new.cases:
        was = before.get(case.key)
        common = [peer for peer in was.ratios if peer in case.ratios] if was else []
        if was and common:
            # The peer that was the fastest, if it is still there.
            peer = was.peer if was.peer in common else min(common, key=lambda name: was.times[name].median)
            a, b = was.ratios[peer], case.ratios[peer]
            changes.append(Change(case, peer, a.median, b.median, ERRORS * math.hypot(a.error, b.error)))
    if not changes:
        raise UsageError("the two runs have no case with a common peer")
    return sorted(changes, key=lambda change: change.speed)


def print_changes(changes: Sequence[Change], threshold: float) -> int:
    """Prints what changed; returns 1 where something got slower by more than ``threshold`` and by more than noise."""
    slower = [c for c in changes if c.real and c.speed < 1 - threshold]
    faster = [c for c in changes if c.real and c.speed > 1 / (1 - threshold)]
    for heading, found in (("slower", slower), ("faster", faster[::-1])):
        if found:
            print(f"{heading} by more than {threshold:.0%} and beyond noise:")
        for c in found:
            print(f"  {c.speed:5.2f}x  {': '.join(c.case.key)}  ({c.old:.2f} to {c.new:.2f} against {c.peer})")
    mean = geometric_mean([c.speed for c in changes])
    same = len(changes) - len(slower) - len(faster)
    print(f"{len(changes)} cases in both: {len(slower)} slower, {len(faster)} faster, {same} alike; speed {mean:.3f}x")
    return int(bool(slower))

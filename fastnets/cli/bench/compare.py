"""Two runs: what got faster or slower beyond noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastnets.cli._terminal import UsageError
from fastnets.cli.bench.run_file import Case, Run, geometric_mean, title

ERRORS = 4  # a change is beyond noise when it is larger than this many standard errors
NAMED = 4  # cases that a line names of those that are not compared


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
        UsageError: one was a quick run, or they have none in common and none failed in the new run.
    """
    for which, run in (("old", old), ("new", new)):
        if run.quick:
            raise UsageError(f"the {which} run was one with --quick, whose times mean nothing")
    before, changes = {case.key: case for case in old.cases}, []
    for case in new.cases:
        was = before.get(case.key)
        common = [peer for peer in was.ratios if peer in case.ratios] if was else []
        if was and common:
            # The peer that was the fastest, if it is still there.
            peer = was.peer if was.peer in common else min(common, key=lambda name: was.times[name].median)
            a, b = was.ratios[peer], case.ratios[peer]
            changes.append(Change(case, peer, a.median, b.median, ERRORS * math.hypot(a.error, b.error)))
    if not changes and not new.failed:
        raise UsageError("the two runs have no case with a common peer")
    return sorted(changes, key=lambda change: change.speed)


def remarks(old: Run, new: Run, changes: Sequence[Change]) -> Iterator[str]:
    """Lines on what a comparison does not cover: other machines, interrupted runs, and cases that are not in both runs."""
    a, b = (
        {"processor": p["gpu"] or p["cpu"], "threads": p["threads"], "instructions": p["isa"]["fastnets"]}
        for p in (old.provenance, new.provenance)
    )
    if other := [f"{name} {a[name]} and {b[name]}" for name in a if a[name] != b[name]]:
        yield f"the runs are of different machines: {', '.join(other)}"
    for which, run in (("old", old), ("new", new)):
        if run.provenance.get("interrupted"):
            yield f"the {which} run was interrupted {run.provenance['interrupted']}"
    before, now, failed = ({case.key for case in cases} for cases in (old.cases, new.cases, new.failed))
    for where, keys in (
        ("only in the old run", before - now - failed),
        ("only in the new run", now - before),
        ("without a common peer", (before & now) - {change.case.key for change in changes}),
    ):
        if keys:
            names = [title(key) for key in sorted(keys)]
            rest = f"; and {len(names) - NAMED} more" if len(names) > NAMED else ""
            yield f"{_cases(len(names))} {where}: {'; '.join(names[:NAMED])}{rest}"


def _cases(number: int) -> str:
    return f"{number} case{'s' * (number != 1)}"


def print_changes(old: Run, new: Run, threshold: float) -> int:
    """Compares two runs, and prints what changed.

    Args:
        old: the earlier run.
        new: the later one.
        threshold: how much slower counts, as a share.

    Returns:
        1 where a case failed in the new run, or got slower by more than the threshold and by more than noise.
        A case that the new run lacks is only told: it may have been left out on purpose, with ``-k``.

    Raises:
        UsageError: see `compare`.
    """
    changes = compare(old, new)
    for remark in remarks(old, new, changes):
        print(remark)
    if new.failed:
        print(f"{_cases(len(new.failed))} failed in the new run:")
    for failure in new.failed:
        print(f"  {title(failure.key)}: {failure.message}")
    slower = [c for c in changes if c.real and c.speed < 1 - threshold]
    faster = [c for c in changes if c.real and c.speed > 1 / (1 - threshold)]
    for heading, found in (("slower", slower), ("faster", faster[::-1])):
        if found:
            print(f"{heading} by more than {threshold:.0%} and beyond noise:")
        for c in found:
            print(f"  {c.speed:5.2f}x  {title(c.case.key)}  ({c.old:.2f} to {c.new:.2f} against {c.peer})")
    same = len(changes) - len(slower) - len(faster)
    counts = f"{len(slower)} slower, {len(faster)} faster, {same} alike"
    mean = f"; speed {geometric_mean([c.speed for c in changes]):.3f}x" if changes else ""
    print(f"{_cases(len(changes))} in both: {counts}{mean}")
    return int(bool(slower or new.failed))

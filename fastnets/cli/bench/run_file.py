"""The file of a run: what pytest-benchmark writes, with what ``benchmarks/conftest.py`` adds to it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from fastnets.cli._terminal import UsageError, one_line, printable

OURS = "fastnets"
BEATEN = 1.05  # share of the ceiling from which on it was measured too low


@dataclass
class Spread:
    """The middle of many figures: median, 20th and 80th percentile, and how many they are."""

    median: float
    p20: float
    p80: float
    count: int

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """The spread of one figure or more."""
        low, *_, high = quantiles(figures, n=5, method="inclusive") if len(figures) > 1 else [figures[0]] * 2
        return cls(median(figures), low, high, len(figures))

    @property
    def error(self) -> float:
        """The standard error of the median, over the median, if the figures were normally distributed."""
        # Between the percentiles lie 1.68 standard deviations; a median's error is 1.25 / sqrt(count) of one.
        return 1.25 / 1.68 * (self.p80 - self.p20) / self.median / self.count**0.5


@dataclass
class Named:
    """What a case is called in every run.

    Attributes:
        op: the word after ``test_`` in the name of its file.
        group: the cases over which a mean makes sense.
        case: its name in the group.
    """

    op: str
    group: str
    case: str

    @property
    def key(self) -> tuple[str, str, str]:
        """All three."""
        return self.op, self.group, self.case


@dataclass
class Case(Named):
    """One case of a run.

    Attributes:
        bytes: that must be moved.
        flops: operations that must be done.
        dtype: of the operations.
        floor: the least seconds that this machine could take.
        share: of that in our time.
        times: candidate -> seconds a call.
        ratios: peer -> its time over ours in the same round.
        precision: candidate -> type of its arithmetic.
        missing: peer -> why it took no part.
        peer: the fastest of our precision.
        ratio: the median of the ratios to it.
        noisy: whether that is uncertain.
    """

    bytes: int
    flops: int
    dtype: str
    floor: float
    share: float
    times: dict[str, Spread]
    ratios: dict[str, Spread]
    precision: dict[str, str]
    missing: dict[str, str]
    peer: str
    ratio: float
    noisy: bool

    @property
    def beats_floor(self) -> bool:
        """Whether it took so much less than the least time there is that the ceiling must be higher."""
        return self.share > BEATEN


@dataclass
class Failure(Named):
    """A case that failed: a candidate computed something else, or an exception came up.

    One that failed before it had come to its race has no group, and the name of its test.

    Attributes:
        message: what was wrong, in a line.
    """

    message: str


@dataclass
class Run:
    """A run of the benchmarks.

    Attributes:
        cases: in the order in which they ran.
        failed: those that failed.
        provenance: where the figures come from.
        bandwidth: bytes that a copy reads and writes -> bytes a second.
        rate: type -> operations a second in a product of matrices; as in float32 where none was faster.
        warnings: what to know before reading the figures.
        quick: whether nothing was measured in earnest.
    """

    cases: list[Case]
    failed: list[Failure]
    provenance: dict[str, Any]
    bandwidth: dict[int, float]
    rate: dict[str, float]
    warnings: list[str]
    quick: bool


def read(path: str) -> Run:
    """Reads a run.

    Raises:
        UsageError: there is no such file, or it is not one of a run.
    """
    shown = printable(path)
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except OSError as error:
        raise UsageError(f"cannot read {shown}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{shown} is not JSON: {one_line(error)}") from None
    try:
        run = _run_of(document)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise UsageError(
            f"{shown} is not a run of fastnets' benchmarks (pytest benchmarks --benchmark-json=…): {what}"
        ) from None
    if not run.cases and not run.failed:
        raise UsageError(f"{shown} has no case that was raced")
    return run


def _run_of(document: dict[str, Any]) -> Run:
    about = document["fastnets"]
    cases = [case_of(b["extra_info"]) for b in document["benchmarks"] if "ratio" in b["extra_info"]]
    failed = [Failure(**failure) for failure in about.get("failed", ())]  # older files have none
    bandwidth = {
        int(size): _above_0(f"copy of {size}", value) for size, value in about["ceilings"]["bandwidth"].items()
    }
    rate = {dtype: _above_0(f"rate in {dtype}", value) for dtype, value in about["ceilings"]["rate"].items()}
    if not bandwidth or min(bandwidth) < 1 or not rate:
        raise ValueError("ceilings are missing")
    p = about["provenance"]
    for fact in ("commit", "dirty", "date", "cpu", "gpu", "cores", "threads", "governor", "load"):
        p[fact]  # or it lacks this one
    _texts("provenance", p["cpu"], p["date"], p["gpu"] or "", p["isa"]["fastnets"], p["versions"]["torch"])
    _texts("warnings", *(about["warnings"] if isinstance(about["warnings"], list) else [about["warnings"]]))
    _texts("failed", *(text for failure in failed for text in (*failure.key, failure.message)))
    return Run(cases, failed, p, bandwidth, rate, about["warnings"], about["quick"])


def case_of(info: dict[str, Any]) -> Case:
    """The case that a benchmark's ``extra_info`` describes.

    Raises:
        KeyError: it lacks a field.
        TypeError, ValueError: a field is not what it should be.
    """
    spreads = {field: {name: Spread(**spread) for name, spread in info[field].items()} for field in ("times", "ratios")}
    case = Case(**{field: info[field] for field in Case.__dataclass_fields__} | spreads)
    _texts("case", *case.key, case.dtype, case.peer, *case.missing.values())
    for name in ("bytes", "ratio", "share", "floor"):
        _above_0(name, getattr(case, name))
    for spread in (*case.times.values(), *case.ratios.values()):
        for name, figure in asdict(spread).items():
            _above_0(name, figure)
    if case.flops:
        _above_0("flops", case.flops)
    if case.peer not in case.ratios or not {OURS, *case.ratios} <= set(case.times):
        raise ValueError(f"the case {title(case.key)} has no times of {OURS} and its peers")
    return case


def _above_0(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}, not a number above 0")
    return float(value)


def _texts(name: str, *values: Any) -> None:
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name} has {value!r} in place of a text")


def title(key: Sequence[str]) -> str:
    """A case's name in a line; the group is left out where a case has none."""
    return ": ".join(filter(None, key))


def rates(run: Run) -> dict[float, str]:
    """Operations a second -> the types that reach them, and which of those have no faster instructions of their own."""
    found: dict[float, str] = {}
    for dtype, rate in run.rate.items():
        found[rate] = f"{found[rate]}, {dtype} (as float32: it has no faster instructions)" if rate in found else dtype
    return found


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of one value or more."""
    return math.exp(sum(map(math.log, values)) / len(values))


def groups(cases: Sequence[Case]) -> dict[tuple[str, str], list[Case]]:
    """(op, group) -> its cases, in the order of the run."""
    found: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        found.setdefault((case.op, case.group), []).append(case)
    return found


def missing(cases: Sequence[Case]) -> dict[tuple[str, str, str], int]:
    """(op, peer, why it took no part) -> in how many cases."""
    return Counter((case.op, *peer) for case in cases for peer in case.missing.items())

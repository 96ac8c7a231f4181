"""Fixtures of the benchmarks; what they do is in the files whose names begin with an underscore."""

from __future__ import annotations

import pytest
import torch

from benchmarks import _heap, _peers
from benchmarks._live import Live
from benchmarks._process import Process
from benchmarks._race import FULL, QUICK
from benchmarks._race import race as run_race

live = pytest.StashKey[Live]()
ratio = pytest.StashKey[float]()


def pytest_addoption(parser):
    group = parser.getgroup("fastnets")
    group.addoption("--quick", action="store_true", help="check every candidate, hardly time it: for tests")
    group.addoption("--device", default="cpu", help="where tensors are made: cpu or cuda (%(default)s)")


def pytest_configure(config):
    _heap.keep_memory()
    _peers.quick = config.getoption("quick")
    torch.set_default_device(config.getoption("device"))
    config.option.benchmark_quiet = True  # its table knows nothing of rounds; ours is in _live.py


def pytest_collection_finish(session):
    session.config.stash[live] = Live(len(session.items))
    session.config.pluginmanager.get_plugin("terminalreporter").showfspath = False  # the lines of cases name all


@pytest.fixture
def quick(request) -> bool:
    """Whether this run only checks results."""
    return request.config.getoption("quick")


@pytest.fixture
def race(request, benchmark, quick):
    """Races functions of no arguments, ours under the name 'fastnets', and records all in the JSON.

    Args:
        group: the cases over which the geometric mean is printed.
        name: of this case.
        candidates: name -> function that returns tensors, or a candidate of another kind.
        exact: what they should return, in float64.
    """

    def run(group: str, name: str, candidates, exact) -> float:
        pace = QUICK if quick else FULL
        case = {"op": request.node.path.stem.removeprefix("test_"), "group": group, "case": name}
        case |= run_race(candidates, exact, pace)
        _record(benchmark, case.pop("rounds"))
        benchmark.extra_info.update(case)
        request.config.stash[live].cases.append(case)
        request.node.stash[ratio] = case["ratio"]
        return case["ratio"]

    return run


def _record(benchmark, seconds):
    """Our own time in each round becomes pytest-benchmark's, in place of a measurement of its own."""
    benchmark._mode = "race"
    if benchmark.enabled:
        stats = benchmark._make_stats(1)
        for value in seconds:
            stats.update(value)


@pytest.fixture
def record_line(request):
    """Prints a line under a heading at the end."""
    return lambda heading, line: request.config.stash[live].lines.setdefault(heading, []).append(line)


def pytest_report_teststatus(report):
    if report.passed and report.when == "call":
        return "passed", "", "PASSED"  # a line of its own, below, in place of a dot
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        terminal, stash = item.config.pluginmanager.get_plugin("terminalreporter"), item.stash
        figure = f"{stash[ratio]:6.2f}" if ratio in stash else f"{report.outcome:>6}"
        terminal.ensure_newline()
        terminal.write_line(item.config.stash[live].progress(f"{figure}  {item.name}"))
    return report


def pytest_terminal_summary(terminalreporter):
    for line in terminalreporter.config.stash[live].summary():
        terminalreporter.write_line(line)


def pytest_unconfigure():
    Process.end_all()

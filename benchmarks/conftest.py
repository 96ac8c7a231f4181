"""Fixtures of the benchmarks; what they do is in the files whose names begin with an underscore."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

import fastnets
from benchmarks import _ceilings, _peers, _provenance
from benchmarks._candidate import local
from benchmarks._live import Live
from benchmarks._neighbour import Neighbour
from benchmarks._process import Process
from benchmarks._race import FULL, QUICK, NoPeer
from benchmarks._race import race as run_race
from fastnets.cli._terminal import one_line
from fastnets.cli.bench.run_file import Failure, case_of

QUICK_CASES = 6
live = pytest.StashKey[Live]()
ratio = pytest.StashKey[float]()
key = pytest.StashKey[tuple[str, str, str]]()


def pytest_addoption(parser):
    group = parser.getgroup("fastnets")
    group.addoption(
        "--quick", action="store_true", help=f"check all candidates in {QUICK_CASES} cases of each test, time one call"
    )
    group.addoption("--device", default="cpu", help="where tensors are made: cpu or cuda (%(default)s)")


def pytest_configure(config):
    fastnets.keep_memory()  # for all: whom page faults are charged to depends on what others have allocated
    _peers.quick = config.getoption("quick")
    _make_tensors_on(config.getoption("device"))
    config.option.benchmark_quiet = True  # its table knows nothing of rounds; ours is in _live.py


def _make_tensors_on(device):
    # Even where it changes nothing, a default device costs every call of PyTorch's some microseconds.
    torch.set_default_device(None if device == "cpu" else device)


def pytest_ignore_collect(collection_path, config):
    """Leaves out what needs a GPU, where none is asked for."""
    return True if collection_path.name == "test_gpu.py" and config.getoption("device") == "cpu" else None


def pytest_collection_modifyitems(config, items):
    """With --quick, at most QUICK_CASES of each test with its least batch, evenly spread over the other parameters."""
    if not config.getoption("quick"):
        return
    tests = {}
    for item in items:
        tests.setdefault((item.path, item.originalname), []).append(item)
    kept = set()
    for cases in tests.values():
        batches = [_batch(item) for item in cases]
        cases = [item for item, b in zip(cases, batches, strict=True) if b == min(batches)]
        last = min(QUICK_CASES, len(cases)) - 1
        kept |= {cases[i * (len(cases) - 1) // max(1, last)] for i in range(last + 1)}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def _batch(item) -> int:
    return item.callspec.params.get("n", 1) if hasattr(item, "callspec") else 1


def pytest_collection_finish(session):
    session.config.stash[live] = Live(_provenance.provenance(), len(session.items), session.config.getoption("quick"))
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
        nbytes: that must be read or written.
        flops: operations that must be done.
        dtype: of the operations, a key of the ceilings' rates; bfloat16: of the numbers too.
        op: whose kernel it is; the file's name says it otherwise.
        tolerance: the largest error over the largest value, where that of the precision is too strict.
    """

    def run(
        group: str,
        name: str,
        candidates,
        exact,
        *,
        nbytes: int,
        flops: int,
        dtype: str = "float32",
        op: str = "",
        tolerance=None,
    ) -> float:
        here = request.config.stash[live]
        pace = QUICK if quick else replace(FULL, patience=min(FULL.patience, here.patience()))
        case = {"op": op or _op(request.node), "group": group, "case": name}
        request.node.stash[key] = tuple(case.values())
        # Before the default device goes: it decides how a candidate is timed.
        precision = "bfloat16" if dtype == "bfloat16" else "float32"  # of results: int8 is only what is multiplied
        candidates = {name: local(c, precision) if callable(c) else c for name, c in candidates.items()}
        torch.set_default_device(None)
        try:
            case |= {"bytes": nbytes, "flops": flops, "dtype": dtype} | run_race(candidates, exact, pace, tolerance)
        except NoPeer as alone:
            pytest.skip(str(alone))
        finally:
            _make_tensors_on(request.config.getoption("device"))
        floor = _ceilings.measure(quick).floor(nbytes, flops, dtype)
        case |= {"floor": floor, "share": floor / case["times"]["fastnets"]["median"]}
        _record(benchmark, case.pop("rounds"))
        benchmark.extra_info.update(case)
        here.cases.append(case_of(case))
        if not quick:
            request.node.stash[ratio] = case["ratio"]
        return case["ratio"]

    return run


def _op(item) -> str:
    return item.path.stem.removeprefix("test_")


def _record(benchmark, seconds):
    """Our own time in each round becomes pytest-benchmark's, in place of a measurement of its own."""
    benchmark._mode = "race"
    if benchmark.enabled:
        stats = benchmark._make_stats(1)
        for value in seconds:
            stats.update(value)


def pytest_benchmark_update_json(config, output_json):
    quick, here = config.getoption("quick"), config.stash[live]
    output_json["fastnets"] = {
        "provenance": here.origin | {"interrupted": here.interrupted()},
        "quick": quick,
        "ceilings": _ceilings.measure(quick).as_dict(),
        "warnings": here.warnings(),
        "failed": [asdict(failure) for failure in here.failed],
    }


@pytest.fixture
def neighbour():
    """Another process that keeps a core busy."""
    other = Neighbour()
    yield other
    other.end()


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
    if report.failed:
        _record_failure(item, call.excinfo)
    item.config.stash[live].ended += call.when == "teardown"
    if call.when == "call":
        terminal = item.config.pluginmanager.get_plugin("terminalreporter")
        figure = f"{item.stash[ratio]:6.2f}" if ratio in item.stash else f"{report.outcome:>6}"
        terminal.ensure_newline()
        terminal.write_line(item.config.stash[live].progress(f"{figure}  {item.name}"))
    return report


def _record_failure(item, excinfo):
    """Keeps a case that failed, before its race, in it or after it."""
    op, group, case = item.stash.get(key, (_op(item), "", item.name))
    failure = Failure(op, group, case, f"{excinfo.typename}: {one_line(excinfo.value)}")
    item.config.stash[live].failed.append(failure)
    benchmark = item.funcargs.get("benchmark")
    if benchmark and not benchmark.stats:  # or no file is written where all have failed
        benchmark.has_error = True
        benchmark._make_stats(1)


def pytest_terminal_summary(terminalreporter):
    for line in terminalreporter.config.stash[live].summary():
        terminalreporter.write_line(line)


def pytest_unconfigure():
    Process.end_all()

"""A case that fails is in the run's file, in the report and in the comparison."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastnets.cli import main
from fastnets.cli.bench.run_file import Failure, read

ROOT = Path(__file__).parents[2]
RUN = Path(__file__).with_name("run.json")  # made up, for these tests
FAILED = {"op": "depthwise_conv2d", "group": "forward, batch 1", "case": "960x7x7 3x3/1", "message": "Oops: <wrong>"}
TESTS = """
import pytest, torch

x = torch.arange(1.0, 5.0)

def raced(race, ours):
    race("group", "case", {"peer": lambda: (x.neg(),), "fastnets": ours}, (-x.double(),), nbytes=32, flops=0)

def test_right(race):
    raced(race, lambda: (x.neg(),))

def test_wrong(race):
    raced(race, lambda: (x.abs(),))

def test_before_the_race(race):
    raise KeyError("x")

def test_ratio(race):
    raced(race, lambda: (x.neg(),))
    assert False, "too slow"
"""


@pytest.mark.parametrize("chosen", ("test", "wrong"))
def test_failed_cases_are_written(tmp_path, chosen):
    """Also where none has come to its end."""
    (tmp_path / "test_op.py").write_text(TESTS)
    arguments = f"-p benchmarks.conftest -p no:cacheprovider --quick -k {chosen} --benchmark-json=run.json test_op.py"
    command = [sys.executable, "-m", "pytest", *arguments.split()]
    done = subprocess.run(
        command, check=False, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout
    run = read(str(tmp_path / "run.json"))
    wrong = Failure(
        "op", "group", "case", "WrongResult: fastnets is wrong by 2.0e+00 of the largest value, and is not timed"
    )
    before = Failure("op", "", "test_before_the_race", "KeyError: 'x'")
    late = Failure("op", "group", "case", "AssertionError: too slow")
    assert run.failed == ([wrong, before, late] if chosen == "test" else [wrong])
    assert run.provenance["interrupted"] is None
    assert len(run.cases) == (2 if chosen == "test" else 0)  # the figures of the late one are there as well


@pytest.fixture
def failed(tmp_path):
    """Writes the made-up run with a case that failed, and with the others or without; returns the file."""

    def write(others=True):
        run = json.loads(RUN.read_text())
        run["benchmarks"] = [b for b in run["benchmarks"] if others and b["extra_info"].get("case") != FAILED["case"]]
        run["fastnets"]["failed"] = [FAILED]
        file = tmp_path / "failed.json"
        file.write_text(json.dumps(run))
        return str(file)

    return write


@pytest.mark.parametrize("others", (True, False))
def test_report_begins_with_what_failed(failed, tmp_path, others):
    assert main(["bench", "report", failed(others), "-o", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert text.index('id="failed"') < text.index('id="summary"')
    assert "depthwise_conv2d: forward, batch 1: 960x7x7 3x3/1</td><td>Oops: &lt;wrong&gt;</td>" in text


@pytest.mark.parametrize(("others", "both"), [(True, "7 cases in both"), (False, "0 cases in both")])
def test_a_case_that_failed_is_a_regression(failed, capsys, others, both):
    assert main(["bench", "compare", str(RUN), failed(others)]) == 1
    out = capsys.readouterr().out
    assert "1 case failed in the new run:\n  depthwise_conv2d: forward, batch 1: 960x7x7 3x3/1: Oops: <wrong>\n" in out
    assert both in out and ("only in the old run" in out) is not others


def test_a_case_that_failed_before_is_new(failed, capsys):
    assert main(["bench", "compare", failed(), str(RUN)]) == 0
    assert "1 case only in the new run: depthwise_conv2d: forward, batch 1: 960x7x7 3x3/1\n" in capsys.readouterr().out


def test_absent_cases_and_another_machine_are_told(tmp_path, capsys):
    run = json.loads(RUN.read_text())
    run["benchmarks"] = run["benchmarks"][:1]
    run["fastnets"]["provenance"] |= {"cpu": "Other", "threads": 64}
    (tmp_path / "part.json").write_text(json.dumps(run))
    assert main(["bench", "compare", str(RUN), str(tmp_path / "part.json")]) == 0
    machine, absent, both = capsys.readouterr().out.splitlines()
    assert machine == ("the runs are of different machines: processor Made-up CPU (a test) and Other, threads 4 and 64")
    assert absent.startswith("7 cases only in the old run: channel_shuffle: ") and absent.endswith("; and 3 more")
    assert both.startswith("1 case in both: 0 slower")

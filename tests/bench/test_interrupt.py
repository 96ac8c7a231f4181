"""Ctrl-C ends a run; what it has measured by then is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Ctrl-C within the second case: at a moment of its own choice, a signal may also hit pytest between two cases, where
# pytest itself fails. The jobs that a shell runs in the background ignore Ctrl-C, and so would this test's process.
PYTEST = """
import signal, sys, pytest

class Interrupt:
    cases = 0

    def pytest_runtest_call(self):
        self.cases += 1
        if self.cases == 2:
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main(sys.argv[1:], plugins=[Interrupt()]))
"""


def test_interrupted_run_is_written(tmp_path):
    file = tmp_path / "run.json"
    arguments = [
        "benchmarks/test_channel_shuffle.py",
        f"--benchmark-json={file}",
        "-p",
        "no:cacheprovider",
        "-k",
        "split",
    ]
    # A process that runs tests for another does not measure.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    process = subprocess.run(
        [sys.executable, "-c", PYTEST, *arguments],
        check=False, cwd=ROOT, capture_output=True, text=True, env=env, timeout=120,
    )  # fmt: skip
    assert process.returncode == 2, process.stdout + process.stderr
    run = json.loads(file.read_text())
    assert len(run["benchmarks"]) == 1
    assert run["benchmarks"][0]["extra_info"]["ratio"] > 0
    assert run["fastnets"]["provenance"]["cores"] == len(os.sched_getaffinity(0))
    assert run["fastnets"]["provenance"]["interrupted"] == "after 1 of 12 cases"
    assert "the run was interrupted after 1 of 12 cases" in run["fastnets"]["warnings"]

"""Ctrl-C ends a run; what it has measured by then is written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The jobs that a shell runs in the background ignore Ctrl-C, and so would this test's process.
PYTEST = """
import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main(sys.argv[1:]))
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
    process = subprocess.Popen(
        [sys.executable, "-c", PYTEST, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**env, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    for line in process.stdout:
        if "test_shuffle_split" in line:  # the line of the first case
            process.send_signal(signal.SIGINT)
            break
    rest = process.communicate(timeout=120)[0]
    assert process.returncode == 2, rest
    run = json.loads(file.read_text())
    assert 1 <= len(run["benchmarks"]) < 12
    assert run["benchmarks"][0]["extra_info"]["ratio"] > 0
    assert run["fastnets"]["provenance"]["cores"] == len(os.sched_getaffinity(0))
    assert re.fullmatch(r"after [1-9]\d* of 12 cases", interrupted := run["fastnets"]["provenance"]["interrupted"])
    assert f"the run was interrupted {interrupted}" in run["fastnets"]["warnings"]

"""Ctrl-C ends a run; what it has measured by then is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_interrupted_run_is_written(tmp_path):
    file = tmp_path / "run.json"
    command = [sys.executable, "-u", "-m", "pytest", "benchmarks/test_channel_shuffle.py", f"--benchmark-json={file}"]
    process = subprocess.Popen(
        [*command, "-p", "no:cacheprovider", "-k", "split"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
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
    assert run["fastnets"]["provenance"]["cores"] == os.cpu_count()

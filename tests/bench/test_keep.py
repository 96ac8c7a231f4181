"""Results kept as CSV, and README's table, which is made from them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import keep
from fastnets.cli._terminal import UsageError
from fastnets.cli.bench.run_file import read

RUN = Path(__file__).with_name("run.json")
MARKED = f"before\n{keep.BEGIN}old\n{keep.END}\nafter\n"


def test_readme_is_what_the_results_say():
    text = keep.README.read_text("utf-8")
    assert keep.readme(text, keep.RESULTS) == text, "run `python -m benchmarks.keep`"


def test_one_row_for_each_figure(tmp_path):
    path = keep.keep(read(str(RUN)), tmp_path)
    assert path.name == "made-up-cpu-a-test-4-cores.csv"
    with path.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len({tuple(row.values())[:5] for row in rows}) == len(rows)
    figures = {(r["case"], r["candidate"], r["figure"]): (float(r["value"]), r["unit"]) for r in rows if r["op"]}
    assert figures["32x112x112 3x3/1", "fastnets", "time median"] in ((1e-4, "s"), (2e-4, "s"))
    assert figures["960x7x7 3x3/1", "channels_last", "ratio to the fastest"] == (0.75, "1")
    assert figures["960x7x7 3x3/1", "contiguous", "ratio p80"] == (1.53, "1")
    assert {"commit", "date", "copy of 256 MiB"} <= {row["figure"] for row in rows if not row["op"]}


def test_table_between_the_markers(tmp_path):
    assert "No full run has been kept yet." in keep.readme(MARKED, tmp_path)
    keep.keep(read(str(RUN)), tmp_path)
    text = keep.readme(MARKED, tmp_path)
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "Made-up CPU (a test), 4 threads, avx2, torch 2.13.0, commit 012345678, 2026-01-02:" in text
    row = "| `depthwise_conv2d` | 3 | 2 | 1.44 | 0.75 | forward, batch 1, 960x7x7 3x3/1, against channels_last |"
    assert row in text.splitlines()  # the cube root of 2 · 0.75 · 2
    assert "`itself`" not in text
    assert keep.readme(text, tmp_path) == text


def test_markers_must_be_there(tmp_path):
    with pytest.raises(UsageError, match="lacks the lines"):
        keep.readme("no markers", tmp_path)


def test_a_quick_run_is_not_kept(tmp_path):
    run = read(str(RUN))
    run.quick = True
    with pytest.raises(UsageError, match="--quick"):
        keep.keep(run, tmp_path)
    assert list(tmp_path.iterdir()) == []

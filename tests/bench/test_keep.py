"""Results kept as CSV, and README's table, which is made from them."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from benchmarks import _ledger, keep
from fastnets.cli._terminal import UsageError
from fastnets.cli.bench.run_file import read

RUN = Path(__file__).with_name("run.json")
MARKED = f"before\n{keep.GPU_BEGIN}old\n{keep.GPU_END}between\n{keep.BEGIN}old\n{keep.END}\nafter\n"
KNOWN = {"triton/nms": keep.UNPROVEN, "cuda/nms": "a GPU", "cuda/tune": keep.UNPROVEN}


def test_readme_and_the_package_say_what_the_results_say():
    known, text = keep.evidence(), keep.README.read_text("utf-8")
    assert keep.readme(text, keep.RESULTS, known) == text, "run `python -m benchmarks.keep`"
    assert keep.evidence_file(known) == keep.EVIDENCE.read_text("utf-8"), "run `python -m benchmarks.keep`"


def test_one_row_for_each_figure(tmp_path):
    (path,) = keep.keep(read(str(RUN)), tmp_path)
    assert path.name == "made-up-cpu-a-test-4-cores-avx2.csv"
    with path.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len({tuple(row.values())[:5] for row in rows}) == len(rows)
    figures = {(r["case"], r["candidate"], r["figure"]): (float(r["value"]), r["unit"]) for r in rows if r["op"]}
    assert figures["32x112x112 3x3/1", "fastnets", "time median"] in ((1e-4, "s"), (2e-4, "s"))
    assert figures["960x7x7 3x3/1", "channels_last", "ratio to the fastest"] == (0.75, "1")
    assert figures["960x7x7 3x3/1", "contiguous", "ratio p80"] == (1.53, "1")
    about = {row["figure"]: row["value"] for row in rows if not row["op"]}
    assert {"commit", "date", "copy of 256 MiB", "governor"} <= set(about)
    assert about["load"] == "0.1" and about["openvino"] == "not installed" and about["torch"] == "2.13.0"
    assert about["warning 1"] == "the ratio is uncertain by more than 2% in 1 of 8 cases"


def test_table_between_the_markers(tmp_path):
    assert "No full run has been kept yet." in keep.readme(MARKED, tmp_path, KNOWN)
    keep.keep(read(str(RUN)), tmp_path)
    text = keep.readme(MARKED, tmp_path, KNOWN)
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "Made-up CPU (a test), 4 threads, avx2, torch 2.13.0, commit 012345678, 2026-01-02:" in text
    row = "| `depthwise_conv2d` | 3 | 2 | 1.44 | 0.75 | forward, batch 1, 960x7x7 3x3/1, against channels_last |"
    assert row in text.splitlines()  # the cube root of 2 · 0.75 · 2
    assert "`itself`" not in text
    assert {"| `nms` | unproven | a GPU |", "| `tune` |  | unproven |"} <= set(text.splitlines())
    assert keep.readme(text, tmp_path, KNOWN) == text


@pytest.mark.parametrize("marked", ["no markers", MARKED.replace(keep.END, ""), MARKED.replace(keep.GPU_BEGIN, "")])
def test_markers_must_be_there(marked, tmp_path):
    with pytest.raises(UsageError, match="lacks the lines"):
        keep.readme(marked, tmp_path, KNOWN)


@pytest.mark.parametrize(
    ("quick", "origin", "message"),
    [
        (True, {}, "--quick"),
        (False, {"interrupted": "after 3 of 9 cases"}, "was interrupted after 3 of 9 cases"),
        (False, {"dirty": True}, "differ from its commit"),
    ],
)
def test_a_run_that_means_little_is_not_kept(tmp_path, quick, origin, message):
    run = read(str(RUN))
    run.quick = quick
    run.provenance |= origin
    with pytest.raises(UsageError, match=message):
        keep.keep(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_figures_of_other_ops_are_not_lost(tmp_path):
    run = read(str(RUN))
    run.cases.append(dataclasses.replace(run.cases[0], op="nms"))
    (path,) = keep.keep(run, tmp_path)
    assert path.name == "made-up-cpu-a-test-4-cores-avx2.csv" and keep.keep(run, tmp_path) == [path]
    before = path.read_text()
    run.cases[-1] = dataclasses.replace(run.cases[0], op="tune")
    with pytest.raises(UsageError, match="has figures of 1 cases that this run lacks, the first is nms: forward"):
        keep.keep(run, tmp_path)
    assert path.read_text() == before
    run.cases = run.cases[-1:]
    (other,) = keep.keep(run, tmp_path)
    assert other.name == "made-up-cpu-a-test-4-cores-avx2-tune.csv" and path.read_text() == before


def test_a_run_of_some_ops_has_a_file_for_each(tmp_path):
    run = read(str(RUN))
    run.cases += [dataclasses.replace(run.cases[0], op=op) for op in ("nms", "networks in bfloat16")]
    (full,) = keep.keep(run, tmp_path)
    before = full.read_text()
    run.cases = run.cases[-2:]
    kept = keep.keep(run, tmp_path)
    assert [path.name.removeprefix(full.stem) for path in kept] == ["-networks-in-bfloat16.csv", "-nms.csv"]
    for path, op in zip(kept, ("networks in bfloat16", "nms"), strict=True):
        assert {row["op"] for row in csv.DictReader(path.read_text().splitlines())} == {"", op}
    run.cases = []
    with pytest.raises(UsageError, match="cases that this run lacks"):
        keep.keep(run, tmp_path)
    assert full.read_text() == before


def test_a_part_of_an_op_does_not_replace_it(tmp_path):
    run = read(str(RUN))
    run.cases = [case for case in run.cases if case.op == "depthwise_conv2d"]
    (path,) = keep.keep(run, tmp_path)
    before = path.read_text()
    run.cases = run.cases[1:]
    with pytest.raises(UsageError, match=r"depthwise_conv2d\.csv has figures of 1 cases that this run lacks"):
        keep.keep(run, tmp_path)
    assert path.read_text() == before


def test_runs_with_other_instructions_have_a_file_of_their_own(tmp_path):
    run = read(str(RUN))
    (path,) = keep.keep(run, tmp_path)
    before = path.read_text()
    run.provenance["isa"]["fastnets"] = "avx512"
    (other,) = keep.keep(run, tmp_path)
    assert other.name == "made-up-cpu-a-test-4-cores-avx512.csv" and path.read_text() == before


def test_what_ran_with_its_present_source_is_evidence(tmp_path, monkeypatch, entry):
    _ledger.write({"cuda/nms": entry, "triton/nms": dataclasses.replace(entry, hash="0" * 64)}, tmp_path / "ledger")
    monkeypatch.setattr(_ledger, "read", lambda read=_ledger.read: read(tmp_path / "ledger"))
    known = keep.evidence()
    assert known["cuda/nms"] == "A GPU, torch 2.13.0, 2026-01-02, 12 tests, 85% of copy bandwidth"
    assert known["triton/nms"] == f"unproven; before its last change: {known['cuda/nms']}"
    assert {words for name, words in known.items() if not name.endswith("/nms")} == {keep.UNPROVEN}

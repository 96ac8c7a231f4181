"""What `make gpu` makes of the reports of its steps, and what it says where there is no GPU. No step runs here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import _ledger, gpu, keep


def case(backend: str | None, ran: bool = True, end: str = "") -> str:
    said = f'<property name="backend" value="{backend}"/>' if backend else ""
    said += f'<property name="ran" value="{backend}"/>' if ran else ""
    return f'<testcase name="test_it"><properties>{said}</properties>{end}</testcase>'


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        ([case("cuda"), case("cuda"), case("triton")], {"cuda": 2, "triton": 1}),
        ([case("cuda"), case("cuda", end="<skipped/>")], {"cuda": 1}),
        ([case("cuda", ran=False), case("triton", ran=False, end="<skipped/>")], {}),
        ([case("cuda"), case("triton"), case("cuda", ran=False, end="<failure/>")], {"cuda": 0, "triton": 1}),
        ([case("cuda"), case("cuda", end="<error/>")], {"cuda": 0}),
        ([case("cuda"), case(None, ran=False, end="<error/>")], {"cuda": 0, "triton": 0}),
    ],
)
def test_outcomes(cases, expected):
    assert gpu.outcomes(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>") == expected


def test_largest_case_of_a_benchmark():
    def case(op, name, nbytes, seconds):
        return {"op": op, "group": "g", "case": name, "bytes": nbytes, "times": {"fastnets": {"median": seconds}}}

    cases = case("nms", "small", 10, 1e-9), case("nms", "large", 6000, 1e-6), case("soft_nms", "other", 9000, 1e-6)
    copies = {"1024": 9e12, "4096": 1e10, "512": 9e12}
    run = {"benchmarks": [{"extra_info": c} for c in cases], "fastnets": {"ceilings": {"bandwidth": copies}}}
    assert gpu.largest(run, "nms") == {"case": "g, large", "seconds": 1e-6, "copy_share": 0.6}
    assert set(gpu.largest(run, "strip_pool").values()) == {None}


def test_the_fields_of_a_case_are_those_of_a_run_file():
    run = json.loads(Path(__file__).with_name("run.json").read_text("utf-8"))
    run["benchmarks"] = run["benchmarks"][:1]
    fields = gpu.largest(run, "depthwise_conv2d")
    assert fields["seconds"] == 1e-4 and fields["copy_share"] == pytest.approx(3211264 / 1e-4 / 3e10, abs=1e-4)


def test_parts_are_the_whole():
    ops = [*"abcdefg"]
    assert sorted(op for k in (1, 2, 3) for op in gpu.part(ops, f"{k}/3")) == ops


@pytest.mark.parametrize("which", ["0/3", "4/3", "1", "a/b", "1/2/3"])
def test_parts_that_are_none(which):
    with pytest.raises(SystemExit, match="PART must be K/N"):
        gpu.part([], which)


def test_every_kernel_is_proven_by_the_tests_of_one_op():
    ops = {name.partition("/")[2] for name in _ledger.kernels()} - gpu.TESTED_WITH.keys()
    proven = [kernel for op in ops for kernel in gpu.kernels_of(op)]
    assert len(proven) == len(set(proven))
    assert {*proven} == {name.partition("/")[2] for name in _ledger.hashes()}
    assert all((_ledger.ROOT / f"tests/ops/test_{op}.py").exists() for op in ops)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_and_no_change():
    before = _ledger.LEDGER.read_bytes()
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=_ledger.ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.startswith("make gpu: ")
    assert len(done.stderr.splitlines()) == 1 and _ledger.LEDGER.read_bytes() == before


def test_a_step_says_how_it_ended_and_ends_with_the_time(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "LOGS", tmp_path)
    session = gpu.Session()
    assert session.run("says", [sys.executable, "-c", "import os; print(os.environ['WORD'])"], WORD="a word") == 0
    assert session.run("fails", ["false"]) == 1
    session.end = time.monotonic() + 1
    assert session.run("lasts", ["sleep", 60]) == 124
    assert (tmp_path / "says.log").read_text() == "a word\n"
    lines = [f"{name}: failed, see {tmp_path}/{name}.log" for name in ("fails", "lasts")]
    assert capsys.readouterr().out.splitlines() == ["says: ok", *lines]


@pytest.mark.parametrize(("status", "expected"), [(0, {"cuda": 1}), (1, {"cuda": 1}), (2, {}), (124, {}), (-11, {})])
def test_tests_that_do_not_come_to_their_end_prove_nothing(status, expected, monkeypatch, tmp_path):
    """pytest ends with 0 or 1 where all ran; interrupted, it writes a report too."""
    monkeypatch.setattr(gpu, "LOGS", tmp_path)
    monkeypatch.setattr(gpu.Session, "pytest", lambda *_, **__: status)
    (tmp_path / "nms.xml").write_text(f"<testsuite>{case('cuda')}</testsuite>")
    assert gpu.Session().tests("nms") == expected


@pytest.fixture
def session(monkeypatch, tmp_path, entry):
    """A call whose steps are made up: cuda/nms passes, triton/nms fails, the tests of soft_nms do not come to an end."""
    where = {name: getattr(entry, name) for name in ("gpu", "driver", "torch", "triton", "cuda", "date", "commit")}
    monkeypatch.setattr(gpu, "machine", lambda: where)
    monkeypatch.setattr(gpu, "no_gpu", lambda: None)
    monkeypatch.setattr(gpu, "LOGS", tmp_path)
    monkeypatch.setattr(gpu.Session, "build", lambda self: True)
    monkeypatch.setattr(gpu.Session, "tests", lambda self, op: {"cuda": 7, "triton": 0} if op == "nms" else {})
    monkeypatch.setattr(gpu.Session, "sanitize", lambda self, op, backend: "memcheck")
    monkeypatch.setattr(gpu.Session, "benchmarks", lambda self, ops, backend: {"benchmarks": []})


def test_an_entry_is_written_only_for_what_passed(session, monkeypatch, tmp_path, entry, capsys):
    monkeypatch.setattr(_ledger, "read", lambda read=_ledger.read: read(tmp_path / "ledger"))
    monkeypatch.setattr(_ledger, "write", lambda ledger, write=_ledger.write: write(ledger, tmp_path / "ledger"))
    monkeypatch.setattr(keep, "main", lambda argv: 0)
    _ledger.write({"triton/nms": entry, "cuda/soft_nms": entry})
    assert gpu.main([]) == 1
    after = _ledger.read()
    assert after.keys() == {"cuda/nms", "cuda/soft_nms"} and after["cuda/soft_nms"] == entry
    new = after["cuda/nms"]
    assert (new.hash, new.tests, new.sanitizer, new.case) == (_ledger.hashes()["cuda/nms"], 7, "memcheck", None)
    assert capsys.readouterr().out.startswith("unproven: triton/channel_shuffle, triton/corner_pool, ")

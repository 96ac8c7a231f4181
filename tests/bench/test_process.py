"""A runtime in a process of its own: right, and asleep while others run."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import _onnx, _peers, _runtimes
from benchmarks._candidate import Missing
from benchmarks._correct import check
from benchmarks._process import Process, Remote

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def end():
    yield
    Process.end_all()


def relu():
    return Remote("onnxruntime", _onnx.model([("Relu", "x", "y", {})], {"x": x}, "y"), {"x": x})


def state(process: Process) -> str:
    return Path(f"/proc/{process._process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def stopped(process: Process) -> bool:
    end = time.monotonic() + 10
    while state(process) != "T" and time.monotonic() < end:
        time.sleep(0.01)
    return state(process) == "T"


def test_computes_and_is_timed():
    remote = relu()
    check("onnxruntime", remote, (x.double().relu(),))
    assert remote.block(3, 0.01) > 0


def test_is_stopped_while_others_run():
    remote = relu()
    assert stopped(remote._process)
    remote.block(1, 0)
    assert stopped(remote._process)


def test_no_runtime_beside_torch():
    with pytest.raises(RuntimeError, match="torch is imported in this process too"):
        _runtimes.Server("onnxruntime").load(b"", {}, 1)


def test_is_gone_at_the_end():
    process = relu()._process
    Process.end_all()
    assert not process._process.is_alive()
    assert Process.of("onnxruntime") is not process


def test_an_error_there_is_an_error_here():
    with pytest.raises(RuntimeError, match="(?i)protobuf|model"):
        Remote("onnxruntime", b"no model", {"x": x})


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(_peers.importlib.util, "find_spec", lambda name: None if name == "openvino" else name)
    peers = _peers.onnx_op([("Relu", "x", "y", {})], {"x": x})
    assert peers["openvino"] == Missing("openvino is not installed")
    assert isinstance(peers["onnxruntime"], Remote)

"""Peers that may be missing say why."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks import _peers
from benchmarks._candidate import Missing


def double(x):
    return 2 * x


def broken(x):
    raise RuntimeError("Couldn't load custom C++ ops. This can happen if\nmore")


def test_an_operator_of_torchvision_runs(monkeypatch):
    monkeypatch.setattr(_peers, "import_peer", lambda name: SimpleNamespace(ops=SimpleNamespace(double=double)))
    (y,) = _peers.torchvision_op("double", torch.ones(2))()
    assert torch.equal(y, torch.full((2,), 2.0))


def test_an_operator_of_torchvision_that_does_not_load(monkeypatch):
    monkeypatch.setattr(_peers, "import_peer", lambda name: SimpleNamespace(ops=SimpleNamespace(nms=broken)))
    reason = "does not run beside this torch: Couldn't load custom C++ ops"
    assert _peers.torchvision_op("nms", torch.ones(2)) == Missing(reason)


def test_torchvision_is_not_installed(monkeypatch):
    monkeypatch.setattr(_peers, "import_peer", lambda name: pytest.skip(f"{name} cannot be imported"))
    assert _peers.torchvision_op("nms", torch.ones(2)) == Missing("torchvision cannot be imported")

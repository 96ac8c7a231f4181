"""Backends under test: those of this process. Triton interpreted needs a process of its own (see the Makefile)."""

from __future__ import annotations

import pytest

from fastnets._backends import BACKENDS, INTERPRETED, use_backend

HERE = ["triton"] if INTERPRETED else ["reference", "cpu", "cuda"]


def _need(name: str) -> None:
    """Skips the test, with the reason, where the backend is not there; emulates CUDA where there is no GPU."""
    if name == "cuda":
        emulation = pytest.importorskip("emulate")
        if reason := emulation.emulate_cuda():
            pytest.skip(reason)
    if name == "triton":
        pytest.importorskip("interpret")
    if name == "cpu" and (reason := BACKENDS["cpu"].missing()):
        pytest.skip(reason)


@pytest.fixture(params=HERE)
def backend(request):
    """Runs the test once on each backend."""
    _need(request.param)
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def cpu_kernels():
    """Runs the test on the compiled CPU kernels and no other."""
    _need("cpu")
    with use_backend("cpu"):
        yield

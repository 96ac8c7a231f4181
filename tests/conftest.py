"""Backends under test: those of this process. Triton interpreted needs a process of its own (see the Makefile)."""

from __future__ import annotations

import pytest

from fastnets._backends import INTERPRETED, use_backend

HERE = ["triton"] if INTERPRETED else ["reference", "cpu", "cuda"]


@pytest.fixture(params=HERE)
def backend(request):
    """Runs the test once on each backend, in its emulation where there is no GPU; skips one that is not there."""
    if request.param == "cuda":
        emulation = pytest.importorskip("emulate")
        if reason := emulation.emulate_cuda():
            pytest.skip(reason)
    if request.param == "triton":
        pytest.importorskip("interpret")
    if request.param == "cpu":
        from fastnets._backends import BACKENDS

        if reason := BACKENDS["cpu"].missing():
            pytest.skip(reason)
    with use_backend(request.param):
        yield request.param

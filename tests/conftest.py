"""Backends under test: those of this process. Triton interpreted needs a process of its own (see the Makefile).

FASTNETS_TEST_DEVICE=cuda takes the backends of GPUs to a GPU; `make gpu` does.
"""

from __future__ import annotations

import os
from zlib import crc32

import pytest

from fastnets._backends import BACKENDS, INTERPRETED, use_backend

DEVICE = os.environ.get("FASTNETS_TEST_DEVICE")
HERE = ["cuda", "triton"] if DEVICE == "cuda" else ["triton"] if INTERPRETED else ["reference", "cpu", "cuda"]


def _need(name: str) -> None:
    """Skips the test, with the reason, where the backend is not there; emulates CUDA where there is no GPU."""
    if DEVICE == "cuda" and name != "cpu":
        if reason := BACKENDS[name].missing():
            pytest.skip(reason)
        return
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
    """Runs the test once on each backend; with a device, the test's report says whether it ran a kernel there."""
    say = request.node.user_properties.append
    say(("backend", request.param))
    _need(request.param)
    if DEVICE:
        carry = pytest.importorskip("carry")
        carry.carry_to(DEVICE)
        carry.carried.clear()
    with use_backend(request.param):
        yield request.param
    if DEVICE and request.param in carry.carried:
        say(("ran", request.param))


@pytest.fixture
def cpu_kernels():
    """Runs the test on the compiled CPU kernels and no other."""
    _need("cpu")
    with use_backend("cpu"):
        yield


@pytest.fixture
def walled_cpu_kernels(request, cpu_kernels):
    """The same, on copies of their tensors with memory on one side that cannot be read; each test has its side."""
    with pytest.importorskip("walls").walls(("before", "after")[crc32(request.node.name.encode()) % 2]):
        yield

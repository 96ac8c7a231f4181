"""The record of what GPU kernels use: more of anything fails, by the compiler that was recorded."""

from __future__ import annotations

import pytest
import resources
from resources import Use, check_use, recorded

KEY = ("kernels/nms.py", "_kernel", "sm_90")


@pytest.fixture(autouse=True)
def record(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "RECORD", tmp_path / "record.csv")
    monkeypatch.setattr(resources, "measured", {KEY: ("triton 1", Use(40, 256, 8))})
    recorded.cache_clear()
    resources.write()
    yield
    recorded.cache_clear()


@pytest.mark.parametrize("use", [Use(40, 256, 8), Use(1, 0, 0)])
def test_no_more_than_recorded_passes(use):
    check_use("triton 1", KEY, use)


@pytest.mark.parametrize("use", [Use(41, 256, 8), Use(40, 257, 8), Use(1, 0, 9)])
def test_more_fails_by_the_same_compiler(use):
    with pytest.raises(AssertionError, match="more than the recorded"):
        check_use("triton 1", KEY, use)
    check_use("triton 2", KEY, use)


def test_a_kernel_that_is_not_recorded_fails():
    with pytest.raises(AssertionError, match="make gpu-resources"):
        check_use("triton 1", (*KEY[:2], "sm_80"), Use(1, 0, 0))


def test_recording_keeps_the_most_and_the_rows_of_kernels_that_are_there(monkeypatch):
    monkeypatch.setattr(resources, "RECORDING", True)
    other, gone = (*KEY[:2], "sm_80"), ("kernels/gone.py", "_kernel", "sm_90")
    monkeypatch.setattr(resources, "measured", {gone: ("triton 1", Use(1, 1, 1))})
    resources.write()
    monkeypatch.setattr(resources, "measured", {})
    for use in (Use(10, 0, 4), Use(9, 8, 4)):
        check_use("triton 2", other, use)
    recorded.cache_clear()
    resources.write()
    recorded.cache_clear()
    assert recorded() == {KEY: ("triton 1", Use(40, 256, 8)), other: ("triton 2", Use(10, 8, 4))}

"""A function against itself: the ratio must be 1, or no other ratio of the run means anything."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

x, w = torch.randn(1, 96, 56, 56), torch.randn(96, 1, 3, 3)
wide = torch.randn(16, 96, 56, 56)
FUNCTIONS = {
    "microseconds": lambda: (torch.neg(x[:, :1]),),
    "a convolution": lambda: (F.conv2d(x, w, padding=1, groups=96),),
    "memory": lambda: (wide.neg(),),
}  # fmt: skip


@pytest.fixture
def busy_machine():
    """Another process that never rests."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    other.kill()
    other.wait()


def race_itself(race, group, name, within):
    fn = FUNCTIONS[name]
    exact = [t.double() for t in fn()]
    nbytes = 8 * exact[0].numel()  # a number is read and one written
    ratio = race(group, name, {"itself": fn, "fastnets": fn}, exact, nbytes=nbytes, flops=0)
    assert within is None or abs(ratio - 1) < within


@pytest.mark.parametrize("name", FUNCTIONS)
def test_left_alone(race, quick, name):
    race_itself(race, "left alone", name, None if quick else 0.02)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_beside_a_busy_process(race, quick, busy_machine, name):
    race_itself(race, "beside a busy process", name, None if quick else 0.05)

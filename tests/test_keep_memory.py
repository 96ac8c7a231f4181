"""keep_memory: no page is faulted in twice after it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fastnets

FAULTS = """
import resource, sys, torch, fastnets
torch.set_num_threads(1)
if sys.argv[1] == "kept" and not fastnets.keep_memory():
    sys.exit("no glibc")

def fill():
    for megabytes in (40, 3, 80):
        torch.empty(megabytes << 18).fill_(1.0)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

fill()
before = [faults()]
for _ in range(3):  # a tensor may find a new place once
    fill()
    before.append(faults())
print(min(b - a for a, b in zip(before, before[1:])))
"""


def faults(how):
    run = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=False)
    if run.stderr.strip() == "no glibc":
        pytest.skip("this C library is not glibc")
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux")
def test_no_page_is_faulted_in_twice():
    # With pages of 2 MB, 60. Seen once in a full run: 80 MB of new pages in each round, as if the heap could not grow,
    # which then depends on where the system has put it: so the least of three processes.
    assert min(faults("kept") for _ in range(3)) < 20 < faults("not")


def test_other_systems_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert fastnets.keep_memory() is False

"""What several tests of benchmarks share."""

from __future__ import annotations

import pytest

from benchmarks import _ledger


@pytest.fixture
def entry():
    """An entry of the ledger that proves cuda/nms as it is."""
    present = _ledger.hashes()["cuda/nms"]
    where = ("A GPU", "580.1", "2.13.0", "3.7.1", "13.0", "2026-01-02T03:04:05+00:00", "0123456")
    return _ledger.Entry(present, *where, 12, "memcheck, racecheck", "80 x 25 boxes", 1e-4, 0.85)

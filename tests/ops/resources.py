"""What compiled GPU kernels use, beside what is recorded in ``gpu_resources.csv``.

A kernel has many compilations; the record holds the most that any of them uses on an architecture. FASTNETS_RECORD=1
(`make gpu-resources`) writes the record anew in place of checking it.
"""

from __future__ import annotations

import atexit
import csv
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "tests" / "gpu_resources.csv"
KEY = ("source", "kernel", "arch")
RECORDING = os.environ.get("FASTNETS_RECORD") == "1"


class Use(NamedTuple):
    """Registers of a thread, bytes of shared memory of a block, bytes of registers that a thread spills."""

    registers: int
    shared: int
    spilled: int


Key = tuple[str, str, str]
measured: dict[Key, tuple[str, Use]] = {}


@cache
def recorded() -> dict[Key, tuple[str, Use]]:
    """The compiler and the use of every kernel, by source, name and architecture."""
    with RECORD.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    return {tuple(r[k] for k in KEY): (r["compiler"], Use(*(int(r[f]) for f in Use._fields))) for r in rows}


def check_use(compiler: str, key: Key, use: Use) -> None:
    """Compares one compilation with the record, which must have that kernel; another compiler may use more."""
    if RECORDING:
        most = measured[key][1] if key in measured else use
        measured[key] = compiler, Use(*map(max, most, use))
        return
    assert key in recorded(), f"{key} is not in {RECORD.name}: run `make gpu-resources`"
    by, most = recorded()[key]
    assert by != compiler or all(u <= m for u, m in zip(use, most, strict=True)), (
        f"{key} uses {use}, more than the recorded {most}: if that is meant, run `make gpu-resources`"
    )


def write() -> None:
    """Writes what this run measured; the rows of kernels that it did not compile stay, where their source is there."""
    kept = {key: row for key, row in recorded().items() if (ROOT / key[0]).exists()} if RECORD.exists() else {}
    with RECORD.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*KEY, "compiler", *Use._fields))
        writer.writerows((*key, compiler, *use) for key, (compiler, use) in sorted((kept | measured).items()))


if RECORDING:
    atexit.register(write)

"""Compiles Triton kernels, as their launchers would launch them, to machine code on a machine without a GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget

from fastnets._backends import INTERPRETED

skip_interpreted = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: kernels are Python")


class Driver:
    """Stands in for a GPU's driver; its device number is the architecture, so that each has compilations of its own."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(params=[80, 90], ids="sm_{}".format)
def driver(request, monkeypatch):
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver(request.param))


def compiled(launch):
    return launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.constants)


def spilled_bytes(cubin: bytes, path: Path) -> int:
    """Bytes of local memory that a thread uses, by the toolkit's own count: no kernel has arrays, so all is spilled."""
    path.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (stack, local), *others = re.findall(r"STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert not others, usage
    return int(stack) + int(local)


def check_compiles(launches, tmp_path):
    for launch in launches:
        cubin = compiled(launch).asm["cubin"]
        assert cubin.startswith(b"\x7fELF"), launch
        # ptxas may park a register or two outside the loops to reach its next step of occupancy: 8 bytes.
        assert spilled_bytes(cubin, tmp_path / "kernel.cubin") <= 8, launch

"""Compiles Triton kernels, as their launchers would launch them, to machine code on a machine without a GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from resources import Use, check_use
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


@pytest.fixture(params=[80, 90, 100], ids="sm_{}".format)
def driver(request, monkeypatch):
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver(request.param))


def compiled(launch):
    return launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.constants)


def use_of(kernel, path: Path) -> Use:
    """By the toolkit's own count. No kernel has arrays, so all local memory of a thread is spilled registers."""
    path.write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (registers, stack, local), *others = re.findall(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert not others, usage
    return Use(int(registers), kernel.metadata.shared, int(stack) + int(local))


def check_compiles(launches, tmp_path):
    for launch in launches:
        kernel = compiled(launch)
        assert kernel.asm["cubin"].startswith(b"\x7fELF"), launch
        use = use_of(kernel, tmp_path / "kernel.cubin")
        # ptxas may park a register or two outside the loops to reach its next step of occupancy: 8 bytes.
        assert use.spilled <= 8, launch
        source, arch = Path(launch.kernel.fn.__code__.co_filename).name, kernel.metadata.target.arch
        check_use(f"triton {triton.__version__}", (f"kernels/{source}", kernel.metadata.name, f"sm_{arch}"), use)

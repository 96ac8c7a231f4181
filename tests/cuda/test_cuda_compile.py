"""The CUDA sources compile with nvcc, without a warning, and no kernel spills registers to speak of."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache

import emulate
import pytest
import torch
from resources import Use, check_use

ARCHITECTURES = ("sm_80", "sm_90")
WITHOUT_KERNELS = {"depthwise_conv2d.cu"}  # it runs those of grouped_conv2d.cu
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
@pytest.mark.parametrize("source", sorted(emulate.ROOT.glob("csrc/cuda/*.cu")), ids=lambda path: path.name)
def test_compiles_without_warnings_or_spills(source, tmp_path):
    targets = [f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}" for arch in ARCHITECTURES]
    flags = ["-std=c++20", "-O3", "-DUSE_CUDA", emulate.TARGET, *emulate.INCLUDES, "-Xcompiler=-fPIC"]
    strict = ["-Werror=all-warnings", "-Xptxas=-v", "--threads=2"]  # a thread for each architecture
    command = ["nvcc", "-c", source, "-o", tmp_path / "out.o", *targets, *flags, *strict]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kernels = uses(result.stderr)
    if source.name not in WITHOUT_KERNELS:
        assert {arch for _, arch, _ in kernels} == set(ARCHITECTURES)
    for name, arch, use in kernels:
        # A division that leaves its fast path is a call: ptxas parks a few registers around it.
        assert use.spilled <= 32, result.stderr
        check_use(version(), (f"csrc/cuda/{source.name}", name, arch), use)


@cache
def version() -> str:
    said = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    return "nvcc " + re.search(r"release ([\d.]+)", said)[1]


def uses(log: str) -> list[tuple[str, str, Use]]:
    """Name, architecture and use of each kernel that ptxas -v speaks of; shared memory is what the source declares."""
    kernels = []
    for text in log.split("Compiling entry function ")[1:]:
        mangled, arch = re.match(r"'(\w+)' for '(\w+)'", text).groups()
        name = re.search(r"(\w+)[<(]", torch._C._demangle(mangled).replace("(anonymous namespace)", ""))[1]
        shared = re.search(r"(\d+) bytes smem", text)
        spills = [int(n) for pair in SPILLS.findall(text) for n in pair]
        registers = int(re.search(r"Used (\d+) registers", text)[1])
        kernels.append((name, arch, Use(registers, int(shared[1]) if shared else 0, max(spills))))
    return kernels


LOG = """\
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function '_ZN8fastnets12_GLOBAL__N_13nmsIfEEvPKT_' for 'sm_80'
ptxas info    : Function properties for _ZN8fastnets12_GLOBAL__N_13nmsIfEEvPKT_
    0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 31 registers, used 1 barriers, 16 bytes smem, 388 bytes cmem[0]
ptxas info    : Function properties for __internal_division
    0 bytes stack frame, 0 bytes spill stores, 12 bytes spill loads
ptxas info    : Compiling entry function '_ZN8fastnets5pixelEPf' for 'sm_90'
ptxas info    : Function properties for _ZN8fastnets5pixelEPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""


def test_uses_are_read_from_the_log():
    assert uses(LOG) == [("nms", "sm_80", Use(31, 16, 12)), ("pixel", "sm_90", Use(255, 0, 0))]

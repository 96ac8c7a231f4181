"""Builds the CUDA sources for a CPU, against ``emulation.h``, and lets the backend 'cuda' run on CPU tensors."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

from fastnets._backends import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
EMULATION = Path(__file__).parent
TORCH = Path(torch.__file__).parent
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
INCLUDES = [f"-I{TORCH / 'include'}", f"-I{TORCH / 'include/torch/csrc/api/include'}"]


@cache
def compiler() -> str | None:
    """The C++ compiler, or None."""
    return shutil.which(os.environ.get("CXX", "g++"))


# longjmp between stacks is what a fortified libc takes for an attack.
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", "-DFASTNETS_EMULATE_CUDA", TARGET]


def library_path(name: str, sources: list[Path]) -> Path:
    """Where the library of these sources lies; the name changes with a source, a header, a flag, or torch."""
    digest = hashlib.sha256(" ".join([str(compiler()), torch.__version__, *FLAGS]).encode())
    for path in [
        *sources,
        *sorted(ROOT.glob("csrc/*.h")),
        *sorted(ROOT.glob("csrc/cuda/*.*h")),
        EMULATION / "emulation.h",
    ]:
        digest.update(path.read_bytes())
    return ROOT / "build" / "emulated" / f"{name}-{digest.hexdigest()[:16]}.so"


def build(name: str, sources: list[Path]) -> Path:
    """Builds the emulated library of these CUDA sources if it is not there yet; returns its path."""
    library = library_path(name, sources)
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    for old in library.parent.glob(f"{name}-*.so"):
        old.unlink()
    includes = [*INCLUDES, f"-I{EMULATION}", f"-I{ROOT / 'csrc/cuda'}"]
    libraries = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [compiler(), *FLAGS, *includes, "-x", "c++", *sources, "-x", "none", *libraries, "-o", unfinished]
    subprocess.run([str(word) for word in command], check=True)
    unfinished.replace(library)  # at once, for tests that run side by side
    return library


@cache
def emulate_cuda() -> str | None:
    """Lets backend 'cuda' run on CPU tensors when it is asked for by name; returns None, or why it cannot."""
    if compiler() is None:
        return "no C++ compiler to build the emulated CUDA kernels with"
    torch.ops.load_library(build("cuda", sorted(ROOT.glob("csrc/cuda/*.cu"))))
    BACKENDS["cuda"].devices = {"cpu", "cuda"}
    BACKENDS["cuda"].missing = lambda: None
    return None

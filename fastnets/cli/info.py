"""``fastnets info``: what one pastes into a bug report."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from typing import Any

import torch

import fastnets
from fastnets._backends import BACKENDS
from fastnets._tuning import cpu_name, version
from fastnets.cli._environment import problems
from fastnets.cli._terminal import one_line

EVIDENCE = os.path.join(os.path.dirname(fastnets.__file__), "gpu_evidence.txt")  # by python -m benchmarks.keep
VARIABLES = ("FASTNETS_", "TRITON_INTERPRET", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def add_parser(commands: Any) -> None:
    """Adds the command to ``fastnets``."""
    about = "Says what this installation and this machine are, as for a bug report."
    commands.add_parser("info", help="describe the installation and the machine", description=about).set_defaults(
        run=run
    )


def run(args: argparse.Namespace) -> int:
    """Prints one fact a line; one that cannot be had says why, and the rest still come."""
    facts: dict[str, Callable[[], list[str]]] = {
        "fastnets": lambda: [f"{fastnets.__version__} in {os.path.dirname(fastnets.__file__)}"],
        "torch": lambda: [torch.__version__],
        "triton": lambda: [version("triton")],
        "pillow": lambda: [version("pillow")],
        "python": lambda: [f"{platform.python_version()} ({platform.python_implementation()})"],
        "system": lambda: [platform.platform()],
        "CPU": lambda: [cpu_name()],
        "threads": lambda: [f"{torch.get_num_threads()} of {os.cpu_count()} processors"],
        "GPU": _gpus,
        "build": _build,
        "CPU kernels": _capability,
        "GPU kernels": _gpu_evidence,
        "backends": lambda: [f"{name}: {backend.missing() or 'ok'}" for name, backend in BACKENDS.items()],
        "environment": _environment,
    }
    for name, fact in facts.items():
        try:
            lines = fact() or ["none"]
        except Exception as error:  # noqa: BLE001 - a broken installation is what this command is for
            lines = [f"unknown: {type(error).__name__}: {one_line(error)}"]
        for i, line in enumerate(lines):
            print(f"{name if i == 0 else '':12} {line}")
    return 0


def _gpus() -> list[str]:
    if torch.version.cuda is None:
        return [f"none: torch {torch.__version__} is built without CUDA"]
    if not torch.cuda.is_available():
        return ["none: no GPU is visible to torch"]
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}" for gpu in gpus]


def _build() -> list[str]:
    if missing := BACKENDS["cpu"].missing():
        return [
            missing.removesuffix(" (see `fastnets info`)"),
            "either FASTNETS_BUILD=none or no C++ compiler when fastnets was installed",
        ]
    return str(torch.ops.fastnets_cpu.build_info()).splitlines()


def _capability() -> list[str]:
    return ["none"] if BACKENDS["cpu"].missing() else [str(torch.ops.fastnets_cpu.capability())]


def _gpu_evidence() -> list[str]:
    """How many kernels, and which of each backend, have not run on a GPU as they are here."""
    with open(EVIDENCE, encoding="utf-8") as file:
        known = [line.rstrip("\n").partition(": ") for line in file]
    unproven = [name.split("/") for name, _, words in known if words.startswith("unproven")]
    lines = [f"{len(unproven)} of {len(known)} unproven: no run of their present source on a GPU is known"]
    for backend in sorted({backend for backend, _ in unproven}):
        lines.append(f"{backend}: {', '.join(op for b, op in unproven if b == backend)}")
    return lines


def _environment() -> list[str]:
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)]
    return variables + [f"wrong: {problem}" for problem in problems()]

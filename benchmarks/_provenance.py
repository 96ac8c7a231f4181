"""Where figures come from: commit, machine, versions, date, and how busy the machine was."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from fastnets._tuning import cpu_name, version
from fastnets.cli import info

PACKAGES = ("fastnets", "torch", "triton", "onnx", "onnxruntime", "openvino", "torchvision", "timm", "numpy")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
ROOT = Path(__file__).parents[1]


def provenance() -> dict[str, Any]:
    """All that a reader needs to repeat a run, or to distrust it; call it before the run loads the machine."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "isa": {"torch": torch.backends.cpu.get_cpu_capability(), "fastnets": ", ".join(info._capability())},
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES} | _gpu_versions(),
        "governor": _read(GOVERNOR),
        "load": round(os.getloadavg()[0], 2),
    }


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu_versions() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    return {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version()), "driver": driver()}


def driver() -> str:
    """The version of NVIDIA's driver."""
    said = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return said.split()[0] if said else "unknown"


def _git(*arguments: str) -> str | None:
    return _output("git", *arguments)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None

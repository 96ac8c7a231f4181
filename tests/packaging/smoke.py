"""What an installed wheel must do beside torch alone; `.ci/run` runs it: python smoke.py cpu|reference."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import fastnets

COMMAND = str(Path(sys.executable).parent / "fastnets")


def fastnets_prints(*args: str, code: int = 0) -> str:
    """What ``fastnets <args>`` prints on stdout if it must succeed, on stderr if it must fail."""
    env = os.environ | {"PYTHONWARNINGS": "ignore"}  # torch warns that there is no numpy
    done = subprocess.run([COMMAND, *args], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"fastnets {' '.join(args)} ended with {done.returncode}: {done.stderr}"
    return done.stderr if code else done.stdout


def main(expected: str) -> None:
    for absent in ("triton", "PIL", "numpy"):
        assert importlib.util.find_spec(absent) is None, f"{absent} should not be here"
    assert Path(fastnets.__file__).is_relative_to(sys.prefix), f"{fastnets.__file__} is not the wheel's"

    x, w = torch.randn(2, 8, 9, 7), torch.randn(8, 1, 3, 3)
    y = fastnets.ops.depthwise_conv2d(x, w, padding=1)
    torch.testing.assert_close(y, F.conv2d(x, w, padding=1, groups=8))
    report = fastnets.backend_report()
    assert report["depthwise_conv2d"]["calls"] == {expected: 1}, report

    info = fastnets_prints("info")
    assert "reference" in info and "unknown: " not in info, info
    assert "efficientnet_lite0" in fastnets_prints("models")
    message = fastnets_prints("classify", "photo.jpg", code=2)
    assert "pip install" in message and len(message.splitlines()) == 1, message
    print(f"smoke test: fastnets {fastnets.__version__} runs on backend {expected!r}")


main(sys.argv[1])

"""`import fastnets` is cheap: it brings no package that torch has not brought, and needs none."""

from __future__ import annotations

import subprocess
import sys

import pytest


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_imports_nothing_of_others_beside_torch() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import fastnets
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names) - {"fastnets", "torch"}))
"""
    assert python(code).split() == []


@pytest.mark.parametrize("absent", ["triton", "numpy", "PIL"])
def test_runs_without(absent: str) -> None:
    # None in sys.modules makes a package look as if it were not installed.
    code = f"""
import sys
sys.modules[{absent!r}] = None
import torch, fastnets
print(fastnets.ops.depthwise_conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).item())
"""
    assert python(code) == "4.0\n"

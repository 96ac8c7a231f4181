"""The Python in README.md runs, one snippet after another."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

import fastnets
from fastnets._backends import BACKENDS

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.skipif(BACKENDS["cpu"].missing() is not None, reason="README asks for the CPU kernels")
def test_the_snippets_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(snippets) == 6
    monkeypatch.chdir(tmp_path)
    torch.save(fastnets.create_model("mobilenet_v2").state_dict(), "mobilenet_v2.pth")
    Path("readme.py").write_text("\n".join(snippets), "utf-8")
    try:
        runpy.run_path("readme.py")
    finally:
        fastnets.use_tuning(None)
    assert Path("tuned.json").exists()

"""The files of the project name no machine and no package index."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The brackets keep the pattern from finding itself.
PRIVATE = re.compile(rb"[/](root|home|work|opt)/|[-]-(extra-)?index-url|[-]-find-links|[p]ypi\.org")


def test_no_machine_path_or_index() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    assert files
    found = [
        f"{f.relative_to(ROOT)}: {m[0].decode()}"
        for f in files
        if f.is_file()
        for m in PRIVATE.finditer(f.read_bytes())
    ]
    assert found == []

"""The ledger of GPU runs: where each GPU kernel ran last, tied by a hash to the source that ran. Needs no torch."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

ROOT = Path(__file__).parents[1]
LEDGER = ROOT / "benchmarks" / "results" / "gpu-ledger.json"
FILES = {"triton": "kernels/[!_]*.py", "cuda": "csrc/cuda/*.cu"}
EMULATION = "emulation.h"  # stands in for the CUDA toolkit in tests/cuda; a GPU never sees it


class Malformed(ValueError):
    """The ledger says something that no run can have written."""


@dataclass(frozen=True)
class Entry:
    """A kernel's last GPU run, whose tests passed.

    Attributes:
        hash: of the source that ran, see `source_hash`.
        gpu, driver, torch, triton, cuda: the names and versions of what it ran on.
        date: in UTC, ISO 8601.
        commit: of the working tree, or "unknown".
        tests: how many passed.
        sanitizer: the tools of compute-sanitizer that came to their end and found nothing.
        case: the benchmark that moves the most bytes, or None where none was run.
        seconds: of that case, the median.
        copy_share: its bytes a second over those of a copy in the same run.
    """

    hash: str
    gpu: str
    driver: str
    torch: str
    triton: str
    cuda: str
    date: str
    commit: str
    tests: int
    sanitizer: str
    case: str | None
    seconds: float | None
    copy_share: float | None


Ledger = dict[str, Entry]


def kernels(root: Path = ROOT) -> dict[str, Path]:
    """The file of every GPU kernel by name, "triton/nms" or "cuda/nms"."""
    return {f"{backend}/{path.stem}": path for backend, glob in FILES.items() for path in sorted(root.glob(glob))}


def sources(kernel: Path) -> list[Path]:
    """A kernel's file and all files of the project that it includes or imports, directly or not."""
    found: set[Path] = set()
    todo = [kernel]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += _imported(path) if path.suffix == ".py" else _included(path)
    return sorted(found)


def _included(path: Path) -> list[Path]:
    names = re.findall(r'^\s*#\s*include\s*"(.*)"', path.read_text("utf-8"), re.MULTILINE)
    files = [Path(os.path.normpath(path.parent / name)) for name in names if name != EMULATION]
    # What a header declares is linked in from the source of its name.
    linked = [file.with_suffix(".cu") for file in files if file.suffix == ".h"]
    return files + [file for file in linked if file.exists()]


def _imported(path: Path) -> list[Path]:
    imports = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    modules = [[i.module] if i.module else [alias.name for alias in i.names] for i in imports if i.level]
    return [path.parent / f"{module}.py" for several in modules for module in several]


def source_hash(kernel: Path, root: Path = ROOT) -> str:
    """SHA-256 over the names and contents of a kernel's `sources`."""
    digest = hashlib.sha256()
    for path in sources(kernel):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def hashes(root: Path = ROOT) -> dict[str, str]:
    """The hash of every GPU kernel's present source, by name."""
    return {name: source_hash(path, root) for name, path in kernels(root).items()}


def proven(ledger: Ledger, present: Mapping[str, str]) -> Ledger:
    """The entries of those kernels whose source is still the one that ran; the others are unproven."""
    return {name: entry for name, entry in ledger.items() if present.get(name) == entry.hash}


def merged(ledger: Ledger, passed: Mapping[str, int], run: Mapping[str, Entry]) -> Ledger:
    """The ledger after a run.

    Args:
        ledger: before it.
        passed: of each kernel whose tests came to their end, how many passed on the GPU; 0 if one failed.
        run: what the run has to say of each kernel.

    Returns:
        With a new entry for every kernel that passed, and none for one that failed; the others stay as they were.
    """
    failed = {name for name, count in passed.items() if count == 0}
    new = {name: dataclasses.replace(run[name], tests=count) for name, count in passed.items() if count}
    return {name: entry for name, entry in (ledger | new).items() if name not in failed}


def read(path: Path = LEDGER) -> Ledger:
    """Reads a ledger.

    Raises:
        Malformed: it is no JSON, or a field is missing, unknown, of another type, or no measurement.
    """
    try:
        return {name: _checked(name, Entry(**fields)) for name, fields in json.loads(path.read_text("utf-8")).items()}
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise Malformed(f"{path}: {error}") from error


def _checked(name: str, entry: Entry) -> Entry:
    for field, kind in get_type_hints(Entry).items():
        if not isinstance(getattr(entry, field), kind):
            raise Malformed(f"{name}: {field} is {getattr(entry, field)!r}, not {kind}")
    if name.partition("/")[0] not in FILES or not re.fullmatch("[0-9a-f]{64}", entry.hash):
        raise Malformed(f"{name}: neither {' nor '.join(FILES)}, or no hash: {entry.hash!r}")
    if entry.tests < 1 or not entry.gpu:
        raise Malformed(f"{name}: {entry.tests} tests on {entry.gpu!r} prove nothing")
    measured = entry.case, entry.seconds, entry.copy_share
    if measured != (None, None, None) and (None in measured or not (entry.seconds > 0 < entry.copy_share)):
        raise Malformed(f"{name}: no measurement: {measured}")
    return entry


def write(ledger: Ledger, path: Path = LEDGER) -> None:
    """Writes a ledger, kernels in order."""
    fields = {name: dataclasses.asdict(ledger[name]) for name in sorted(ledger)}
    path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")

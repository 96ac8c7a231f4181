"""``make gpu`` (``python -m benchmarks.gpu [K/N]``): tries the GPU kernels on this machine's GPU, in under ten minutes.

It builds the CUDA kernels for the GPU that is here; runs every op's tests on it (tests/ops/carry.py) and
benchmarks/test_gpu.py on each backend; runs the tests' literal values under compute-sanitizer, as far as the time goes;
and writes the ledger and what is made of it. K/N takes every N-th op. **Written without a GPU: this command has not run
on one yet.**
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks import _ledger
from benchmarks._ledger import FILES, ROOT, Entry

SECONDS = 570
TESTED_WITH = {
    "batch_moments": "sync_batch_norm"
}  # a kernel without a test file of its own -> the op whose file has it
TOOLS = ("memcheck", "racecheck")
LOGS = ROOT / "build" / "gpu"


def part(ops: Sequence[str], which: str) -> Sequence[str]:
    """The K-th of N parts, written "K/N"."""
    try:
        k, n = map(int, which.split("/"))
    except ValueError:
        k, n = 0, 0
    if not 1 <= k <= n:
        raise SystemExit(f"make gpu: PART must be K/N with K from 1 to N, but is {which!r}")
    return ops[k - 1 :: n]


def outcomes(junit: str) -> dict[str, int]:
    """How many tests of each backend ran on the GPU and passed; 0 where one failed. Nothing of one that had none."""
    passed: Counter[str] = Counter()
    failed: set[str] = set()
    for case in ET.fromstring(junit).iter("testcase"):
        said = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        if case.find("failure") is not None or case.find("error") is not None:
            failed |= {said["backend"]} if "backend" in said else FILES.keys()
        elif "ran" in said and case.find("skipped") is None:
            passed[said["ran"]] += 1
    return {backend: 0 if backend in failed else passed[backend] for backend in {*passed, *failed}}


def largest(run: dict[str, Any], op: str) -> dict[str, Any]:
    """The fields of an entry that come from an op's benchmark: its case that moves the most bytes."""
    cases = [b["extra_info"] for b in run["benchmarks"] if b["extra_info"].get("op") == op]
    if not cases:
        return dict.fromkeys(("case", "seconds", "copy_share"))
    case = max(cases, key=lambda c: c["bytes"])
    seconds, copies = case["times"]["fastnets"]["median"], run["fastnets"]["ceilings"]["bandwidth"]
    share = case["bytes"] / seconds / copies[max(copies, key=int)]
    return {"case": f"{case['group']}, {case['case']}", "seconds": seconds, "copy_share": round(share, 4)}


def machine() -> dict[str, str]:
    """The fields of an entry that say what a run ran on."""
    import torch

    from benchmarks._provenance import driver, provenance

    p = provenance()
    versions = {"torch": torch.__version__, "triton": p["versions"]["triton"], "cuda": str(torch.version.cuda)}
    return {"gpu": p["gpu"], "driver": driver(), **versions, "date": p["date"], "commit": p["commit"] or "unknown"}


class Session:
    """The steps of one call, each a process that ends before the call's time does."""

    def __init__(self) -> None:
        self.end = time.monotonic() + SECONDS
        LOGS.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, command: Iterable[object], **variables: str) -> int:
        """Its exit status; a line says it. Interrupted at the end of the time, as by Ctrl-C, it is 124."""
        seconds = max(1, int(self.end - time.monotonic()))
        limited = ["timeout", "--signal=INT", "--kill-after=10", str(seconds), *map(str, command)]
        with (LOGS / f"{name}.log").open("w") as log:
            done = subprocess.run(limited, cwd=ROOT, env=os.environ | variables, stdout=log, stderr=log, check=False)
        print(f"{name}: {'ok' if done.returncode == 0 else f'failed, see {log.name}'}", flush=True)
        return done.returncode

    def pytest(self, name: str, *arguments: object, before: Sequence[str] = (), **variables: str) -> int:
        return self.run(name, [*before, sys.executable, "-m", "pytest", "-rs", *arguments], **variables)

    def build(self) -> bool:
        import torch

        arch = "{}.{}".format(*torch.cuda.get_device_capability())
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-v", "-e", "."]
        return self.run("build", pip, TORCH_CUDA_ARCH_LIST=arch) == 0

    def tests(self, op: str) -> dict[str, int]:
        """The outcomes of an op's tests; nothing where they did not come to their end."""
        junit = LOGS / f"{op}.xml"
        # Most of a test's second is a compiler's: processes on all cores, of one thread each.
        chosen = [f"tests/ops/test_{op}.py", "-k", "cuda or triton", "-n", os.cpu_count(), f"--junitxml={junit}"]
        status = self.pytest(f"tests-{op}", *chosen, FASTNETS_TEST_DEVICE="cuda", OMP_NUM_THREADS="1")
        return outcomes(junit.read_text("utf-8")) if status in (0, 1) else {}  # others have not run all tests

    def sanitize(self, op: str, backend: str) -> str:
        """The tools that find nothing wrong in an op's literal cases."""
        if shutil.which("compute-sanitizer") is None:
            return ""
        clean = []
        for tool in TOOLS:
            checker = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
            chosen = [f"tests/ops/test_{op}.py", "-k", f"literal and {backend}"]
            variables = {"FASTNETS_TEST_DEVICE": "cuda", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            if self.pytest(f"{tool}-{backend}-{op}", *chosen, before=checker, **variables) == 0:
                clean.append(tool)
        return ", ".join(clean)

    def benchmarks(self, ops: Iterable[str], backend: str) -> dict[str, Any]:
        """One run of the ops' benchmarks on a backend, as JSON; one without cases where there is none."""
        file = LOGS / f"{backend}.json"
        file.unlink(missing_ok=True)
        kernels = " or ".join(k for op in ops for k in kernels_of(op))
        chosen = ["benchmarks/test_gpu.py", "-k", kernels, "--device=cuda", f"--benchmark-json={file}"]
        if kernels:
            self.pytest(f"benchmarks-{backend}", *chosen, FASTNETS_BACKEND=backend)
        return json.loads(file.read_text("utf-8")) if file.exists() and file.stat().st_size else {"benchmarks": []}


def kernels_of(op: str) -> list[str]:
    """The names of the kernel files that an op's tests prove."""
    return [op, *(name for name, tested in TESTED_WITH.items() if tested == op)]


def try_kernels(ops: Sequence[str]) -> tuple[dict[str, int], dict[str, Entry]]:
    """How many tests of each kernel passed, and what is to be said of it: the arguments of `_ledger.merged`."""
    session, where, hashes = Session(), machine(), _ledger.hashes()
    if not session.build():
        return {}, {}
    tests = {op: session.tests(op) for op in ops}
    passed = [(op, backend) for op in ops for backend, count in tests[op].items() if count]
    times = {b: session.benchmarks([op for op, backend in passed if backend == b], b) for b in FILES}
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        clean = dict(zip(passed, pool.map(lambda pair: session.sanitize(*pair), passed), strict=True))
    counts = {f"{b}/{k}": n for op in ops for b, n in tests[op].items() for k in kernels_of(op)}
    run = {
        f"{b}/{k}": Entry(hashes[f"{b}/{k}"], **where, tests=0, sanitizer=clean[op, b], **largest(times[b], k))
        for op, b in passed
        for k in kernels_of(op)
    }
    return counts, run


def main(argv: Sequence[str]) -> int:
    """Tries the kernels, all or one part; 0 where all of them are proven after it."""
    ops = sorted({name.partition("/")[2] for name in _ledger.kernels()} - TESTED_WITH.keys())
    ops = part(ops, argv[0]) if argv else ops
    if reason := no_gpu():
        print(f"make gpu: {reason}", file=sys.stderr)
        return 1
    from benchmarks import keep

    _ledger.write(_ledger.merged(_ledger.read(), *try_kernels(ops)))
    keep.main([])
    proven = _ledger.proven(_ledger.read(), _ledger.hashes())
    names = [f"{backend}/{k}" for backend in FILES for op in ops for k in kernels_of(op)]
    unproven = [name for name in names if name in _ledger.kernels().keys() - proven.keys()]
    print(f"unproven: {', '.join(unproven) or 'none'}")
    return 1 if unproven else 0


def no_gpu() -> str | None:
    """Why there is nothing to run on, or None."""
    try:
        from fastnets._backends import _missing_gpu
    except ImportError as error:
        return f"{sys.executable} lacks a package: {error}"
    return _missing_gpu()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m benchmarks.keep [RUN.json]``: keeps a full run in ``results/``, and writes what is made of all that is kept.

That is README's tables, and the evidence of GPU kernels that ``fastnets info`` reads.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import _ledger
from fastnets.cli._terminal import UsageError
from fastnets.cli.bench.run_file import OURS, Case, Run, Spread, geometric_mean, read, title

ROOT = Path(__file__).parents[1]
RESULTS, README = ROOT / "benchmarks" / "results", ROOT / "README.md"
BEGIN, END = "<!-- begin: python -m benchmarks.keep -->\n", "<!-- end: python -m benchmarks.keep -->"
GPU_BEGIN, GPU_END = (mark.replace("keep", "keep: GPU") for mark in (BEGIN, END))
EVIDENCE = ROOT / "fastnets" / "gpu_evidence.txt"
UNPROVEN = "unproven"
COLUMNS = ("op", "group", "case", "candidate", "figure", "unit", "value")
Row = dict[str, str]


def machine(run: Run) -> str:
    """The name of the run's machine, as a file is called; processors of one name may differ in instructions."""
    p = run.provenance
    name = f"{p['gpu'] or p['cpu']} {p['cores']} cores {'' if p['gpu'] else p['isa']['fastnets']}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def rows(run: Run) -> Iterator[Row]:
    """One row for each figure: first where the run comes from, then every case."""
    p = run.provenance
    about = {
        "machine": p["gpu"] or p["cpu"],
        **{name: p[name] for name in ("cores", "threads", "date", "commit", "dirty", "governor", "load")},
    }
    about |= {"instructions": p["isa"]["fastnets"], **p["versions"]}
    about |= {f"warning {i}": warning for i, warning in enumerate(run.warnings, 1)}
    for name, value in about.items():
        yield _row((), "", name, "", str(value))
    for size, bandwidth in run.bandwidth.items():
        yield _row((), "", f"copy of {size >> 20} MiB", "B/s", f"{bandwidth:.4g}")
    for dtype, rate in run.rate.items():
        yield _row((), "", f"product of matrices in {dtype}", "FLOP/s", f"{rate:.4g}")
    for case in run.cases:
        yield from _case(case)


def _case(case: Case) -> Iterator[Row]:
    for name, spread in case.times.items():
        yield from _spread(case, name, "time", "s", spread)
    for name, spread in case.ratios.items():
        yield from _spread(case, name, "ratio", "1", spread)
    yield _row(case.key, case.peer, "ratio to the fastest", "1", f"{case.ratio:.4g}")
    yield _row(case.key, OURS, "floor", "s", f"{case.floor:.4g}")


def _spread(case: Case, name: str, figure: str, unit: str, spread: Spread) -> Iterator[Row]:
    for part in ("median", "p20", "p80"):
        yield _row(case.key, name, f"{figure} {part}", unit, f"{getattr(spread, part):.4g}")


def _row(key: Sequence[str], *rest: str) -> Row:
    return dict(zip(COLUMNS, (*(key or ("", "", "")), *rest), strict=True))


def table(kept: Sequence[Row]) -> str:
    """What README says of one machine, from the rows of its file."""
    about = {row["figure"]: row["value"] for row in kept if not row["op"]}
    where = f"{about['machine']}, {about['threads']} threads, {about['instructions']}, torch {about['torch']}"
    lines = [
        f"{where}, commit {about['commit'][:9]}, {about['date'][:10]}:",
        "",
        "| op | cases | not slower in | geometric mean | least | where it is least |",
        "|---|---|---|---|---|---|",
    ]
    fastest = [row for row in kept if row["figure"] == "ratio to the fastest" and row["op"] != "itself"]
    for op in sorted({row["op"] for row in fastest}):
        ratios = {tuple(row.values())[:4]: float(row["value"]) for row in fastest if row["op"] == op}
        least = min(ratios, key=ratios.__getitem__)
        even = sum(ratio >= 1 for ratio in ratios.values())
        lines.append(
            f"| `{op}` | {len(ratios)} | {even} | {geometric_mean([*ratios.values()]):.2f} | {ratios[least]:.2f} "
            f"| {least[1]}, {least[2]}, against {least[3]} |"
        )
    return "\n".join(lines) + "\n"


def evidence() -> dict[str, str]:
    """What is known of each GPU kernel, by name: where it last ran, or that its present source is unproven."""
    hashes, ledger = _ledger.hashes(), _ledger.read()
    return {name: _in_words(ledger[name], hash) if name in ledger else UNPROVEN for name, hash in hashes.items()}


def _in_words(entry: _ledger.Entry, present: str) -> str:
    if entry.hash != present:
        return f"{UNPROVEN}; before its last change: {_in_words(entry, entry.hash)}"
    share = f", {entry.copy_share:.0%} of copy bandwidth" if entry.copy_share else ""
    return f"{entry.gpu}, torch {entry.torch}, {entry.date[:10]}, {entry.tests} tests{share}"


def gpu_table(known: Mapping[str, str]) -> str:
    """README's table of GPU kernels: a row for each operation, a column for each backend."""
    lines = [f"| GPU kernels | {' | '.join(_ledger.FILES)} |", "|---" * (1 + len(_ledger.FILES)) + "|"]
    for op in sorted({name.partition("/")[2] for name in known}):
        lines.append(f"| `{op}` | {' | '.join(known.get(f'{backend}/{op}', '') for backend in _ledger.FILES)} |")
    return "\n".join(lines) + "\n"


def evidence_file(known: Mapping[str, str]) -> str:
    """What the package carries of it: a line for each kernel."""
    return "".join(f"{name}: {words}\n" for name, words in known.items())


def readme(text: str, results: Path, known: Mapping[str, str]) -> str:
    """README's text with the tables of GPU kernels and of all results between their markers.

    Raises:
        UsageError: the markers are not there.
    """
    tables = [table(_read(path)) for path in sorted(results.glob("*.csv"))]
    text = _between(GPU_BEGIN, GPU_END, text, gpu_table(known))
    return _between(BEGIN, END, text, "\n".join(tables) or "No full run has been kept yet.\n")


def _between(begin: str, end: str, text: str, new: str) -> str:
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    if not (has_begin and has_end):
        raise UsageError(f"README.md lacks the lines {begin.strip()!r} and {end!r}")
    return before + begin + new + end + after


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def _kept(path: Path) -> set[tuple[str, str, str]]:
    """The keys of the cases that a file has figures of."""
    return {(row["op"], row["group"], row["case"]) for row in _read(path) if row["op"] not in ("", "itself")}


def keep(run: Run, results: Path) -> list[Path]:
    """Writes a run's figures to ``results/<machine>.csv``, or, where it lacks ops, each op's to a file ``-<op>.csv``.

    Raises:
        UsageError: it was a quick run, whose figures mean nothing; an interrupted one, or one of files that no commit
            has; or figures of cases that it lacks would be lost. Then nothing is written.
    """
    if run.quick:
        raise UsageError("this was a run with --quick, whose times mean nothing")
    if run.provenance.get("interrupted"):
        raise UsageError(f"this run was interrupted {run.provenance['interrupted']}")
    if run.provenance["dirty"]:
        raise UsageError("the files of this run differ from its commit: commit them and run again")
    results.mkdir(exist_ok=True)
    parts = _parts(run, results / f"{machine(run)}.csv")
    for path, part in parts.items():
        if lost := sorted(_kept(path) - {case.key for case in part.cases}):
            cases = f"{len(lost)} cases that this run lacks, the first is {title(lost[0])}"
            raise UsageError(f"{path.name} has figures of {cases}: run these too, or remove the file")
    for path, part in parts.items():
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows(part))
    return [*parts]


def _parts(run: Run, full: Path) -> dict[Path, Run]:
    """What goes where: all of it into one file, or, of a run of some of the ops, each op into its own."""
    ops = {case.op for case in run.cases} - {"itself"}
    if not (len(ops) == 1 or set() < ops < {op for op, *_ in _kept(full)}):
        return {full: run}
    own = {op: [case for case in run.cases if case.op in (op, "itself")] for op in sorted(ops)}
    return {
        full.with_name(f"{full.stem}-{op.replace(' ', '-')}.csv"): replace(run, cases=cases)
        for op, cases in own.items()
    }


def main(argv: Sequence[str]) -> int:
    """Keeps the run named in ``argv``, if there is one, and rewrites README.md and the package's evidence."""
    try:
        if argv:
            for path in keep(read(argv[0]), RESULTS):
                print(f"wrote {path.relative_to(ROOT)}")
        known = evidence()
        README.write_text(readme(README.read_text("utf-8"), RESULTS, known), encoding="utf-8")
        EVIDENCE.write_text(evidence_file(known), encoding="utf-8")
    except (UsageError, _ledger.Malformed) as error:
        print(f"benchmarks.keep: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

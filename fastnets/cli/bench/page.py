"""The report: one page that needs nothing but itself."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from fastnets.cli.bench.run_file import OURS, Case, Run, geometric_mean, groups, missing, rates, title

if TYPE_CHECKING:
    from fastnets.cli.bench.figures import Drawing


def page(run: Run, drawings: Mapping[str, Drawing]) -> str:
    """The page.

    Args:
        run: what was measured.
        drawings: name -> figure, from ``figures.draw``.
    """
    style = importlib.resources.files(__package__).joinpath("page.css").read_text("utf-8")
    raced = [case for case in run.cases if case.op != "itself"]
    sections = [
        _head(run),
        *([_section("failed", "Cases that failed", _failed(run))] if run.failed else []),
        *(
            _section(name, "A function against itself", _figure(drawings[name]))
            for name in drawings
            if name == "op_itself"
        ),
        _section("summary", "By group", _summary(raced)),
        _section("losses", "Where a peer is faster", _losses(raced)),
        *(_section(name, _title(name), _figure(drawing)) for name, drawing in drawings.items() if name != "op_itself"),
        _section("cases", "Every case, lowest ratio first", _cases(sorted(run.cases, key=lambda c: c.ratio))),
        _section("missing", "Peers that were missing", _missing(run.cases)),
        _section("origin", "Where the figures come from", _origin(run)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>fastnets benchmarks</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _title(drawing: str) -> str:
    kind, _, rest = drawing.partition("_")
    titles = {"roofline": "Against the ceilings", "bandwidth": "Against a copy", "batch": f"{rest} by batch size"}
    return titles.get(kind, rest)


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{escape(name)}">\n<h2>{escape(title)}</h2>\n{content}\n</section>'


def _head(run: Run) -> str:
    p = run.provenance
    where = f"{p['gpu'] or p['cpu']}, {p['threads']} threads, {p['isa']['fastnets']}, torch {p['versions']['torch']}"
    warnings = "".join(f"<li>{escape(note)}</li>" for note in run.warnings)
    return (
        f"<header>\n<h1>fastnets benchmarks</h1>\n<p>{escape(where)}, {escape(p['date'][:10])}</p>\n"
        + (f'<ul class="warning">{warnings}</ul>\n' if run.warnings else "")
        + "<p>A ratio is the time of the fastest peer of the same precision over ours, the median over rounds in which "
        "all take turns: above 1 fastnets is faster. Every result was compared with float64 first.</p>\n</header>"
    )


def _failed(run: Run) -> str:
    rows = (_cell(title(failure.key)) + _cell(failure.message) for failure in run.failed)
    return _table(("case", "what was wrong"), rows)


def _ratio(value: float) -> str:
    return f'<td class="{"win" if value >= 1 else "loss"}">{value:.2f}</td>'


def _table(heads: Iterable[str], rows: Iterable[str]) -> str:
    cells = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return (
        f'<div class="wide"><table>\n<tr>{cells}</tr>\n'
        + "\n".join(f"<tr>{row}</tr>" for row in rows)
        + "\n</table></div>"
    )


def _cell(text: object) -> str:
    return f"<td>{escape(str(text))}</td>"


def _summary(cases: list[Case]) -> str:
    means = {key: geometric_mean([c.ratio for c in members]) for key, members in groups(cases).items()}
    rows = []
    for key, members in sorted(groups(cases).items(), key=lambda item: means[item[0]]):
        least = min(members, key=lambda c: c.ratio)
        share = geometric_mean([c.share for c in members])
        where = _cell(f"{least.case} ({least.peer})")
        name = _cell(": ".join(key))
        rows.append(
            _ratio(means[key]) + _ratio(least.ratio) + name + _cell(len(members)) + where + _cell(f"{share:.0%}")
        )
    heads = ("geometric mean", "least", "op: group", "cases", "where it is least (against)", "share of the ceiling")
    return _table(heads, rows)


def _losses(cases: list[Case]) -> str:
    losses = sorted((case for case in cases if case.ratio < 1), key=lambda case: case.ratio)
    if not losses:
        return "<p>Nowhere.</p>"
    return f"<p>{len(losses)} of {len(cases)} cases.</p>\n" + _cases(losses)


def _cases(cases: Iterable[Case]) -> str:
    heads = ("ratio", "op: group", "case", "ours", "peer", "its time", "20–80 % of the ratio", "floor", "share")
    rows = []
    for c in cases:
        spread = c.ratios[c.peer]
        texts = (
            f"{c.op}: {c.group}",
            c.case,
            duration(c.times[OURS].median),
            c.peer,
            duration(c.times[c.peer].median),
            f"{spread.p20:.2f}–{spread.p80:.2f}{' ⚠' * c.noisy}",
            duration(c.floor),
            f"{c.share:.0%}{', beats its floor: the ceiling is measured too low' * c.beats_floor}",
        )
        rows.append(_ratio(c.ratio) + "".join(map(_cell, texts)))
    return _table(heads, rows)


def _figure(drawing: Drawing) -> str:
    caption = escape(drawing.caption)
    return f'<figure role="img" aria-label="{caption}">\n{drawing.svg()}\n<figcaption>{caption}</figcaption>\n</figure>'


def _missing(cases: Sequence[Case]) -> str:
    rows = ["".join(map(_cell, (*absent, count))) for absent, count in missing(cases).items()]
    return _table(("op", "peer", "why", "cases"), rows) if rows else "<p>None.</p>"


def _origin(run: Run) -> str:
    facts: dict[str, Any] = dict(run.provenance)
    for name in ("isa", "versions"):
        facts[name] = ", ".join(f"{key} {value}" for key, value in facts[name].items())
    facts["governor"] = facts["governor"] or "not readable"
    facts |= {
        "copy": ", ".join(f"{b / 1e9:.0f} GB/s in {size >> 20} MiB" for size, b in sorted(run.bandwidth.items())),
        "product of matrices": ", ".join(f"{rate / 1e9:.0f} GFLOP/s {types}" for rate, types in rates(run).items()),
    }
    return _table(("", ""), (_cell(name) + _cell("none" if v is None else v) for name, v in facts.items()))


def duration(seconds: float) -> str:
    """Seconds as people write them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"

"""The figures of a report, drawn by matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastnets.cli.bench.run_file import OURS, Case, Run, geometric_mean, groups, rates

# Stand-ins that the page replaces by its own colours, which follow the reader's light or dark screen.
INK, GRID = "#010203", "#040506"
LIGHT_GRID = "#d4dae3"  # that of the page on a light screen, for pictures on white
WIN, LOSS = "#2a9d5c", "#d1495b"
COLOURS = ("#3b7dd8", "#e08e2b", "#8e5bd0", "#1fa2a6", "#b8578f", "#7f8c2a", "#a0643c", "#6f7c91")
MARKERS = "o^sD"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fastnets",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


class Drawing:
    """A figure that is to be shown.

    Args:
        figure: what matplotlib has drawn.
        caption: what it shows, for those who do not see it as well.
    """

    def __init__(self, figure: Figure, caption: str) -> None:
        self.figure = figure
        self.caption = caption

    def svg(self) -> str:
        """An ``<svg>`` element that takes its colours from the page."""
        file = io.StringIO()
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = file.getvalue()
        text = text[text.index("<svg") :].replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
        # As wide as the page allows, and read out by its caption.
        return re.sub(r' width="[^"]*"| height="[^"]*"', "", text[: text.index(">")]) + text[text.index(">") :]

    def png(self) -> bytes:
        """The same on white."""
        file = io.BytesIO()
        self._rule_in(LIGHT_GRID)
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(file, format="png", dpi=160, facecolor="white")
        self._rule_in(GRID)
        return file.getvalue()

    def _rule_in(self, colour: str) -> None:
        for axes in self.figure.axes:
            axes.tick_params(which="both", grid_color=colour)
            axes.spines[:].set_color(colour)


def draw(run: Run) -> dict[str, Drawing]:
    """All figures of a run: name -> figure."""
    raced = [case for case in run.cases if case.op != "itself"]
    drawings = {}
    if any(case.flops for case in raced):
        drawings["roofline"] = _roofline(run)
    if raced:
        drawings["bandwidth"] = _bandwidth(run)
    ops = dict.fromkeys(case.op for case in run.cases)
    for op in ops:
        drawings[f"op_{op}"] = _bars(op, [case for case in run.cases if case.op == op])
    batches = [case for case in run.cases if case.op == "networks" and re.fullmatch("batch [1-9][0-9]*", case.case)]
    drawings |= _batches(batches)
    return drawings


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context(STYLE):
        figure = Figure((width, height), layout="constrained")
        yield figure, figure.subplots()


def _bars(op: str, cases: Sequence[Case]) -> Drawing:
    """For each group and peer the mean ratio as a bar from 1, and each case as a dot: losses lie left of the line."""
    rows = []
    for (_, group), members in groups(cases).items():
        peers = dict.fromkeys(peer for case in members for peer in case.ratios)
        by_peer = [(group, peer, [c.ratios[peer].median for c in members if peer in c.ratios]) for peer in peers]
        rows += sorted(by_peer, key=lambda row: geometric_mean(row[2]))
    with _axes(7.2, 0.9 + 0.27 * len(rows) + 0.34 * len({group for group, _, _ in rows})) as (figure, axes):
        y, labels, last = 0.0, [], None
        for group, peer, ratios in rows:
            if group != last:
                labels.append((y + 0.3, group))
                y, last = y + 1.25, group
            mean = geometric_mean(ratios)
            axes.barh(y, mean - 1, left=1, height=0.7, color=WIN if mean >= 1 else LOSS, alpha=0.75, zorder=2)
            axes.scatter(ratios, [y] * len(ratios), s=9, color=[WIN if r >= 1 else LOSS for r in ratios], zorder=3)
            labels.append((y, f"{peer}  {mean:.2f}×"))
            y += 1
        axes.set_yticks([at for at, _ in labels], [text for _, text in labels])
        for label in axes.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() in {group for group, _, _ in rows} else "normal")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(y - 0.3, -0.3)
        axes.grid(False, axis="y")
        _ratio_axis(axes, [r for _, _, ratios in rows for r in ratios])
    return Drawing(figure, f"{op}: how many times as long each peer takes; bars are geometric means, dots are cases.")


def _ratio_axis(axes: Axes, ratios: Sequence[float]) -> None:
    low, high = min(0.8, *ratios) / 1.08, max(1.25, *ratios) * 1.08
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    steps: tuple[float, ...] = (0.001, 0.01, 0.1, 1, 10, 100, 1000)
    if high / low < 100:
        steps = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
    if high / low < 5:
        steps = (0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4)
    ticks = [step for step in steps if low < step < high]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.axvline(1, color=INK, linewidth=1.2, zorder=4)
    axes.set_xlabel("time of the peer / time of fastnets")


def _roofline(run: Run) -> Drawing:
    """Every case that computes by its operations for each byte and a second, under the ceilings."""
    cases = [case for case in run.cases if case.flops and case.op != "itself"]
    sizes = sorted(run.bandwidth)
    with _axes(7.2, 4.8) as (figure, axes):
        intensities = [case.flops / case.bytes for case in cases]
        span = [min(0.05, *intensities) / 2, max(500.0, *intensities) * 2]
        for size, style in ((max(sizes, key=run.bandwidth.__getitem__), ":"), (sizes[-1], "--")):
            bandwidth = run.bandwidth[size]
            where = "out of cache" if size == sizes[-1] else "in cache"
            axes.plot(span, [bandwidth * i for i in span], style, color=INK, linewidth=1, zorder=1)
            where = f"copy {where}, {bandwidth / 1e9:.0f} GB/s"
            axes.annotate(
                where, (span[0], span[0] * bandwidth), xytext=(12, 2), textcoords="offset points", fontsize=8, va="top"
            )
        for rate, types in rates(run).items():
            axes.axhline(rate, color=INK, linewidth=1, alpha=0.6, zorder=1)
            axes.text(span[1] / 1.15, rate * 1.06, f"{types} {rate / 1e9:.0f} GFLOP/s", ha="right", fontsize=8)
        _scatter(axes, run, lambda c: c.flops / c.bytes, lambda c: c.flops / c.times[OURS].median)
        axes.set(xscale="log", yscale="log", xlim=span, xlabel="operations for each byte that must move")
        axes.set_ylim(top=max(run.rate.values()) * 2)
        axes.set_ylabel("operations a second")
        figure.legend(fontsize=8, loc="outside lower center", ncols=5, handletextpad=0.1, columnspacing=0.8)
    caption = "Each case under the ceilings that this run measured; one that lies above them shows they are too low."
    return Drawing(figure, caption)


def _bandwidth(run: Run) -> Drawing:
    """Every case by the bytes that it must move and by how many of them a second, under what a copy reaches."""
    with _axes(7.2, 4.2) as (figure, axes):
        sizes = sorted(run.bandwidth)
        axes.plot(sizes, [run.bandwidth[size] for size in sizes], "--", color=INK, linewidth=1, label="copy")
        _scatter(axes, run, lambda c: c.bytes, lambda c: c.bytes / c.times[OURS].median)
        axes.set(xscale="log", yscale="log", xlabel="bytes that must move", ylabel="bytes a second")
        figure.legend(fontsize=8, loc="outside lower center", ncols=5, handletextpad=0.1, columnspacing=0.8)
    return Drawing(figure, "Each case and a copy that moves as many bytes; what computes much lies below it.")


def _scatter(axes: Axes, run: Run, x: Callable[[Case], float], y: Callable[[Case], float]) -> None:
    ops = [op for op in dict.fromkeys(case.op for case in run.cases) if op != "itself"]
    for i, op in enumerate(ops):
        cases = [case for case in run.cases if case.op == op and y(case)]
        if not cases:  # what only moves bytes has no place under the roof, nor in its legend
            continue
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)]
        axes.scatter(
            [x(c) for c in cases], [y(c) for c in cases], s=16, alpha=0.75, color=colour, marker=marker, label=op,
            linewidths=0,
        )  # fmt: skip


def _batches(cases: Sequence[Case]) -> dict[str, Drawing]:
    """For each network, photos a second by batch size, of each candidate."""
    drawings = {}
    names = dict.fromkeys(name for case in cases for name in case.times)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)} | {OURS: WIN}
    for (_, network), members in groups(cases).items():
        sizes = [int(case.case.removeprefix("batch ")) for case in members]
        with _axes(7.2, 3.8) as (figure, axes):
            for name in names:
                at = [(n, n / c.times[name].median) for n, c in zip(sizes, members, strict=True) if name in c.times]
                if not at:
                    continue
                axes.plot(
                    *zip(*at, strict=True), "o-", label=name, color=colours[name], markersize=4,
                    linewidth=2.6 if name == OURS else 1.3, zorder=4 if name == OURS else 3,
                )  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, map(str, sizes))
            axes.set_ylim(bottom=0)
            axes.set(xlabel="photos in a batch", ylabel="photos a second")
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        drawings[f"batch_{network}"] = Drawing(figure, f"{network}: photos a second by batch size; higher is better.")
    return drawings

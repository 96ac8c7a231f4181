"""``fastnets bench``: what a run of the benchmarks found, as a page and against another run."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any

from fastnets.cli._files import write
from fastnets.cli._terminal import UsageError, printable
from fastnets.cli.bench.compare import print_changes
from fastnets.cli.bench.run_file import read


def add_parser(commands: Any) -> None:
    """Adds the command to ``fastnets``."""
    about = "Shows what `pytest benchmarks --benchmark-json=RUN.json` has measured."
    parser = commands.add_parser("bench", help="report and compare benchmarks", description=about)
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    page = actions.add_parser("report", help="write a page", description="Writes one page that needs no network.")
    page.add_argument("run_file", metavar="RUN.json", help="what --benchmark-json has written")
    page.add_argument("-o", "--output", required=True, metavar="REPORT.html", help="the page")
    page.add_argument("--png", metavar="DIR", help="the figures as well, each in a file")
    page.set_defaults(run=_report)
    changes = actions.add_parser(
        "compare",
        help="what got faster or slower",
        description="Compares two runs by each case's ratio to the same peer; exit code 1 where one got slower or failed.",
    )
    changes.add_argument("old", metavar="OLD.json", help="the earlier run")
    changes.add_argument("new", metavar="NEW.json", help="the later one")
    changes.add_argument(
        "--threshold", type=_percent, default=10.0, metavar="PERCENT", help="what counts as slower (%(default)g)"
    )
    changes.set_defaults(run=_compare)


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage")
    return value


def _report(args: argparse.Namespace) -> int:
    if os.path.realpath(args.output) == os.path.realpath(args.run_file):
        raise UsageError("--output names the run, which it would overwrite")
    run = read(args.run_file)
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("matplotlib is not installed: pip install matplotlib")
    from fastnets.cli.bench import figures, page

    drawings = figures.draw(run)
    write("--output", args.output, page.page(run, drawings).encode())
    if args.png:
        try:
            Path(args.png).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--png: {printable(args.png)} cannot be made: {error.strerror}") from None
        for name, drawing in drawings.items():
            write("--png", os.path.join(args.png, f"{name}.png"), drawing.png())
    return 0


def _compare(args: argparse.Namespace) -> int:
    return print_changes(read(args.old), read(args.new), args.threshold / 100)

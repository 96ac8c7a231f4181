"""The command line: ``fastnets classify``, ``models``, ``summary``, ``info``, ``tune`` and ``bench``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fastnets import __version__
from fastnets._backends import named, requested
from fastnets._tuning import from_environment
from fastnets.cli import bench, classify, info, models, summary, tune
from fastnets.cli._terminal import UsageError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastnets", description="Classic vision networks on fast kernels.")
    parser.add_argument("--version", action="version", version=f"fastnets {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in (classify, models, summary, info, tune, bench):
        command.add_parser(commands)
    return parser


def _check_environment() -> None:
    try:
        if backend := requested.get():
            named(backend, "FASTNETS_BACKEND")
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        from_environment()
    except (OSError, ValueError) as error:
        raise UsageError(f"FASTNETS_TUNING: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after ``fastnets``; None takes them from the command line.

    Returns:
        The exit code: 0, or 1 where a photo failed, 2 for wrong options, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        # A file name need not be text in the terminal's encoding.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        _check_environment()
        code = args.run(args)
        sys.stdout.flush()
    except UsageError as error:
        print(f"fastnets {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fastnets {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone. Python flushes stdout once more at exit: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code

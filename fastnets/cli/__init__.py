"""The command line: ``fastnets classify``, ``models``, ``summary``, ``info``, ``tune`` and ``bench``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fastnets import __version__
from fastnets.cli import _environment, bench, classify, info, models, summary, tune
from fastnets.cli._terminal import UsageError, one_line


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


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the end
        # A file name need not be text in the terminal's encoding.
        getattr(sys, name).reconfigure(errors="backslashreplace")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after ``fastnets``; None takes them from the command line.

    Returns:
        The exit code: 0, or 1 where a photo failed or stdout takes no more, 2 for wrong options, 130 after Ctrl-C.
    """
    _prepare_streams()
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        if args.command != "info" and (problem := next(_environment.problems(), None)):
            raise UsageError(problem)
        code = args.run(args)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"fastnets {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fastnets {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has gone
        code = 141
    except OSError as error:
        print(f"fastnets {args.command}: error: {one_line(error)}", file=sys.stderr)
        code = 1
    # Python flushes stdout once more at exit: let that go nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code

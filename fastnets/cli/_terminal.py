"""What the commands share in talking to a terminal."""

from __future__ import annotations

import argparse
import sys
import time


class UsageError(Exception):
    """The options cannot be followed; the message is the one line that the user reads."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def positive(text: str) -> int:
    """An option's whole number of at least 1, for argparse."""
    if len(text) > 100:
        raise argparse.ArgumentTypeError(f"{text[:10]!r}... has {len(text)} characters, and may have 100")
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def printable(path: str) -> str:
    """A path as one line of text that cannot steer the terminal: control characters are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in path)


def note(message: str) -> None:
    """Prints a line on stderr."""
    print(message, file=sys.stderr, flush=True)


class Progress:
    """A progress bar on stderr, drawn only where somebody sees it and waits.

    Args:
        total: the number of steps; with fewer than ``FEW`` there is no bar.
    """

    FEW = 20
    WIDTH = 30

    def __init__(self, total: int) -> None:
        self.total = total
        self.visible = total >= self.FEW and sys.stderr.isatty()
        self.start = time.monotonic()

    def draw(self, done: int) -> None:
        """Shows ``done`` of the steps as done."""
        if self.visible:
            bar = "█" * (self.WIDTH * done // self.total)
            rate = done / (time.monotonic() - self.start)
            print(
                f"\r\x1b[K{bar:·<{self.WIDTH}} {done}/{self.total}  {rate:.1f}/s ", end="", file=sys.stderr, flush=True
            )

    def clear(self) -> None:
        """Removes the bar, so that a line can be printed in its place."""
        if self.visible:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

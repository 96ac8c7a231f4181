"""Files that commands write: each takes its name only once it is complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastnets.cli._terminal import UsageError, one_line, printable


def write(option: str, path: str, data: bytes) -> None:
    """Puts a file in the place of what stands there, whole or not at all.

    Args:
        option: of the command line, which said where.
        path: where it goes; a link stays one.
        data: what it holds.

    Raises:
        UsageError: it cannot be written there.
    """
    with _part(option, path) as file:
        file.write(data)
        file.close()
        os.replace(file.name, os.path.realpath(path))


def check(option: str, path: str) -> None:
    """Raises what :func:`write` would, before there is anything to write."""
    with _part(option, path):
        pass


@contextlib.contextmanager
def _part(option: str, path: str) -> Iterator[BinaryIO]:
    """A file beside another, which goes away unless it is renamed."""
    if not path:
        raise UsageError(f"{option}: the name of the file is empty")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{option}: {printable(path)} is a directory, a pipe or a device")
    place = Path(os.path.realpath(path))
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            yield file
    except OSError as error:
        why = error.strerror or one_line(error)
        raise UsageError(f"{option}: {printable(path)} cannot be written: {why}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()

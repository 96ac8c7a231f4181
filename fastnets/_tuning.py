"""Which backend is the fastest for a call, as ``fastnets.tune`` measured it before: a table in a file.

The file has a section for each machine that was measured. A section's name says all that a choice depends on, a call's
signature all that a kernel's time does: types, sizes and strides of tensors, and every other argument. Calls that the
section does not have take the first backend that can run them, as they do without a table.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from fastnets._backends import BACKENDS

_KNOWN = 1 << 14  # calls at most whose choice is remembered without their signature

Section = dict[str, dict[str, dict[str, Any]]]  # by op and signature: a backend, and the seconds of all


class Table:
    """Choices, and where they are kept.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.machines = _read(self.path)
        self._sections: dict[Any, Section] = {}
        self._known: dict[Any, str | None] = {}

    def choice(self, op: Any, args: tuple[Any, ...]) -> str | None:
        """The backend for a call of an op (a ``fastnets._op.Op``), or None where the table has none."""
        call = (op.name, _where(args[0].device), *map(_mark, args))
        name = self._known.get(call, "")
        if name == "":
            entry = self._section(args[0].device).get(op.name, {}).get(signature(args))
            name = None if entry is None else entry["backend"]
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[call] = name
        return name

    def _section(self, device: torch.device) -> Section:
        where = _where(device)
        if where not in self._sections:
            name = machine(device)
            if name not in self.machines:
                self._is_missing(name)
            self._sections[where] = _checked(self.machines.setdefault(name, {}), f"{self.path}: {name}")
        return self._sections[where]

    def _is_missing(self, name: str) -> None:
        others = "; ".join(map(repr, self.machines)) or "none"
        warnings.warn(
            f"{self.path} was not tuned on this machine, {name!r}: backends are chosen as without it. It has {others}",
            stacklevel=2,
        )


class Current:
    """What ops look at, in all threads, since gradients are computed in others than the program's.

    Attributes:
        table: None for none.
        is_given: whether the program, or already the environment, has said which.
    """

    table: Table | None = None
    is_given = False


current = Current()


def from_environment() -> None:
    """Takes the table that FASTNETS_TUNING names, unless the program has said which one."""
    if not current.is_given:
        use_tuning(os.environ.get("FASTNETS_TUNING") or None)


def use_tuning(path: str | os.PathLike[str] | None) -> None:
    """Has every op take the backend that :func:`fastnets.tune` found to be the fastest, from now on.

    Calls that the table has no choice for, and those for which a backend is asked for, are as without it. So are the plans
    by which networks of :func:`fastnets.accelerate` run on a CPU: they are made of our kernels only.

    Args:
        path: of the file that ``fastnets.tune`` or ``fastnets tune`` wrote; None takes no table. The environment's
            ``FASTNETS_TUNING=FILE`` says the same.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a file.

    Example:
        >>> import fastnets
        >>> fastnets.use_tuning(None)
    """
    current.table = None if path is None else Table(path)
    current.is_given = True


ignored: ContextVar[bool] = ContextVar("fastnets_tuning_ignored", default=False)


@contextlib.contextmanager
def untuned() -> Iterator[None]:
    """Ops that this thread calls in the block look at no table."""
    token = ignored.set(True)
    try:
        yield
    finally:
        ignored.reset(token)


# ---- what a choice depends on ----------------------------------------------------------------


def machine(device: torch.device) -> str:
    """The processor, the versions and the backends that there are."""
    here = [name for name, b in BACKENDS.items() if b.is_automatic(device.type)]
    if device.type == "cpu":
        processor = f"{cpu_name()}, {torch.get_num_threads()} threads"
        processor += f", {torch.ops.fastnets_cpu.capability()}" if "cpu" in here else ""
    else:
        processor = torch.cuda.get_device_name(device)
    versions = f"fastnets {version('fastnets')}, torch {torch.__version__}, triton {version('triton')}"
    return f"{processor}, {versions}, {' '.join(here)}"


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def signature(args: tuple[Any, ...]) -> str:
    """A call's arguments without the numbers in its tensors. A stride over a single place is none."""
    return ", ".join(map(_sign, args))


def _sign(arg: Any) -> str:
    if isinstance(arg, Tensor):
        sizes = " ".join(map(str, arg.shape))
        strides = " ".join(str(s if n > 1 else 0) for n, s in zip(arg.shape, arg.stride(), strict=True))
        return f"{str(arg.dtype).removeprefix('torch.')}({sizes} by {strides})"
    return f"[{signature(tuple(arg))}]" if isinstance(arg, list | tuple) else repr(arg)


def _where(device: torch.device) -> Any:
    return torch.get_num_threads() if device.type == "cpu" else device


def _mark(arg: Any) -> Any:
    """What tells an argument from others, faster than its signature."""
    if isinstance(arg, Tensor):
        return arg.dtype, arg.shape, arg.stride()
    return tuple(map(_mark, arg)) if isinstance(arg, list | tuple) else (type(arg), arg)


# ---- the file --------------------------------------------------------------------------------


def _read(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        try:
            return dict(json.load(file)["machines"].items())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ValueError(f"{path} is not a table of `fastnets tune`") from None


def _checked(section: Any, what: str) -> Section:
    """A section that has the form of one; those of other machines and versions may have another."""
    try:
        backends = {entry["backend"] for calls in section.values() for entry in calls.values()}
    except (AttributeError, TypeError, KeyError):
        raise ValueError(f"{what} is not a section of a table of `fastnets tune`") from None
    if unknown := backends - BACKENDS.keys():
        raise ValueError(f"{what} names backends that there are not: {', '.join(map(repr, sorted(unknown, key=str)))}")
    return section


def write(path: str, machines: dict[str, Any]) -> None:
    """Puts a table in the place of the file at once: whoever reads it meanwhile has the old one whole."""
    place = os.path.realpath(path)
    part = f"{place}.{os.getpid()}.part"
    try:
        with open(part, "w", encoding="utf-8") as file:
            json.dump({"machines": machines}, file, indent=1)
            file.write("\n")
        os.replace(part, place)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)

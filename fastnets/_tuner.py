"""Measures which backend is the fastest for each call, and keeps it in a table."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fastnets._op import Op
from fastnets._tuning import Table, current, from_environment, machine, signature, write

_ROUNDS = 7
_SLICE = 2e-3  # seconds that a backend runs at a stretch
_HOPELESS = 3  # times as slow as the fastest in its first run: no more are measured
_CLEARLY = 0.95  # of the time of the first backend; what gains less is noise


class Tuner(Table):
    """A table that measures what it does not have.

    Args:
        path: of its file, which need not be there yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        file = os.fspath(path)
        # What cannot be written fails before hours of measurements, not after them.
        write(file, Table(file).machines if os.path.exists(file) else {})
        super().__init__(file)
        self.measured: list[tuple[str, str, str, dict[str, Any]]] = []  # machine, op, signature, entry
        self._one_at_a_time = threading.RLock()  # a backend may call another op

    def choice(self, op: Op, args: tuple[Any, ...]) -> str | None:
        with self._one_at_a_time:
            known = super().choice(op, args)
            if known is not None or not _can_measure(args[0].device):
                return known
            op.check(*args)
            names = [i.name for i in op.automatic[args[0].device.type] if i.why_not is None or not i.why_not(*args)]
            if len(names) < 2:
                return None
            seconds = race({name: _calls(op, name, args) for name in names}, args[0].device)
            kept = {n: float(f"{s:.4g}") if s < math.inf else None for n, s in seconds.items()}
            backend = fastest(seconds)
            call = signature(args)
            entry = {"backend": backend, "seconds": kept}
            self._section(args[0].device).setdefault(op.name, {})[call] = entry
            self._known.clear()  # which has none for it
            self.measured.append((machine(args[0].device), op.name, call, entry))
            return backend

    def save(self) -> None:
        """Adds what was measured to the file, which others may have changed meanwhile."""
        machines = Table(self.path).machines
        for name, op, call, entry in self.measured:
            machines.setdefault(name, {}).setdefault(op, {})[call] = entry
        write(self.path, machines)

    def _is_missing(self, name: str) -> None:
        """Nothing to warn of: it is about to be measured."""


def _can_measure(device: torch.device) -> bool:
    """A graph that is being captured would hold the measurement."""
    return not (device.type == "cuda" and torch.cuda.is_current_stream_capturing())


def _calls(op: Op, name: str, args: tuple[Any, ...]) -> Callable[[], Any]:
    """A call on that backend, on copies of the tensors that the op writes into."""
    written = [a.alias_info is not None and a.alias_info.is_write for a in op.torch_op._schema.arguments]
    implementation = op.implementations[name]

    def call() -> Any:
        copies = [a.clone() if w and isinstance(a, Tensor) else a for a, w in zip(args, written, strict=False)]
        return implementation.fn(*copies)

    return call


def race(calls: dict[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    """Median seconds of each; infinite where memory does not suffice, unless it suffices for none."""

    def run(call: Callable[[], Any], count: int) -> float:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(count):
            call()
        _synchronize(device)
        return (time.perf_counter() - start) / count

    seconds, failed = {}, None
    for name, call in calls.items():
        try:
            run(call, 1)  # compiles
            seconds[name] = run(call, 1)
        except torch.OutOfMemoryError as error:
            seconds[name], failed = math.inf, error
    best = min(seconds.values())
    if failed and best == math.inf:
        raise failed
    runners = [name for name in calls if seconds[name] <= _HOPELESS * best]
    if len(runners) > 1:
        times: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(_ROUNDS):
            for name in runners:
                times[name].append(run(calls[name], max(1, int(_SLICE / seconds[name]))))
        seconds.update({name: median(t) for name, t in times.items()})
    return seconds


def fastest(seconds: dict[str, float]) -> str:
    """The backend of the least time, or the first one where that gains no more than noise would."""
    first, best = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
    return best if seconds[best] < _CLEARLY * seconds[first] else first


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextlib.contextmanager
def tune(path: str | os.PathLike[str]) -> Iterator[Tuner]:
    """Measures, for every call of an op in the block, which backend is the fastest here, and keeps that in a file.

    A call is known by its op, the types, sizes and strides of its tensors and its other arguments; one that the file has
    for this machine is not measured again, and takes the backend that it names. Forward and backward passes are calls of
    different ops. Where backends differ by less than 5 %, the one that would be taken without a table stays. Nothing is
    measured while a CUDA graph is captured: run the model once before. The block holds for calls of all threads, so no two
    may overlap but one within the other.

    Args:
        path: of a JSON file, made if it is not there and added to if it is. A machine is its processor, versions of
            fastnets, torch and triton and the backends there are; on a CPU, threads and instruction set too. A file may
            have several.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: it is there and is not such a file.

    Example:
        >>> import os, tempfile, torch, fastnets
        >>> path = os.path.join(tempfile.mkdtemp(), "tuned.json")
        >>> with fastnets.tune(path):
        ...     _ = fastnets.ops.channel_shuffle(torch.ones(1, 6, 4, 4), 3)
        >>> fastnets.use_tuning(path)  # in the program that is deployed, or FASTNETS_TUNING=tuned.json
        >>> fastnets.use_tuning(None)
    """
    from_environment()
    before, current.table = current.table, (tuner := Tuner(path))
    try:
        yield tuner
    finally:
        current.table = before
        if tuner.measured:
            tuner.save()

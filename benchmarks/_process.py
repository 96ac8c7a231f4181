"""A candidate in a process of its own, which is stopped while others run.

ONNX Runtime and OpenVINO leave threads spinning on the cores of the next candidate: in one process MobileNetV2 took
9.1 ms in OpenVINO, alone 4.3. A stopped process has no running threads.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import time
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks import _runtimes
from benchmarks._candidate import Candidate

PAUSE = 2e-3  # seconds in which this process's own threads end their spinning


class Process:
    """A process that runs one model at a time.

    Args:
        runtime: a key of ``_runtimes.RUNTIMES``.
    """

    _all: ClassVar[dict[str, Process]] = {}

    def __init__(self, runtime: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_runtimes.serve, args=(runtime, there))
        self._process.start()
        there.close()
        self._all[runtime] = self

    @classmethod
    def of(cls, runtime: str) -> Process:
        """The running process of this runtime, or a new one."""
        return cls._all.get(runtime) or cls(runtime)

    def ask(self, *request: Any) -> Any:
        """Wakes the process for one request.

        Raises:
            RuntimeError: the request failed there.
        """
        os.kill(self._process.pid, signal.SIGCONT)
        time.sleep(PAUSE)
        try:
            self._here.send(request)
            done, answer = self._here.recv()
        except (EOFError, BrokenPipeError):
            raise RuntimeError(f"{self._process.name} has ended with exit code {self._process.exitcode}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGSTOP)
        if not done:
            raise RuntimeError(answer)
        return answer

    @classmethod
    def end_all(cls) -> None:
        """Ends all of them."""
        while cls._all:
            _, process = cls._all.popitem()
            process._process.kill()  # of all signals the only one that a stopped process follows
            process._process.join()


atexit.register(Process.end_all)


class Remote(Candidate):
    """A model in a runtime's own process.

    Args:
        runtime: a key of ``_runtimes.RUNTIMES``.
        model: ONNX.
        inputs: by name.
        precision: of the arithmetic.
    """

    def __init__(self, runtime: str, model: bytes, inputs: dict[str, Tensor], precision: str = "float32") -> None:
        self.precision = precision
        self._process = Process.of(runtime)
        arrays = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
        self._process.ask("load", model, arrays, torch.get_num_threads())

    def result(self) -> tuple[Tensor, ...]:
        """What a call has left in memory at the moment it returns."""
        return tuple(torch.from_numpy(array) for array in self._process.ask("result"))

    def block(self, calls: int, warm: float) -> float:
        """Seconds of one call, the mean of ``calls`` in a row after ``warm`` seconds of others."""
        return self._process.ask("block", calls, warm)

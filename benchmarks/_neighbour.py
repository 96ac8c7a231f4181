"""Another process that never rests, and counts what it gets done. It imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any


class Neighbour:
    """Keeps a core busy until it is ended."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._done = context.Value("Q", lock=False)
        self._process = context.Process(target=_work, args=(self._done,), daemon=True)
        self._process.start()
        while not self._done.value:
            time.sleep(1e-3)

    def rate(self, during: Callable[[], object]) -> float:
        """What it gets done in a second while ``during`` runs."""
        before, start = self._done.value, time.perf_counter()
        during()
        return (self._done.value - before) / (time.perf_counter() - start)

    def end(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.join()


def _work(done: Any) -> None:
    parent = os.getppid()
    while os.getppid() == parent:  # whoever was killed must not leave it behind
        done.value += 1

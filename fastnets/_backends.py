"""Which implementation runs: what this machine has, and what the caller asked for.

An op has up to four implementations of one meaning, and each lives on a backend:

=========  ==============================================  ========================
name       what it is                                      needs
=========  ==============================================  ========================
cpu        C++ in ``fastnets._C``                          a C++ compiler at install
cuda       CUDA C++ in ``fastnets._C_cuda``                nvcc at install, a GPU
triton     Triton kernels in ``fastnets.kernels``          triton, a GPU
reference  PyTorch ops, the meaning the others must match  nothing
=========  ==============================================  ========================

Left alone, an op takes the first backend in that order that can run the call. A backend asked for
by name either runs or raises with every reason why not.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache

import torch


class Backend:
    """One room that implementations live in.

    Args:
        name: what the user calls it.
        devices: device types it runs on when asked for by name; None means all.
        automatic: device types on which it is considered when nobody asked; None means all.
        missing: returns why it cannot be used on this machine at all, or None.
    """

    def __init__(
        self,
        name: str,
        devices: set[str] | None,
        automatic: set[str] | None,
        missing: Callable[[], str | None],
    ) -> None:
        self.name = name
        self.devices = devices
        self.automatic = automatic
        self.missing = missing

    def why_not(self, device: str) -> list[str]:
        """Every reason why it cannot run on ``device``; an empty list means that it can."""
        reasons = []
        if missing := self.missing():
            reasons.append(missing)
        if self.devices is not None and device not in self.devices:
            wanted = " or ".join(sorted(self.devices))
            reasons.append(f"the tensors are on {device}, it runs on {wanted}")
        return reasons

    def is_automatic(self, device: str) -> bool:
        """Whether it is considered on ``device`` when nobody asked, and can run there."""
        return (self.automatic is None or device in self.automatic) and not self.why_not(device)


def load(library: str) -> str | None:
    """Loads ``fastnets/<library>``; returns None, or why it cannot be loaded."""
    spec = importlib.util.find_spec(f"fastnets.{library}")
    if spec is None or spec.origin is None:
        return f"fastnets.{library} is not built (see `fastnets info`)"
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        return f"fastnets.{library} does not load with torch {torch.__version__}: {error}"
    return None


@cache
def _missing_cpu() -> str | None:
    return load("_C")


@cache
def _missing_cuda() -> str | None:
    return _missing_gpu() or load("_C_cuda")


@cache
def _missing_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None if INTERPRETED else _missing_gpu()


def _missing_gpu() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return None if torch.cuda.is_available() else "no GPU is visible to torch"


# Triton's own switch: kernels run as Python on CPU tensors, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("cpu", {"cpu"}, {"cpu"}, _missing_cpu),
        Backend("cuda", {"cuda"}, {"cuda"}, _missing_cuda),
        Backend("triton", {"cuda", "cpu"} if INTERPRETED else {"cuda"}, {"cuda"}, _missing_triton),
        Backend("reference", None, None, lambda: None),
    )
}


def named(name: str, source: str) -> str:
    """The name itself if there is such a backend; ``source`` is what gave it."""
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, but is {name!r}")
    return name


# What the environment says is looked at by the first op, not by the import.
requested: ContextVar[str | None] = ContextVar("fastnets_backend", default=os.environ.get("FASTNETS_BACKEND") or None)


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Runs every op inside the ``with`` block, and its backward, on one backend and no other.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"triton"``, ``"reference"``, or None to choose freely again.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: (from the op) that backend cannot run the call; the message lists why.

    Example:
        >>> import torch, fastnets
        >>> x, w = torch.ones(1, 2, 3, 3), torch.ones(2, 1, 3, 3)
        >>> with fastnets.use_backend("reference"):
        ...     fastnets.ops.depthwise_conv2d(x, w).flatten().tolist()
        [9.0, 9.0]
    """
    token = requested.set(None if name is None else named(name, "the backend"))
    try:
        yield
    finally:
        requested.reset(token)

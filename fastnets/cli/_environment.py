"""What the environment's variables ask for, looked at before a command runs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from fastnets._backends import named, requested
from fastnets._tuning import from_environment

CAPABILITIES = ("default", "avx2", "avx512")  # as in csrc/cpu/capability.cpp


def problems() -> Iterator[str]:
    """What there is not, a line each."""
    try:
        if backend := requested.get():
            named(backend, "FASTNETS_BACKEND")
    except ValueError as error:
        yield str(error)
    try:
        from_environment()
    except (OSError, ValueError) as error:
        yield f"FASTNETS_TUNING: {error}"
    capability = os.environ.get("FASTNETS_CPU_CAPABILITY")
    if capability and capability not in CAPABILITIES:
        yield f"FASTNETS_CPU_CAPABILITY must be one of {', '.join(CAPABILITIES)}, but is {capability!r}"

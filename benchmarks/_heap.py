"""The C library's memory, alike for all candidates."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_memory() -> None:
    """Makes the C library keep freed memory.

    It gives large results back to the system and maps new pages for the next one, or does not, by heuristics that
    depend on what other candidates allocated. When it keeps them, for all, no candidate is charged for page faults.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)

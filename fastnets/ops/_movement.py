"""What ops that only move data share: arguments as PyTorch takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def as_int(value: Any, pytorch: Callable[[Tensor, Any], Tensor], x: Tensor) -> int:
    """An argument that PyTorch's function takes for an int; what it does not, it refuses with its own message."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        pytorch(x, value)
        return int(value)
    return value  # type: ignore[return-value]  # a SymInt while tracing

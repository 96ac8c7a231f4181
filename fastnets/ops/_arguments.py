"""Arguments of a wrong type, which an op looks for where a call has failed: others pay nothing for it."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

# What a call raises that is given one, wherever that is noticed.
WRONG_TYPE = (AttributeError, RuntimeError, TypeError)

_KINDS = {"Tensor": Tensor, "int": Integral, "float": Real, "bool": bool, "str": str, "None": type(None)}


def refuse_types(op: Callable[..., Any], *args: Any) -> None:
    """Raises TypeError, in PyTorch's words, if an argument is not what the public function's annotation says."""
    for (name, expected), value in zip(op.__annotations__.items(), args, strict=False):
        if not isinstance(value, tuple(_KINDS.get(kind, object) for kind in expected.split(" | "))):
            got = type(value).__name__
            raise TypeError(f"{op.__name__}(): argument '{name}' must be {expected}, not {got}") from None


def refuse_types_as(pytorch: Callable[..., Any], *args: Any) -> None:
    """Raises what PyTorch's function raises if an argument is not of its types; it computes nothing."""
    try:
        pytorch(*(torch.empty(0) if isinstance(a, Tensor) and a.dim() > 0 else a for a in args))
    except (AttributeError, TypeError, ValueError) as error:
        raise error from None
    except (IndexError, RuntimeError):  # of the shapes, which are others here
        pass

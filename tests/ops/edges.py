"""What surrounds the numbers of a call: the error of a bad one, threads, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def error_of(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[type[BaseException], str]:
    """Type and text of what a bad call raises."""
    with pytest.raises(Exception) as error:
        fn(*args, **kwargs)
    return type(error.value), str(error.value)

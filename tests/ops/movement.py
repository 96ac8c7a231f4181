"""What the tests of ops that only move data share."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OTHERS = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64),
    *(torch.complex32, torch.complex64, torch.complex128, torch.float8_e4m3fn),
)
SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def of_type(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random bits as a type, and as another of that size whose numbers equal themselves and which PyTorch moves."""
    size = torch.empty((), dtype=dtype).element_size()
    other = SAME_SIZE[size]
    if size == 16:
        x = torch.randn(shape, dtype=other)
    elif dtype == torch.bool:
        x = torch.randint(0, 2, shape, dtype=other)
    else:
        x = torch.randint(torch.iinfo(other).min, torch.iinfo(other).max, shape, dtype=other)
    return x.view(dtype), x

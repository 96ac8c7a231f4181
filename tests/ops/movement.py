"""What the tests of ops that only move data share."""

from __future__ import annotations

from itertools import product

import numpy as np
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


def more_than_2_to_31(layout: torch.memory_format, dtype: type = np.uint8, n: int = 33) -> Tensor:
    """n images of 2^26 numbers: zeros that no memory holds until they are written, but for the rows 5 and 1023.

    Those tell by image, channel, row and column; in a floating type they are bytes over 255.
    """
    x = torch.from_numpy(np.zeros(n << 26, dtype))
    last = layout == torch.channels_last
    x = x.view(n, 1024, 1024, 64).permute(0, 3, 1, 2) if last else x.view(n, 64, 1024, 1024)
    image, channel, row, column = (torch.arange(size) for size in x.shape)
    for r in (5, 1023):
        tell = (67 * image.view(-1, 1, 1) + 3 * channel.view(-1, 1) + 5 * row[r] + column).to(torch.uint8)
        x[:, :, r] = tell / 255 if x.is_floating_point() else tell
    return x


# Images before and behind number 2^31 of more_than_2_to_31, and the rows that tell.
PLACES = list(product((0, 31, 32), (slice(5, 6), slice(1023, 1024))))

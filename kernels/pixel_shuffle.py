"""Pixel shuffle, its inverse and the shuffle into bytes: what the axes of the copy are (``_strided_copy.py``)."""

from __future__ import annotations

import torch
from torch import Tensor

from ._launch import Launch
from ._strided_copy import Axis, copy_launches, inverted


def pixel_shuffle_fwd(x: Tensor, y: Tensor, r: int) -> None:
    """Writes y[n, c, h * r + i, w * r + j] = x[n, c * r * r + i * r + j, h, w]; as bytes where y is of these and x not."""
    for launch in pixel_shuffle_launches(x, y, r):
        launch.run()


def pixel_unshuffle_fwd(x: Tensor, y: Tensor, r: int) -> None:
    """Writes y[n, c * r * r + i * r + j, h, w] = x[n, c, h * r + i, w * r + j]."""
    for launch in pixel_unshuffle_launches(x, y, r):
        launch.run()


def pixel_shuffle_launches(x: Tensor, y: Tensor, r: int) -> list[Launch]:
    """The kernel that writes y, unless that is empty."""
    return copy_launches(x, y, _axes(x, y, r), quantise=y.dtype == torch.uint8 and x.is_floating_point())


def pixel_unshuffle_launches(x: Tensor, y: Tensor, r: int) -> list[Launch]:
    """The kernel that writes y, unless that is empty."""
    return copy_launches(x, y, inverted(_axes(y, x, r)))


def _axes(coarse: Tensor, fine: Tensor, r: int) -> list[Axis]:
    s, t = coarse.stride(), fine.stride()
    return [
        Axis(fine.shape[0], s[0], t[0]),
        Axis(fine.shape[1], r * r * s[1], t[1]),
        Axis(coarse.shape[2], s[2], r * t[2]),
        Axis(coarse.shape[3], s[3], r * t[3]),
        Axis(r, r * s[1], t[2]),
        Axis(r, s[1], t[3]),
    ]

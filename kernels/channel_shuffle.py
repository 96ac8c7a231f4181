"""Channel shuffle and the fused concatenate, shuffle, split: what the axes of the copy are (``_strided_copy.py``)."""

from __future__ import annotations

from torch import Tensor

from ._launch import Launch
from ._strided_copy import Axis, copy_launches, inverted


def channel_shuffle_fwd(x: Tensor, y: Tensor, groups: int) -> None:
    """Writes y[:, i * groups + j] = x[:, j * (c / groups) + i]."""
    for launch in channel_shuffle_launches(x, y, groups):
        launch.run()


def shuffle_split_fwd(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], inverse: bool) -> None:
    """Writes channel t of both of y, taken as one: channel t // 2 of x[t % 2]; inverse: the way back."""
    for launch in shuffle_split_launches(x, y, inverse):
        launch.run()


def channel_shuffle_launches(x: Tensor, y: Tensor, groups: int) -> list[Launch]:
    """The kernel that writes y, unless that is empty."""
    each, source, result = x.shape[1] // groups, x.stride(1), y.stride(1)
    channels = [Axis(each, source, groups * result), Axis(groups, each * source, result)]
    return copy_launches(x, y, _pixels(x, y) + channels)


def shuffle_split_launches(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], inverse: bool) -> list[Launch]:
    """A kernel for each pair of source and result."""
    apart, mixed = (y, x) if inverse else (x, y)
    launches = []
    for result in range(2):
        for source in range(2):
            a, m = apart[source], mixed[result]
            c = a.shape[1]
            first = (result * c + source) % 2  # the first channel of this result that comes from this source
            count = (c - first + 1) // 2
            a, m = a[:, (result * c + first) // 2 :][:, :count], m[:, first::2]
            axes = [*_pixels(a, m), Axis(count, a.stride(1), m.stride(1))]
            launches += copy_launches(m, a, inverted(axes)) if inverse else copy_launches(a, m, axes)
    return launches


def _pixels(x: Tensor, y: Tensor) -> list[Axis]:
    """Batch, rows and columns."""
    return [Axis(x.shape[i], x.stride(i), y.stride(i)) for i in (0, 2, 3)]

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
    """One kernel, or where halves do not match one for each pair of source and result."""
    apart, mixed = (y, x) if inverse else (x, y)
    c = apart[0].shape[1]
    if c % 2 == 0 and all(t[0].stride() == t[1].stride() for t in (x, y)):
        a, m = apart[0], mixed[0]
        channels = [Axis(c // 2, a.stride(1), 2 * m.stride(1)), Axis(2, _distance(apart), m.stride(1))]
        return _launches(a, m, [*_pixels(a, m), *channels, Axis(2, c // 2 * a.stride(1), _distance(mixed))], inverse)
    launches = []
    for result in range(2):
        for source in range(2):
            first = (result * c + source) % 2  # the first channel of this result that comes from this source
            count = (c - first + 1) // 2
            a, m = apart[source][:, (result * c + first) // 2 :][:, :count], mixed[result][:, first::2]
            launches += _launches(a, m, [*_pixels(a, m), Axis(count, a.stride(1), m.stride(1))], inverse)
    return launches


def _launches(a: Tensor, m: Tensor, axes: list[Axis], inverse: bool) -> list[Launch]:
    return copy_launches(m, a, inverted(axes)) if inverse else copy_launches(a, m, axes)


def _distance(t: tuple[Tensor, Tensor]) -> int:
    return (t[1].data_ptr() - t[0].data_ptr()) // t[0].itemsize


def _pixels(x: Tensor, y: Tensor) -> list[Axis]:
    """Batch, rows and columns."""
    return [Axis(x.shape[i], x.stride(i), y.stride(i)) for i in (0, 2, 3)]

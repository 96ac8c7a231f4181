"""Channel shuffle, alone and fused with the concatenation and the split around it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnets._op import Op
from fastnets.ops._arguments import WRONG_TYPE, refuse_types, refuse_types_as
from fastnets.ops._convolution import empty, memory_format
from fastnets.ops._movement import as_int

# ---- schema ----------------------------------------------------------------------------------


def _check(x: Tensor, groups: int) -> None:
    if x.dim() != 4 or groups < 1 or x.shape[1] % groups != 0:
        F.channel_shuffle(x, groups)  # PyTorch's own message
        raise RuntimeError(f"channel_shuffle expects input (n, c, h, w), but got input {tuple(x.shape)}")


def _check_split(a: Tensor, b: Tensor, inverse: bool) -> None:
    if a.dim() != 4 or a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        raise RuntimeError(
            "shuffle_split expects two tensors (n, c, h, w) of one shape, type and device, but got "
            f"{tuple(a.shape)} of {a.dtype} on {a.device} and {tuple(b.shape)} of {b.dtype} on {b.device}"
        )


op = Op("channel_shuffle(Tensor x, SymInt groups) -> Tensor", _check)
# inverse: from the two results back to a and b.
op_split = Op("shuffle_split(Tensor a, Tensor b, bool inverse) -> (Tensor, Tensor)", _check_split)

# ---- reference -------------------------------------------------------------------------------


@op.backend("reference")
def _reference(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    y = x.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(x.shape)
    return y.clone(memory_format=memory_format(x))


@op_split.backend("reference")
def _reference_split(a: Tensor, b: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    n, c, h, w = a.shape
    both = torch.cat((a, b), 1).reshape((n, c, 2, h, w) if inverse else (n, 2, c, h, w))
    first, second = both.transpose(1, 2).reshape(n, 2 * c, h, w).chunk(2, 1)
    format = memory_format(a)
    return first.clone(memory_format=format), second.clone(memory_format=format)


# ---- backends --------------------------------------------------------------------------------

for _op in (op, op_split):
    for _name in ("cpu", "cuda"):
        _op.native(_name)


@op.backend("triton")
def _triton(x: Tensor, groups: int) -> Tensor:
    from fastnets.kernels.channel_shuffle import channel_shuffle_fwd

    y = _fake(x, groups)
    channel_shuffle_fwd(x, y, groups)
    return y


@op_split.backend("triton")
def _triton_split(a: Tensor, b: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    from fastnets.kernels.channel_shuffle import shuffle_split_fwd

    y = _fake_split(a, b, inverse)
    shuffle_split_fwd((a, b), y, inverse)
    return y


# ---- fake ------------------------------------------------------------------------------------


@op.fake
def _fake(x: Tensor, groups: int) -> Tensor:
    return empty(x, x.shape)


@op_split.fake
def _fake_split(a: Tensor, b: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    return empty(a, a.shape), empty(a, a.shape)


# ---- autograd --------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, groups = inputs
    # A shuffle by the number of channels in a group undoes one by the number of groups.
    ctx.groups, ctx.format = max(1, x.shape[1] // groups), memory_format(x)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return op(dy.contiguous(memory_format=ctx.format), ctx.groups), None


def _setup_split(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    a, _, ctx.inverse = inputs
    ctx.format = memory_format(a)


def _backward_split(ctx: Any, *dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    # Only numbers change places: the gradients take the way back.
    da, db = op_split(*(d.contiguous(memory_format=ctx.format) for d in dy), not ctx.inverse)
    need_da, need_db, _ = ctx.needs_input_grad
    return da if need_da else None, db if need_db else None, None


op.autograd(_backward, _setup)
op_split.autograd(_backward_split, _setup_split)

# ---- public functions ------------------------------------------------------------------------


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    r"""Rearranges channels so that those of all groups follow each other in turn.

    .. math::
        y_{n,\; i g + j} = x_{n,\; j (c / g) + i}, \qquad 0 \le j < g

    Args:
        input: (n, c, ...) of at least three dimensions, any type; contiguous, channels_last or any other strides.
        groups: g, which divides c.

    Returns:
        The shape, type and layout of input. Allocates nothing else of that size.

    Raises:
        RuntimeError, TypeError: as ``F.channel_shuffle``, with the same messages.

    Paper: X. Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices",
    2017, https://arxiv.org/abs/1707.01083

    Example:
        >>> import torch
        >>> from fastnets.ops import channel_shuffle
        >>> channel_shuffle(torch.arange(6.0).view(1, 6, 1, 1), 2).flatten().tolist()
        [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """
    try:
        if input.dim() != 4 or type(groups) is not int:
            return _any_shape(input, as_int(groups, F.channel_shuffle, input))
    except AttributeError:
        refuse_types_as(F.channel_shuffle, input, groups)
        raise
    return op(input, groups)


def _any_shape(input: Tensor, groups: int) -> Tensor:
    if input.dim() < 3:
        return F.channel_shuffle(input, groups)  # which raises
    # Of more than two dimensions after the channels all but the last are one.
    images = input.unsqueeze(-1) if input.dim() == 3 else input.flatten(2, -2)
    return op(images, groups).view(input.shape)


def shuffle_split(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""Concatenates two tensors, shuffles their channels by two groups and splits them in halves, in one pass.

    .. math::
        (y_0, y_1)_{n,\, t} = \begin{cases} a_{n,\, t / 2} & t \text{ even} \\
                               b_{n,\, (t - 1) / 2} & t \text{ odd} \end{cases}, \qquad 0 \le t < 2 c

    where the channels of y_1 are counted after those of y_0. It is ``channel_shuffle(cat((a, b), 1), 2).chunk(2, 1)``,
    which ends every unit of ShuffleNetV2 and begins the next, but both results are dense.

    Args:
        a: (n, c, h, w), any type; contiguous, channels_last or any other strides.
        b: of a's shape, type and device.

    Returns:
        y_0 and y_1, both of the shape, type and layout of a. Allocates nothing else of that size.

    Raises:
        RuntimeError: shapes, types or devices differ, or are not of four dimensions.
        TypeError: an argument is no tensor.

    Paper: N. Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018,
    https://arxiv.org/abs/1807.11164

    Example:
        >>> import torch
        >>> from fastnets.ops import shuffle_split
        >>> a = torch.arange(4.0).view(1, 4, 1, 1)
        >>> [y.flatten().tolist() for y in shuffle_split(a, a + 10)]
        [[0.0, 10.0, 1.0, 11.0], [2.0, 12.0, 3.0, 13.0]]
    """
    try:
        return op_split(a, b, False)
    except WRONG_TYPE:
        refuse_types(shuffle_split, a, b)
        raise

"""Pixel shuffle, its inverse, and the shuffle of an image into bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnets._op import Op
from fastnets.ops._arguments import refuse_types_as
from fastnets.ops._convolution import FLOATS, empty, memory_format
from fastnets.ops._movement import as_int

# ---- schema ----------------------------------------------------------------------------------


def _check(x: Tensor, r: int) -> None:
    if x.dim() != 4 or r < 1 or x.shape[1] % (r * r) != 0 or r >= 2**31:
        F.pixel_shuffle(x, r)  # PyTorch's own message
        raise RuntimeError(f"pixel_shuffle expects input (n, c, h, w), but got input {tuple(x.shape)}")


def _check_inverse(x: Tensor, r: int) -> None:
    if x.dim() != 4 or r < 1 or x.shape[2] % r != 0 or x.shape[3] % r != 0 or r >= 2**31:
        F.pixel_unshuffle(x, r)
        raise RuntimeError(f"pixel_unshuffle expects input (n, c, h, w), but got input {tuple(x.shape)}")


def _check_to_uint8(x: Tensor, r: int) -> None:
    _check(x, r)
    if x.dtype not in FLOATS:
        raise RuntimeError(f"pixel_shuffle_to_uint8 expects float32, float64, bfloat16 or float16, but got {x.dtype}")


op = Op("pixel_shuffle(Tensor x, SymInt r) -> Tensor", _check)
op_inverse = Op("pixel_unshuffle(Tensor x, SymInt r) -> Tensor", _check_inverse)
op_to_uint8 = Op("pixel_shuffle_to_uint8(Tensor x, SymInt r) -> Tensor", _check_to_uint8)


def _fine(x: Tensor, r: int) -> tuple[int, ...]:
    n, c, h, w = x.shape
    return n, c // (r * r), h * r, w * r


def _coarse(x: Tensor, r: int) -> tuple[int, ...]:
    n, c, h, w = x.shape
    return n, c * r * r, h // r, w // r


# ---- reference -------------------------------------------------------------------------------


@op.backend("reference")
def _reference(x: Tensor, r: int) -> Tensor:
    if torch.compiler.is_exporting():
        return F.pixel_shuffle(x, r)  # which becomes ONNX DepthToSpace
    n, c, h, w = _fine(x, r)
    y = x.reshape(n, c, r, r, h // r, w // r).permute(0, 1, 4, 2, 5, 3).reshape(n, c, h, w)
    return y.clone(memory_format=memory_format(x))


@op_inverse.backend("reference")
def _reference_inverse(x: Tensor, r: int) -> Tensor:
    # Written out: F.pixel_unshuffle is exported as ONNX SpaceToDepth, which puts the channels last.
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // r, r, w // r, r).permute(0, 1, 3, 5, 2, 4).reshape(_coarse(x, r))
    return y.clone(memory_format=memory_format(x))


@op_to_uint8.backend("reference")
def _reference_to_uint8(x: Tensor, r: int) -> Tensor:
    # Without nan_to_num the last step is undefined for NaN, which PyTorch turns into 0.
    y = _reference(x, r).nan_to_num(0.0, 1.0, 0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return y.clone(memory_format=memory_format(x))


# ---- backends --------------------------------------------------------------------------------

for _op in (op, op_inverse, op_to_uint8):
    for _name in ("cpu", "cuda"):
        _op.native(_name)


@op.backend("triton")
def _triton(x: Tensor, r: int) -> Tensor:
    from fastnets.kernels.pixel_shuffle import pixel_shuffle_fwd

    y = _fake(x, r)
    pixel_shuffle_fwd(x, y, r)
    return y


@op_inverse.backend("triton")
def _triton_inverse(x: Tensor, r: int) -> Tensor:
    from fastnets.kernels.pixel_shuffle import pixel_unshuffle_fwd

    y = _fake_inverse(x, r)
    pixel_unshuffle_fwd(x, y, r)
    return y


@op_to_uint8.backend("triton")
def _triton_to_uint8(x: Tensor, r: int) -> Tensor:
    from fastnets.kernels.pixel_shuffle import pixel_shuffle_fwd

    y = _fake_to_uint8(x, r)
    pixel_shuffle_fwd(x, y, r)
    return y


# ---- fake ------------------------------------------------------------------------------------


@op.fake
def _fake(x: Tensor, r: int) -> Tensor:
    return empty(x, _fine(x, r))


@op_inverse.fake
def _fake_inverse(x: Tensor, r: int) -> Tensor:
    return empty(x, _coarse(x, r))


@op_to_uint8.fake
def _fake_to_uint8(x: Tensor, r: int) -> Tensor:
    return torch.empty(_fine(x, r), dtype=torch.uint8, device=x.device, memory_format=memory_format(x))


# ---- autograd --------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.r = inputs
    ctx.format = memory_format(x)


# Only numbers change places: the gradient of each takes the other's way.
def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return op_inverse(dy.contiguous(memory_format=ctx.format), ctx.r), None


def _backward_inverse(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return op(dy.contiguous(memory_format=ctx.format), ctx.r), None


op.autograd(_backward, _setup)
op_inverse.autograd(_backward_inverse, _setup)

# ---- public functions ------------------------------------------------------------------------


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    r"""Makes an image r times as high and wide out of r² times as many channels.

    .. math::
        y_{n,\, c,\, h r + i,\, w r + j} = x_{n,\, c r^2 + i r + j,\, h,\, w}, \qquad 0 \le i, j < r

    Args:
        input: (..., c·r², h, w) of at least three dimensions, any type; contiguous, channels_last or any other strides.
        upscale_factor: r, at least 1.

    Returns:
        (..., c, h·r, w·r) in the type and layout of input. Allocates nothing else of that size.

    Raises:
        RuntimeError, TypeError, ValueError: as ``F.pixel_shuffle``, with the same messages.

    Paper: W. Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
    Neural Network", 2016, https://arxiv.org/abs/1609.05158

    Example:
        >>> import torch
        >>> from fastnets.ops import pixel_shuffle
        >>> pixel_shuffle(torch.arange(4.0).view(1, 4, 1, 1), 2).tolist()
        [[[[0.0, 1.0], [2.0, 3.0]]]]
    """
    try:
        if input.dim() != 4 or type(upscale_factor) is not int:
            return _any_shape(op, F.pixel_shuffle, input, upscale_factor)
    except AttributeError:
        refuse_types_as(F.pixel_shuffle, input, upscale_factor)
        raise
    return op(input, upscale_factor)


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    r"""Makes r² times as many channels out of an image r times as high and wide: undoes :func:`pixel_shuffle`.

    .. math::
        y_{n,\, c r^2 + i r + j,\, h,\, w} = x_{n,\, c,\, h r + i,\, w r + j}, \qquad 0 \le i, j < r

    Args:
        input: (..., c, h·r, w·r) of at least three dimensions, any type; contiguous, channels_last or any other strides.
        downscale_factor: r, at least 1.

    Returns:
        (..., c·r², h, w) in the type and layout of input. Allocates nothing else of that size. Exported to ONNX it is
        a transposition: ONNX SpaceToDepth orders its channels in another way. An empty result has the shape of the
        formula (``F.pixel_unshuffle`` on a CPU returns input's).

    Raises:
        RuntimeError, TypeError: as ``F.pixel_unshuffle``, with the same messages.

    Paper: as of :func:`pixel_shuffle`.

    Example:
        >>> import torch
        >>> from fastnets.ops import pixel_unshuffle
        >>> pixel_unshuffle(torch.arange(4.0).view(1, 1, 2, 2), 2).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    try:
        if input.dim() != 4 or type(downscale_factor) is not int:
            return _any_shape(op_inverse, F.pixel_unshuffle, input, downscale_factor)
    except AttributeError:
        refuse_types_as(F.pixel_unshuffle, input, downscale_factor)
        raise
    return op_inverse(input, downscale_factor)


def pixel_shuffle_to_uint8(input: Tensor, upscale_factor: int) -> Tensor:
    r"""Shuffles pixels as :func:`pixel_shuffle` does and makes bytes of them, in one pass: the tail of ESPCN.

    .. math::
        y_{n,\, c,\, h r + i,\, w r + j} = \mathrm{round}(255 \min(1, \max(0, x_{n,\, c r^2 + i r + j,\, h,\, w})))

    Args:
        input: (..., c·r², h, w) of at least three dimensions: float32, float64, bfloat16 or float16; contiguous,
            channels_last or any other strides.
        upscale_factor: r, at least 1.

    Returns:
        (..., c, h·r, w·r) in the layout of input, uint8, without a gradient. The product is rounded to input's type and
        then half to even, as by ``x.clamp(0, 1).mul(255).round().to(torch.uint8)``; NaN becomes 0. Allocates nothing
        else of that size.

    Raises:
        RuntimeError, TypeError, ValueError: as ``F.pixel_shuffle``, with the same messages; input of another type.

    Paper: as of :func:`pixel_shuffle`.

    Example:
        >>> import torch
        >>> from fastnets.ops import pixel_shuffle_to_uint8
        >>> pixel_shuffle_to_uint8(torch.tensor([-1.0, 0.5, 1.0, 2.0]).view(1, 4, 1, 1), 2).tolist()
        [[[[0, 128], [255, 255]]]]
    """
    try:
        if input.dim() != 4 or type(upscale_factor) is not int:
            return _any_shape(op_to_uint8, F.pixel_shuffle, input, upscale_factor)
    except AttributeError:
        refuse_types_as(F.pixel_shuffle, input, upscale_factor)
        raise
    return op_to_uint8(input, upscale_factor)


def _any_shape(op: Op, pytorch: Callable[[Tensor, int], Tensor], input: Tensor, factor: Any) -> Tensor:
    factor = as_int(factor, pytorch, input)
    if input.dim() < 3:
        return pytorch(input, factor)  # which raises
    images = input.unsqueeze(0) if input.dim() == 3 else input.flatten(0, -4)
    y = op(images, factor)
    return y.view(*input.shape[:-3], *y.shape[1:])

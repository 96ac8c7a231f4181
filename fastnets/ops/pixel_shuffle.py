"""Pixel shuffle, its inverse, and the shuffle of an image into bytes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnets._op import Op
from fastnets.ops._convolution import FLOATS, empty, memory_format

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
        raise RuntimeError(
            f"pixel_shuffle_to_uint8 expects float32, float64, bfloat16 or float16, but got {x.dtype}"
        )


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
    return y.contiguous(memory_format=memory_format(x))


@op_inverse.backend("reference")
def _reference_inverse(x: Tensor, r: int) -> Tensor:
    # Written out: F.pixel_unshuffle is exported as ONNX SpaceToDepth, which puts the channels last.
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // r, r, w // r, r).permute(0, 1, 3, 5, 2, 4).reshape(_coarse(x, r))
    return y.contiguous(memory_format=memory_format(x))


@op_to_uint8.backend("reference")
def _reference_to_uint8(x: Tensor, r: int) -> Tensor:
    # Without nan_to_num the last step would be undefined for NaN; everywhere it is known to be tried it gives 0.
    return _reference(x, r).nan_to_num(0.0, 1.0, 0.0).clamp(0, 1).mul(255).round().to(torch.uint8)


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
    return op(input, upscale_factor)


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    return op_inverse(input, downscale_factor)


def pixel_shuffle_to_uint8(input: Tensor, upscale_factor: int) -> Tensor:
    return op_to_uint8(input, upscale_factor)

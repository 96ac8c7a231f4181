"""What all convolutions share: arguments, layouts and sizes, the reference, fakes and gradients.

A geometry is (stride, padding, dilation, groups).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnets._op import Op
from fastnets.ops._activation import ACTIVATIONS, FROM_INPUT, FROM_OUTPUT

aten = torch.ops.aten

Ints = Sequence[int]
Pair = int | Ints
Sides = tuple[int, int, int, int]  # rows above, columns on the left, rows below, columns on the right

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def pair(value: Pair) -> Ints:
    """An int as (int, int), a sequence of one likewise; other sequences as they are."""
    if isinstance(value, int):
        return value, value
    try:
        return value if len(value) != 1 else (value[0], value[0])
    except TypeError:  # an integer of another kind; what is none, index refuses
        return index(value), index(value)  # type: ignore[arg-type]


def pad_input(input: Tensor, weight: Tensor, stride: Ints, padding: Pair | str, dilation: Ints) -> tuple[Tensor, Ints]:
    """Turns ``padding`` into a pair; where 'same' needs one more row or column at the end, adds it."""
    if not isinstance(padding, str):
        return input, pair(padding)
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'")
    if any(s != 1 for s in stride):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    rows, columns = (d * (k - 1) for d, k in zip(dilation, weight.shape[-2:], strict=True))
    if rows % 2 or columns % 2:
        input = F.pad(input, (0, columns % 2, 0, rows % 2))
    return input, (rows // 2, columns // 2)


def zeros_around(size: Ints, kernel_size: Ints, stride: Ints, padding: Ints | str, dilation: Ints) -> Sides:
    """The zeros that a padding, a pair, `Sides`, 'valid' (none) or 'same', lays around an input of that height and width.

    'same' gives ceil(size / stride) results, with an odd zero at the end, as TensorFlow does.
    """
    if padding == "same":
        axes = zip(size, kernel_size, stride, dilation, strict=True)
        (top, bottom), (left, right) = (_ends(n, d * (k - 1) + 1, s) for n, k, s, d in axes)
        return top, left, bottom, right
    numbers: Any = (0, 0) if padding == "valid" else padding
    return numbers if len(numbers) == 4 else (*numbers, *numbers)


def _ends(size: int, reach: int, stride: int) -> tuple[int, int]:
    zeros = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return zeros // 2, zeros - zeros // 2


def lay_zeros(x: Tensor, sides: Sequence[int]) -> Tensor:
    """A copy of x (..., h, w) between zeros."""
    top, left, bottom, right = sides
    return F.pad(x, (left, right, top, bottom))


def output_size(x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> tuple[int, int]:
    """Height and width of the convolution of x (n, c, h, w) with w (o, i, kh, kw); under 1: does not fit.

    The padding is a pair or `Sides`.
    """
    height = (x.shape[2] + padding[0] + padding[-2] - dilation[0] * (w.shape[2] - 1) - 1) // stride[0] + 1
    width = (x.shape[3] + padding[1] + padding[-1] - dilation[1] * (w.shape[3] - 1) - 1) // stride[1] + 1
    return height, width


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout that results take from x (n, c, h, w), by PyTorch's own rule for its strides.

    channels_last where the strides grow in the order c, w, h, n; contiguous otherwise and wherever
    the strides fit both.
    """
    (n, c, h, w), (sn, sc, sh, sw) = x.shape, x.stride()
    nested = 0 < sc and sc * c <= sw and sw * w <= sh and sh * h <= sn and n * c * h * w > 0
    return torch.channels_last if nested and sh * h != sc else torch.contiguous_format


def empty(x: Tensor, shape: Ints) -> Tensor:
    """An uninitialised tensor of that shape with x's type, device and layout."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


# ---- check -----------------------------------------------------------------------------------


def fits(x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> bool:
    """Whether x (n, c, h, w), w (o, c / groups, kh, kw) and bias (o) are a convolution's."""
    if x.dim() != 4 or w.dim() != 4 or groups < 1 or w.shape[0] % groups != 0 or x.shape[1] != w.shape[1] * groups:
        return False
    if 0 in w.shape or x.dtype != w.dtype or x.device != w.device:
        return False
    if bias is not None and (bias.shape != w.shape[:1] or bias.dtype != x.dtype or bias.device != x.device):
        return False
    if len(stride) != 2 or len(padding) != 2 or len(dilation) != 2:
        return False
    if min(stride) < 1 or min(padding) < 0 or min(dilation) < 1:
        return False
    height, width = output_size(x, w, stride, padding, dilation)
    return height > 0 and width > 0


def check_gradient(name: str, dy: Tensor, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> None:
    """Raises if dy is not a gradient of the result."""
    expected = (x.shape[0], w.shape[0], *output_size(x, w, stride, padding, dilation))
    if dy.shape != expected or dy.dtype != x.dtype or dy.device != x.device:
        raise RuntimeError(
            f"{name} expects a gradient of shape {expected}, type {x.dtype}, on {x.device}, "
            f"but got shape {tuple(dy.shape)}, type {dy.dtype}, on {dy.device}"
        )


# ---- reference -------------------------------------------------------------------------------


def _sum_type(x: Tensor) -> torch.dtype:
    # On a CPU PyTorch adds up float16 in float16, and where oneDNN has no bfloat16 its gradients in bfloat16.
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) and x.device.type == "cpu" else x.dtype


def reference(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    activation: str | None,
) -> Tensor:
    """activation(conv(x, w) + bias) in PyTorch's ops."""
    sum_type = _sum_type(x)
    bias = None if bias is None else bias.to(sum_type)
    y = F.conv2d(x.to(sum_type), w.to(sum_type), bias, stride, padding, dilation, groups)
    return ACTIVATIONS[activation](y).to(x.dtype).contiguous(memory_format=memory_format(x))


def reference_backward(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    need_dx: bool,
    need_dw: bool,
    need_db: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of dx, dw and db that are needed; empty tensors for the others."""
    tensors = (t.to(_sum_type(x)) for t in (dy, x, w))
    dx, dw, db = aten.convolution_backward(
        *tensors, [w.shape[0]], stride, padding, dilation, False, [0, 0], groups, [need_dx, need_dw, need_db]
    )
    return (
        dx.to(x.dtype).contiguous(memory_format=memory_format(x)) if need_dx else x.new_empty(0),
        dw.to(x.dtype).contiguous(memory_format=memory_format(w)) if need_dw else x.new_empty(0),
        db.to(x.dtype) if need_db else x.new_empty(0),
    )


# ---- backends and fakes ----------------------------------------------------------------------


def why_not(x: Tensor, *args: Any) -> list[str]:
    """The types that our kernels do not take."""
    return [] if x.dtype in FLOATS else [f"its kernels take float32, float64, bfloat16 and float16, not {x.dtype}"]


def empty_result(x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """Where the convolution of x with w goes."""
    return empty(x, (x.shape[0], w.shape[0], *output_size(x, w, stride, padding, dilation)))


def empty_gradients(x: Tensor, w: Tensor, need_dx: bool, need_dw: bool, need_db: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Where dx, dw and db go; one that is not needed has no elements: an operator cannot return None."""
    return (
        empty(x, x.shape) if need_dx else x.new_empty(0),
        empty(w, w.shape) if need_dw else x.new_empty(0),
        x.new_empty(w.shape[0] if need_db else 0),
    )


# ---- autograd --------------------------------------------------------------------------------


def differentiate(op: Op, op_backward: Op) -> None:
    """Registers first and second gradients.

    ``op`` takes (x, w, bias, *geometry, activation), ``op_backward`` (dy, x, w, *geometry, need_dx, need_dw, need_db).
    """

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, bias, *ctx.geometry, ctx.activation = inputs
        ctx.save_for_backward(x, w, bias, output if ctx.activation in FROM_OUTPUT else None)

    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, w, bias, y = ctx.saved_tensors
        if ctx.activation in FROM_OUTPUT:
            dy = FROM_OUTPUT[ctx.activation](dy, y)
        elif ctx.activation in FROM_INPUT:
            # One more forward instead of one more saved tensor: these slopes need the value before.
            dy = FROM_INPUT[ctx.activation](dy, op(x, w, bias, *ctx.geometry, None))
        # A gradient in another layout (or of stride 0) is brought into the input's, once, for all kernels.
        dy = dy.contiguous(memory_format=memory_format(x))
        needed = ctx.needs_input_grad[:3]
        gradients = op_backward(dy, x, w, *ctx.geometry, *needed)
        dx, dw, db = (g if n else None for g, n in zip(gradients, needed, strict=True))
        return dx, dw, db, *(None for _ in ctx.geometry), None

    def setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        dy, x, w, *ctx.geometry = inputs[:-3]
        ctx.needed = inputs[-3:]
        ctx.save_for_backward(dy, x, w)
        ctx.set_materialize_grads(False)

    def backward_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        dy, x, w = ctx.saved_tensors
        ddx, ddw, ddb = (g if needed else None for g, needed in zip(grads, ctx.needed, strict=True))
        need_ddy, need_dx, need_dw = ctx.needs_input_grad[:3]
        # dx, dw and db are linear in dy; and conv(x, w) is linear in x and in w, so that
        # <ddx, dx> + <ddw, dw> + <ddb, db> = <conv(ddx, w) + conv(x, ddw) + ddb, dy>.
        ddy = dx = dw = None
        if need_ddy:
            ddy = torch.zeros_like(dy)
            if ddx is not None:
                ddy = ddy + op(ddx, w, None, *ctx.geometry, None)
            if ddw is not None:
                ddy = ddy + op(x, ddw, None, *ctx.geometry, None)
            if ddb is not None:
                ddy = ddy + ddb.view(-1, 1, 1)
        if need_dx and ddw is not None:
            dx = op_backward(dy, x, ddw, *ctx.geometry, True, False, False)[0]
        if need_dw and ddx is not None:
            dw = op_backward(dy, ddx, w, *ctx.geometry, False, True, False)[1]
        return ddy, dx, dw, *(None for _ in ctx.geometry), None, None, None

    op.autograd(backward, setup)
    op_backward.autograd(backward_backward, setup_backward)

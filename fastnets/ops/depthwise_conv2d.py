"""Depthwise convolution: every channel convolved with kernels of its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnets._op import Op
from fastnets.ops._activation import ACTIVATIONS, FROM_INPUT, FROM_OUTPUT, check_activation
from fastnets.ops._convolution import FLOATS, Ints, Pair, empty, memory_format, output_size, pad_input, pair

aten = torch.ops.aten

# ---- schema ----------------------------------------------------------------------------------


def _check(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, activation: str | None
) -> None:
    if activation is not None:
        check_activation(activation)
    if not _fits(x, w, bias, stride, padding, dilation):
        # PyTorch's own message, for everything that F.conv2d refuses as well.
        F.conv2d(x, w, bias, stride, padding, dilation, groups=x.shape[1] if x.dim() > 1 else 1)
        raise RuntimeError(
            "depthwise_conv2d expects input (n, c, h, w), weight (c * m, 1, kh, kw) and bias (c * m), but got "
            f"input {tuple(x.shape)}, weight {tuple(w.shape)} and bias {None if bias is None else tuple(bias.shape)}"
        )


def _fits(x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints) -> bool:
    if x.dim() != 4 or w.dim() != 4 or w.shape[1] != 1 or x.shape[1] == 0 or w.shape[0] % x.shape[1] != 0:
        return False
    if w.shape[0] == 0 or x.dtype != w.dtype or x.device != w.device:
        return False
    if bias is not None and (bias.shape != w.shape[:1] or bias.dtype != x.dtype or bias.device != x.device):
        return False
    if len(stride) != 2 or len(padding) != 2 or len(dilation) != 2:
        return False
    if min(stride) < 1 or min(padding) < 0 or min(dilation) < 1 or w.shape[2] == 0 or w.shape[3] == 0:
        return False
    height, width = output_size(x, w, stride, padding, dilation)
    return height > 0 and width > 0


def _check_backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, *needed: bool
) -> None:
    _check(x, w, None, stride, padding, dilation, None)
    expected = (x.shape[0], w.shape[0], *output_size(x, w, stride, padding, dilation))
    if dy.shape != expected or dy.dtype != x.dtype or dy.device != x.device:
        raise RuntimeError(
            f"depthwise_conv2d_backward expects a gradient of shape {expected}, type {x.dtype}, on {x.device}, "
            f"but got shape {tuple(dy.shape)}, type {dy.dtype}, on {dy.device}"
        )


op = Op(
    "depthwise_conv2d(Tensor x, Tensor w, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, "
    "str? activation) -> Tensor",
    _check,
    autocast=True,
)
# A gradient that is not needed comes back as an empty tensor: an operator cannot return None.
op_backward = Op(
    "depthwise_conv2d_backward(Tensor dy, Tensor x, Tensor w, int[2] stride, int[2] padding, int[2] dilation, "
    "bool need_dx, bool need_dw, bool need_db) -> (Tensor dx, Tensor dw, Tensor db)",
    _check_backward,
)

# ---- reference -------------------------------------------------------------------------------


def _sum_type(x: Tensor) -> torch.dtype:
    # PyTorch adds up float16 in float16 on a CPU.
    return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype


@op.backend("reference")
def _reference(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, activation: str | None
) -> Tensor:
    sum_type = _sum_type(x)
    bias = None if bias is None else bias.to(sum_type)
    y = F.conv2d(x.to(sum_type), w.to(sum_type), bias, stride, padding, dilation, groups=x.shape[1])
    return ACTIVATIONS[activation](y).to(x.dtype).contiguous(memory_format=memory_format(x))


@op_backward.backend("reference")
def _reference_backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, *needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    need_dx, need_dw, need_db = needed
    tensors = (t.to(_sum_type(x)) for t in (dy, x, w))
    dx, dw, db = aten.convolution_backward(
        *tensors, [w.shape[0]], stride, padding, dilation, False, [0, 0], x.shape[1], needed
    )
    return (
        dx.to(x.dtype).contiguous(memory_format=memory_format(x)) if need_dx else x.new_empty(0),
        dw.to(x.dtype).contiguous(memory_format=memory_format(w)) if need_dw else x.new_empty(0),
        db.to(x.dtype) if need_db else x.new_empty(0),
    )


# ---- backends --------------------------------------------------------------------------------


def _why_not(x: Tensor, *args: Any) -> list[str]:
    return [] if x.dtype in FLOATS else [f"its kernels take float32, float64, bfloat16 and float16, not {x.dtype}"]


for _name in ("cpu", "cuda"):
    op.native(_name, _why_not)
    op_backward.native(_name, _why_not)


@op.backend("triton", _why_not)
def _triton(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, activation: str | None
) -> Tensor:
    from fastnets.kernels.depthwise_conv2d import depthwise_conv2d_fwd

    y = empty(x, (x.shape[0], w.shape[0], *output_size(x, w, stride, padding, dilation)))
    depthwise_conv2d_fwd(x, w, bias, y, stride, padding, dilation, activation)
    return y


@op_backward.backend("triton", _why_not)
def _triton_backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, *needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from fastnets.kernels.depthwise_conv2d import depthwise_conv2d_bwd

    gradients = _fake_backward(dy, x, w, stride, padding, dilation, *needed)
    depthwise_conv2d_bwd(dy, x, w, *gradients, stride, padding, dilation, *needed)
    return gradients


# ---- fake ------------------------------------------------------------------------------------


@op.fake
def _fake(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, activation: str | None
) -> Tensor:
    return empty(x, (x.shape[0], w.shape[0], *output_size(x, w, stride, padding, dilation)))


@op_backward.fake
def _fake_backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, *needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    need_dx, need_dw, need_db = needed
    return (
        empty(x, x.shape) if need_dx else x.new_empty(0),
        empty(w, w.shape) if need_dw else x.new_empty(0),
        x.new_empty(w.shape[0] if need_db else 0),
    )


# ---- autograd --------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, bias, *ctx.geometry, ctx.activation = inputs
    ctx.save_for_backward(x, w, bias, output if ctx.activation in FROM_OUTPUT else None)


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, w, bias, y = ctx.saved_tensors
    if ctx.activation in FROM_OUTPUT:
        dy = FROM_OUTPUT[ctx.activation](dy, y)
    elif ctx.activation in FROM_INPUT:
        # One more forward instead of one more saved tensor: these slopes need the value before.
        dy = FROM_INPUT[ctx.activation](dy, op.torch_op(x, w, bias, *ctx.geometry, None))
    # A gradient in another layout (or of stride 0) is brought into the input's, once, for all kernels.
    dy = dy.contiguous(memory_format=memory_format(x))
    needed = ctx.needs_input_grad[:3]
    dx, dw, db = op_backward(dy, x, w, *ctx.geometry, *needed)
    return tuple(g if n else None for g, n in zip((dx, dw, db), needed, strict=True)) + (None,) * 4


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    (dy, x, w), ctx.geometry, ctx.needed = inputs[:3], inputs[3:6], inputs[6:]
    ctx.save_for_backward(dy, x, w)
    ctx.set_materialize_grads(False)


def _backward_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
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
    return ddy, dx, dw, None, None, None, None, None, None


op.autograd(_backward, _setup)
op_backward.autograd(_backward_backward, _setup_backward)

# ---- public function -------------------------------------------------------------------------


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    *,
    activation: str | None = None,
) -> Tensor:
    r"""Convolves every channel with m kernels of its own, then applies an activation in the same pass.

    .. math::
        y_{n,o,i,j} = f\Big(b_o + \sum_{p,q} w_{o,0,p,q} \;
                      x_{n,\,\lfloor o/m \rfloor,\; i s_h - p_h + p d_h,\; j s_w - p_w + q d_w}\Big)

    Args:
        input: (n, c, h, w) or (c, h, w), floating; contiguous, channels_last or any other strides.
        weight: (c·m, 1, kh, kw), input's type and device; m is the channel multiplier.
        bias: (c·m), input's type and device, or None.
        stride: steps of the kernel in pixels, an int or (vertical, horizontal), at least 1.
        padding: rows and columns of zeros on each side, an int or (vertical, horizontal), or 'valid' (none)
            or 'same' (as many as keep h and w; stride 1 only).
        dilation: distance between the kernel's taps in pixels, an int or (vertical, horizontal), at least 1.
        activation: f: None, 'relu', 'relu6', 'leaky_relu' (slope 0.1), 'silu', 'hardswish' or 'sigmoid'.

    Returns:
        (n, c·m, h', w') or (c·m, h', w') in the type and layout of input; h' and w' as ``F.conv2d`` gives.
        Sums are taken in float32 (float64 for float64). Allocates nothing else of that size.

    Raises:
        RuntimeError: shapes, types or devices do not fit, with the message of ``F.conv2d``.
        ValueError: an unknown activation.

    Paper: A. Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
    Applications", 2017, https://arxiv.org/abs/1704.04861

    Example:
        >>> import torch
        >>> from fastnets.ops import depthwise_conv2d
        >>> x = torch.arange(8.0).view(1, 2, 2, 2)
        >>> depthwise_conv2d(x, torch.ones(2, 1, 2, 2), activation="relu6").flatten().tolist()
        [6.0, 6.0]
    """
    stride, dilation = pair(stride), pair(dilation)
    if input.dim() == 3:
        return depthwise_conv2d(input[None], weight, bias, stride, padding, dilation, activation=activation)[0]
    input, padding = pad_input(input, weight, stride, padding, dilation)
    return op(input, weight, bias, stride, padding, dilation, activation)

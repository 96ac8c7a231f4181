"""Batch normalisation in training, an activation and a depthwise convolution as one op, whose tensors between are never
written: on a CPU, of float32 in channels_last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnets._op import Op
from fastnets.ops import _batch_norm as batch_norm
from fastnets.ops import _convolution as convolution
from fastnets.ops._convolution import Ints
from fastnets.ops.batch_moments import empty_like
from fastnets.ops.depthwise_conv2d import _check as check_depthwise
from fastnets.ops.depthwise_conv2d import op as depthwise
from fastnets.ops.sync_batch_norm import op_local

# ---- schema ----------------------------------------------------------------------------------


def _check(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, w: Tensor, eps: float, activation: str | None, stride: Ints,
    padding: Ints, dilation: Ints,
) -> None:  # fmt: skip
    batch_norm._check_local(x, weight, bias, eps, activation)
    check_depthwise(x, w, None, stride, padding, dilation, None)
    if w.shape[0] != x.shape[1]:
        raise RuntimeError(f"norm_depthwise_conv2d expects one kernel a channel, but got {len(w)} for {x.shape[1]}")


def _check_backward(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, *rest: Any) -> None:
    weight, bias, w, eps, activation, *geometry = rest
    _check(x, weight, bias, w, eps, activation, *geometry)
    convolution.check_gradient("norm_depthwise_conv2d_backward", dy, x, w, *geometry)


# y = conv(f(z), w), where z = xhat * weight + bias of x's own mean and variance.
op = Op(
    "norm_depthwise_conv2d(Tensor x, Tensor? weight, Tensor? bias, Tensor w, float eps, str? activation, "
    "int[2] stride, int[2] padding, int[2] dilation) -> (Tensor y, Tensor mean, Tensor var)",
    _check,
)
# The gradient of f(z), the sums (2, c) of dz and of dz * xhat, and dw.
op_backward = Op(
    "norm_depthwise_conv2d_backward(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, "
    "Tensor w, float eps, str? activation, int[2] stride, int[2] padding, int[2] dilation) -> "
    "(Tensor df, Tensor sums, Tensor dw)",
    _check_backward,
)

# ---- reference -------------------------------------------------------------------------------


@op.backend("reference")
def _reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, w: Tensor, eps: float, activation: str | None, stride: Ints,
    padding: Ints, dilation: Ints,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y, mean, var = batch_norm._reference_local(x, weight, bias, eps, activation)
    return convolution.reference(y, w, None, stride, padding, dilation, x.shape[1], None), mean, var


@op_backward.backend("reference")
def _reference_backward(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, w: Tensor,
    eps: float, activation: str | None, stride: Ints, padding: Ints, dilation: Ints,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y = batch_norm._reference(x, mean, var, weight, bias, None, eps, "", "", activation)
    df, dw, _ = convolution.reference_backward(dy, y, w, stride, padding, dilation, x.shape[1], True, True, False)
    return df, batch_norm._reference_reduce(df, x, mean, var, weight, bias, eps, activation), dw


# ---- backends --------------------------------------------------------------------------------


_CHANNELS = 16  # floats in the widest vector


def why_not(x: Tensor) -> list[str]:
    """Why there is no kernel for x; an empty list means that there is one."""
    last = torch.channels_last
    if (
        x.dtype == torch.float32
        and x.dim() == 4
        and x.shape[1] >= _CHANNELS
        and convolution.memory_format(x) == last
        and x.is_contiguous(memory_format=last)
    ):
        return []
    takes = f"float32 in channels_last of at least {_CHANNELS} channels"
    return [f"its kernel takes {takes}, not {x.dtype} of shape {tuple(x.shape)} with strides {tuple(x.stride())}"]


op.native("cpu", lambda x, *_: why_not(x))
op_backward.native("cpu", lambda dy, x, *_: why_not(x))

# ---- fake ------------------------------------------------------------------------------------


@op.fake
def _fake(x: Tensor, weight: Any, bias: Any, w: Tensor, eps: float, activation: Any, *geometry: Ints) -> Any:
    return convolution.empty_result(x, w, *geometry), *batch_norm._fake_local(x)[1:]


@op_backward.fake
def _fake_backward(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_like(x), batch_norm._fake_reduce(dy, x), torch.empty_like(rest[4])


# ---- autograd --------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, w, ctx.eps, ctx.activation, *ctx.geometry = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(x, weight, bias, w, mean, var)


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    x, weight, bias, w, mean, var = ctx.saved_tensors
    dy = dy.contiguous(memory_format=convolution.memory_format(x))
    if torch.is_grad_enabled():  # this gradient is to be differentiated in its turn: by the two ops
        y = op_local(x, weight, bias, ctx.eps, ctx.activation)[0]
        convolved = depthwise(y, w, None, *ctx.geometry, None)
        leaves = [t for t, n in zip((x, weight, bias, w), ctx.needs_input_grad, strict=False) if n]
        rest = iter(torch.autograd.grad(convolved, leaves, dy, create_graph=True))
        return tuple(next(rest) if n else None for n in ctx.needs_input_grad)
    df, sums, dw = op_backward(dy, x, mean, var, weight, bias, w, ctx.eps, ctx.activation, *ctx.geometry)
    count = torch.full((), x.numel() // x.shape[1], dtype=sums.dtype, device=x.device)
    dx = batch_norm.op_dx(df, x, mean, var, weight, bias, sums, count, ctx.eps, ctx.activation)
    sum_dz, sum_dz_xhat = sums.unbind()
    gradients = dx, sum_dz_xhat, sum_dz, dw
    return *(g if n else None for g, n in zip(gradients, ctx.needs_input_grad, strict=False)), *[None] * 5


op.autograd(_backward, _setup)

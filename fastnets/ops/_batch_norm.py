"""The operators that sync_batch_norm is made of, on every backend: forward, and the two halves of the backward.

Statistics are per channel: mean and biased variance, in float32 (float64 for float64). xhat = (x - mean) * r with
r = 1 / sqrt(var + eps). Tensors of x's shape are dense and of x's layout.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnets._op import Op
from fastnets.ops._convolution import FLOATS
from fastnets.ops.batch_moments import _reference as moments_reference
from fastnets.ops.batch_moments import channel_dims, empty_like, layout, per_channel, sum_type

# ---- schema ----------------------------------------------------------------------------------


def check_batch_norm(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    several: bool = False,
) -> None:
    """Raises what F.batch_norm raises. ``several``: other ranks have values too, so one or none here is enough."""
    vectors = [t for t in (mean, var, weight, bias) if t is not None]
    fits = x.dim() >= 2 and x.dtype in FLOATS and (mean is None) == (var is None)
    fits = fits and all(t.shape == x.shape[1:2] and t.device == x.device for t in vectors)
    fits = fits and all(t.dtype in (x.dtype, sum_type(x)) for t in vectors)
    if training:
        fits = fits and eps > 0 and (several or x.shape[1] == 0 or x.numel() != x.shape[1])
    if fits and (training or mean is not None):
        return
    F.batch_norm(x, mean, var, weight, bias, training, 0.0, eps)
    raise RuntimeError(
        "sync_batch_norm expects floating input (n, c, ...) and running_mean, running_var, weight and bias (c) of "
        f"input's type or float32, on its device, but got input {x.dtype} {tuple(x.shape)} on {x.device} and vectors "
        + ", ".join(f"{t.dtype} {tuple(t.shape)} on {t.device}" for t in vectors)
    )


def _check(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> None:
    check_batch_norm(x, mean, var, weight, bias, False, 0.0)


def _check_local(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    check_batch_norm(x, None, None, weight, bias, True, eps)


def _check_gradient(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor) -> None:
    check_batch_norm(x, mean, var, None, None, False, 0.0)
    if dy.shape != x.shape or dy.dtype != x.dtype or dy.device != x.device:
        raise RuntimeError(
            f"sync_batch_norm expects a gradient of shape {tuple(x.shape)}, type {x.dtype}, on {x.device}, "
            f"but got shape {tuple(dy.shape)}, type {dy.dtype}, on {dy.device}"
        )


def _check_reduce(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> None:
    _check_gradient(dy, x, mean, var)


def _check_backward(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, *rest: Any) -> None:
    _check_gradient(dy, x, mean, var)


# y = xhat * weight + bias with statistics that are given: constants where count is None, otherwise those of all ranks'
# x, of which there are `count` values. Count, group and layer are for the gradient.
op = Op(
    "sync_batch_norm(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? count, float eps, "
    "str group, str layer) -> Tensor",
    _check,
)
# The same with x's own statistics, which are returned too.
op_local = Op(
    "sync_batch_norm_local(Tensor x, Tensor? weight, Tensor? bias, float eps) -> (Tensor y, Tensor mean, Tensor var)",
    _check_local,
)
# sums (2, c): of dy, and of dy * xhat.
op_reduce = Op(
    "sync_batch_norm_reduce(Tensor dy, Tensor x, Tensor mean, Tensor var, float eps) -> Tensor", _check_reduce
)
# dx, from the sums over all `count` values.
op_dx = Op(
    "sync_batch_norm_dx(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor sums, Tensor count, "
    "float eps) -> Tensor",
    _check_backward,
)
# Both at once, where x has all values there are.
op_local_backward = Op(
    "sync_batch_norm_local_backward(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, float eps) -> "
    "(Tensor dx, Tensor sums)",
    _check_backward,
)

# ---- reference -------------------------------------------------------------------------------


@op.backend("reference")
def _reference(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, count: Any, eps: float, *rest: Any
) -> Tensor:
    a = sum_type(x)
    w, b = (None if t is None else t.to(a) for t in (weight, bias))
    return (
        F.batch_norm(x.to(a), mean.to(a), var.to(a), w, b, False, 0.0, eps)
        .to(x.dtype)
        .contiguous(memory_format=layout(x))
    )


@op_local.backend("reference")
def _reference_local(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, m2, count = moments_reference(x)
    var = m2 / count.clamp(min=1)
    return _reference(x, mean, var, weight, bias, None, eps), mean, var


@op_reduce.backend("reference")
def _reference_reduce(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    a = sum_type(x)
    dy, xhat = dy.to(a), (x.to(a) - per_channel(mean, x)) * per_channel((var + eps).rsqrt(), x)
    return torch.stack([dy.sum(channel_dims(x)), (dy * xhat).sum(channel_dims(x))])


@op_dx.backend("reference")
def _reference_dx(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, sums: Tensor, count: Tensor, eps: float
) -> Tensor:
    a, r = sum_type(x), (var + eps).rsqrt()
    scale = r if weight is None else r * weight.to(a)
    shares = sums / count.clamp(min=1)
    # y = w xhat + b with mean and var functions of x: dx = w r (dy - mean(dy) - xhat mean(dy xhat)).
    xhat = (x.to(a) - per_channel(mean, x)) * per_channel(r, x)
    dx = per_channel(scale, x) * (dy.to(a) - per_channel(shares[0], x) - xhat * per_channel(shares[1], x))
    return dx.to(x.dtype).contiguous(memory_format=layout(x))


@op_local_backward.backend("reference")
def _reference_local_backward(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    sums = _reference_reduce(dy, x, mean, var, eps)
    count = torch.full((), x.numel() // max(1, x.shape[1]), dtype=sums.dtype, device=x.device)
    return _reference_dx(dy, x, mean, var, weight, sums, count, eps), sums


# ---- backends --------------------------------------------------------------------------------


def _why_not(x: Tensor, *args: Any) -> list[str]:
    return [] if x.dtype in FLOATS else [f"its kernels take float32, float64, bfloat16 and float16, not {x.dtype}"]


for _op in (op, op_local, op_reduce, op_dx, op_local_backward):
    for _name in ("cpu", "cuda"):
        _op.native(_name, _why_not)


@op.backend("triton", _why_not)
def _triton(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, count: Any, eps: float, *rest: Any
) -> Tensor:
    from fastnets.kernels.sync_batch_norm import sync_batch_norm_fwd

    y = empty_like(x)
    sync_batch_norm_fwd(x, mean, var, weight, bias, y, eps)
    return y


@op_local.backend("triton", _why_not)
def _triton_local(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    from fastnets.kernels.batch_moments import batch_moments_fwd
    from fastnets.kernels.sync_batch_norm import sync_batch_norm_fwd

    y, mean, var = _fake_local(x, weight, bias, eps)
    batch_moments_fwd(x, mean, var, as_variance=True)
    sync_batch_norm_fwd(x, mean, var, weight, bias, y, eps)
    return y, mean, var


@op_reduce.backend("triton", _why_not)
def _triton_reduce(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    from fastnets.kernels.sync_batch_norm import sync_batch_norm_reduce

    sums = _fake_reduce(dy, x, mean, var, eps)
    sync_batch_norm_reduce(dy, x, mean, var, sums, eps)
    return sums


@op_dx.backend("triton", _why_not)
def _triton_dx(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, sums: Tensor, count: Tensor, eps: float
) -> Tensor:
    from fastnets.kernels.sync_batch_norm import sync_batch_norm_dx

    dx = empty_like(x)
    sync_batch_norm_dx(dy, x, mean, var, weight, sums, count, dx, eps)
    return dx


@op_local_backward.backend("triton", _why_not)
def _triton_local_backward(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    from fastnets.kernels.sync_batch_norm import sync_batch_norm_dx

    sums = _triton_reduce(dy, x, mean, var, eps)
    dx = empty_like(x)
    sync_batch_norm_dx(dy, x, mean, var, weight, sums, x.numel() // max(1, x.shape[1]), dx, eps)
    return dx, sums


# ---- fake ------------------------------------------------------------------------------------


@op.fake
def _fake(x: Tensor, *rest: Any) -> Tensor:
    return empty_like(x)


@op_local.fake
def _fake_local(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = (x.new_empty(x.shape[1], dtype=sum_type(x)) for _ in range(2))
    return empty_like(x), mean, var


@op_reduce.fake
def _fake_reduce(dy: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((2, x.shape[1]), dtype=sum_type(x))


@op_dx.fake
def _fake_dx(dy: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return empty_like(x)


@op_local_backward.fake
def _fake_local_backward(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_like(x), _fake_reduce(dy, x)

"""The operators that sync_batch_norm is made of, on every backend: forward, and the two halves of the backward.

Statistics are per channel: mean and biased variance, in float32 (float64 for float64). xhat = (x - mean) * r with
r = 1 / sqrt(var + eps), z = xhat * weight + bias, y = f(z) with the activation f; dz = dy f'(z), of a z that is computed
again out of x: nothing else is kept of the forward pass. Tensors of x's shape are dense and of x's layout.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnets._op import Op
from fastnets.ops._activation import ACTIVATIONS, FROM_INPUT, FROM_OUTPUT, check_activation
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
    check_activation(rest[-1])
    check_batch_norm(x, mean, var, weight, bias, False, 1.0)


def _check_local(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str | None) -> None:
    check_activation(activation)
    check_batch_norm(x, None, None, weight, bias, True, eps)


def _check_backward(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> None:
    _check(x, mean, var, weight, bias, rest[-1])
    if dy.shape != x.shape or dy.dtype != x.dtype or dy.device != x.device:
        raise RuntimeError(
            f"sync_batch_norm expects a gradient of shape {tuple(x.shape)}, type {x.dtype}, on {x.device}, "
            f"but got shape {tuple(dy.shape)}, type {dy.dtype}, on {dy.device}"
        )


# y = f(xhat * weight + bias) with statistics that are given: constants where count is None, otherwise those of all ranks'
# x, of which there are `count` values. Count, group and layer are for the gradient.
op = Op(
    "sync_batch_norm(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? count, float eps, "
    "str group, str layer, str? activation) -> Tensor",
    _check,
)
# The same with x's own statistics, which are returned too.
op_local = Op(
    "sync_batch_norm_local(Tensor x, Tensor? weight, Tensor? bias, float eps, str? activation) -> "
    "(Tensor y, Tensor mean, Tensor var)",
    _check_local,
)
# sums (2, c): of dz, and of dz * xhat.
op_reduce = Op(
    "sync_batch_norm_reduce(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, "
    "str? activation) -> Tensor",
    _check_backward,
)
# dx, from the sums over all `count` values.
op_dx = Op(
    "sync_batch_norm_dx(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor sums, "
    "Tensor count, float eps, str? activation) -> Tensor",
    _check_backward,
)
# Both at once, where x has all values there are.
op_local_backward = Op(
    "sync_batch_norm_local_backward(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, "
    "float eps, str? activation) -> (Tensor dx, Tensor sums)",
    _check_backward,
)

# ---- reference -------------------------------------------------------------------------------


def preactivation(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """z, in the type of sums."""
    a = sum_type(x)
    w, b = (None if t is None else t.to(a) for t in (weight, bias))
    # Not F.batch_norm, which refuses eps = 0 in torch 2.11: the gradient of batch_moments has that.
    return torch.batch_norm(x.to(a), w, b, mean.to(a), var.to(a), False, 0.0, eps, torch.backends.cudnn.enabled)


def activation_backward(dy: Tensor, z: Tensor, activation: str) -> Tensor:
    """dz of z's type; differentiable."""
    if activation in FROM_INPUT:
        return FROM_INPUT[activation](dy.to(z.dtype), z)
    return FROM_OUTPUT[activation](dy.to(z.dtype), ACTIVATIONS[activation](z))


@op.backend("reference")
def _reference(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, count: Any, eps: float,
    group: str, layer: str, activation: str | None,
) -> Tensor:  # fmt: skip
    y = ACTIVATIONS[activation](preactivation(x, mean, var, weight, bias, eps))
    return y.to(x.dtype).contiguous(memory_format=layout(x))


@op_local.backend("reference")
def _reference_local(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    mean, m2, count = moments_reference(x)
    var = m2 / count.clamp(min=1)
    return _reference(x, mean, var, weight, bias, None, eps, "", "", activation), mean, var


def _dz_and_xhat(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dz = dy.to(sum_type(x))
    if activation is not None:
        dz = activation_backward(dz, preactivation(x, mean, var, weight, bias, eps), activation)
    return dz, (x.to(dz.dtype) - per_channel(mean, x)) * per_channel((var + eps).rsqrt(), x)


@op_reduce.backend("reference")
def _reference_reduce(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float,
    activation: str | None,
) -> Tensor:  # fmt: skip
    dz, xhat = _dz_and_xhat(dy, x, mean, var, weight, bias, eps, activation)
    return torch.stack([dz.sum(channel_dims(x)), (dz * xhat).sum(channel_dims(x))])


@op_dx.backend("reference")
def _reference_dx(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, sums: Tensor,
    count: Tensor, eps: float, activation: str | None,
) -> Tensor:  # fmt: skip
    r = (var + eps).rsqrt()
    scale = r if weight is None else r * weight.to(r.dtype)
    shares = sums / count.clamp(min=1)
    # z = w xhat + b with mean and var functions of x: dx = w r (dz - mean(dz) - xhat mean(dz xhat)).
    dz, xhat = _dz_and_xhat(dy, x, mean, var, weight, bias, eps, activation)
    dx = per_channel(scale, x) * (dz - per_channel(shares[0], x) - xhat * per_channel(shares[1], x))
    return dx.to(x.dtype).contiguous(memory_format=layout(x))


@op_local_backward.backend("reference")
def _reference_local_backward(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    sums = _reference_reduce(dy, x, mean, var, weight, bias, eps, activation)
    count = torch.full((), x.numel() // max(1, x.shape[1]), dtype=sums.dtype, device=x.device)
    return _reference_dx(dy, x, mean, var, weight, bias, sums, count, eps, activation), sums


# ---- backends --------------------------------------------------------------------------------


def _why_not(x: Tensor, *args: Any) -> list[str]:
    return [] if x.dtype in FLOATS else [f"its kernels take float32, float64, bfloat16 and float16, not {x.dtype}"]


for _op in (op, op_local, op_reduce, op_dx, op_local_backward):
    for _name in ("cpu", "cuda"):
        _op.native(_name, _why_not)


@op.backend("triton", _why_not)
def _triton(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, count: Any, eps: float,
    group: str, layer: str, activation: str | None,
) -> Tensor:  # fmt: skip
    from fastnets.kernels.sync_batch_norm import sync_batch_norm_fwd

    y = empty_like(x)
    sync_batch_norm_fwd(x, mean, var, weight, bias, y, eps, activation)
    return y


@op_local.backend("triton", _why_not)
def _triton_local(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    from fastnets.kernels.batch_moments import batch_moments_fwd
    from fastnets.kernels.sync_batch_norm import sync_batch_norm_fwd

    y, mean, var = _fake_local(x)
    batch_moments_fwd(x, mean, var, as_variance=True)
    sync_batch_norm_fwd(x, mean, var, weight, bias, y, eps, activation)
    return y, mean, var


@op_reduce.backend("triton", _why_not)
def _triton_reduce(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float,
    activation: str | None,
) -> Tensor:  # fmt: skip
    from fastnets.kernels.sync_batch_norm import sync_batch_norm_reduce

    sums = _fake_reduce(dy, x)
    sync_batch_norm_reduce(dy, x, mean, var, weight, bias, sums, eps, activation)
    return sums


@op_dx.backend("triton", _why_not)
def _triton_dx(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, sums: Tensor,
    count: Tensor, eps: float, activation: str | None,
) -> Tensor:  # fmt: skip
    from fastnets.kernels.sync_batch_norm import sync_batch_norm_dx

    dx = empty_like(x)
    sync_batch_norm_dx(dy, x, mean, var, weight, bias, sums, count, dx, eps, activation)
    return dx


@op_local_backward.backend("triton", _why_not)
def _triton_local_backward(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from fastnets.kernels.sync_batch_norm import sync_batch_norm_dx

    sums = _triton_reduce(dy, x, mean, var, weight, bias, eps, activation)
    dx = empty_like(x)
    count = x.numel() // max(1, x.shape[1])
    sync_batch_norm_dx(dy, x, mean, var, weight, bias, sums, count, dx, eps, activation)
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

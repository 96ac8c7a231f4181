"""Batch normalisation whose statistics are those of all processes' batches together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastnets.ops._arguments import WRONG_TYPE, refuse_types_as
from fastnets.ops._batch_norm import (
    activation_backward,
    check_batch_norm,
    op,
    op_dx,
    op_local,
    op_local_backward,
    op_reduce,
    preactivation,
)
from fastnets.ops._exchange import exchange_moments, exchange_sums, group_name
from fastnets.ops.batch_moments import channel_dims, dense, layout, per_channel, sum_type
from fastnets.ops.batch_moments import op as moments

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# ---- autograd --------------------------------------------------------------------------------

# Whose statistics a call used: those of its own x (OWN), of all ranks' x (a group's name), or constants.
OWN, CONSTANT = "", None


class Call(NamedTuple):
    """What a gradient depends on beside dy, x and weight."""

    mean: Tensor
    var: Tensor
    bias: Tensor | None
    values: Tensor | None  # how many there are in a channel, on all ranks
    eps: float
    group: str | None
    layer: str
    activation: str | None
    needed: tuple[bool, bool, bool]  # dx, dw, db


def _gradients(dy: Tensor, x: Tensor, weight: Tensor | None, call: Call) -> tuple[Tensor | None, ...]:
    """dx, dw and db: those that are needed."""
    mean, var, bias, count, eps, group, layer, activation, (need_dx, need_dw, need_db) = call
    dy = dy.contiguous(memory_format=layout(x))
    dx = sums = None
    if need_dx and group == OWN:
        dx, sums = op_local_backward(dy, x, mean, var, weight, bias, eps, activation)
    elif need_dw or need_db or (need_dx and group != CONSTANT):
        sums = op_reduce(dy, x, mean, var, weight, bias, eps, activation)
    if need_dx and group == CONSTANT:  # dx = w r dz
        dz = dy
        if activation is not None:
            z = preactivation(x, mean, var, weight, bias, eps)
            dz = activation_backward(dy, z, activation).to(x.dtype).contiguous(memory_format=layout(x))
        dx = op(dz, torch.zeros_like(var), var, weight, None, None, eps, "", "", None)
    elif need_dx and group != OWN:
        dx = op_dx(dy, x, mean, var, weight, bias, exchange_sums(sums, group, layer), count, eps, activation)
    if sums is None:
        return dx, None, None
    sum_dz, sum_dz_xhat = sums.unbind()
    dw = sum_dz_xhat.to(weight.dtype) if need_dw and weight is not None else None
    return dx, dw, sum_dz.to(bias.dtype) if need_db and bias is not None else None


def _dz(dy: Tensor, x: Tensor, weight: Tensor | None, call: Call) -> Tensor:
    """dz as a function of dy, x, weight and bias, which may be differentiated."""
    if call.activation is None:
        return dy
    if call.group == OWN:
        z = op_local(x, weight, call.bias, call.eps, None)[0]
    else:
        z = op(x, call.mean, call.var, weight, call.bias, call.values, call.eps, call.group or "", call.layer, None)
    return activation_backward(dy, z, call.activation).to(dy.dtype)


class _Backward(torch.autograd.Function):
    """`_gradients` of a call without activation, where the gradient of those is asked for, as transforms always do."""

    generate_vmap_rule = True

    @staticmethod
    def forward(dy: Tensor, x: Tensor, weight: Tensor | None, *call: Any) -> tuple[Tensor | None, ...]:
        return _gradients(dy, x, weight, Call(*call))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.eps, ctx.group, ctx.layer, _, ctx.needed = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        dy, x, weight, mean, var, _, count = ctx.saved_tensors
        eps, group, layer, needed = ctx.eps, ctx.group, ctx.layer, ctx.needed
        a = sum_type(x)
        ddx, ddw, ddb = (None if g is None or not n else g.to(a) for g, n in zip(grads, needed, strict=True))
        r = per_channel((var.to(a) + eps).rsqrt(), x)
        dy, xhat = dy.to(a), (x.to(a) - per_channel(mean, x)) * r
        w = 1 if weight is None else per_channel(weight.to(a), x)
        g = w * (torch.zeros_like(dy) if ddx is None else ddx)
        u = torch.zeros_like(dy) if ddw is None else per_channel(ddw, x) * dy
        # The call computed dx = w project(dy), dw = sum dy xhat, db = sum dy, with
        # project(v) = r (v - mean(v) - xhat mean(v xhat)), which is its own transpose and d<v, xhat> / dx.
        if group == CONSTANT:
            project_g, project_u, project_dy = r * g, r * u, r * dy
            grad_x = project_u
        else:
            sums = torch.stack([t.sum(channel_dims(x)) for t in (dy, dy * xhat, g, g * xhat, u, u * xhat, g * dy)])
            if group != OWN:
                sums = exchange_sums(sums, group, layer)
            n = x.numel() // max(1, x.shape[1]) if count is None else count.clamp(min=1)
            dy0, dy1, g0, g1, u0, u1, gdy = (per_channel(t, x) for t in sums / n)
            project_dy, project_g, project_u = (
                r * (v - v0 - xhat * v1) for v, v0, v1 in ((dy, dy0, dy1), (g, g0, g1), (u, u0, u1))
            )
            # <g, project(dy)> = n r (mean(g dy) - mean(g) mean(dy) - mean(g xhat) mean(dy xhat)), where
            # dr / dx = -r² xhat / n and n d mean(v xhat) / dx = project(v).
            grad_x = project_u - r * (r * xhat * (gdy - g0 * dy0 - g1 * dy1) + g1 * project_dy + dy1 * project_g)
        grad_dy = project_g
        if ddw is not None:
            grad_dy = grad_dy + per_channel(ddw, x) * xhat
        if ddb is not None:
            grad_dy = grad_dy + per_channel(ddb, x)
        grad_w = None
        if weight is not None and ddx is not None:
            grad_w = (ddx * project_dy).sum(channel_dims(x)).to(weight.dtype)
        return grad_dy.to(x.dtype), grad_x.to(x.dtype), grad_w, *[None] * len(Call._fields)


def _differentiate(ctx: Any, dy: Tensor, needed: tuple[bool, bool, bool]) -> tuple[Tensor | None, ...]:
    x, weight, mean, var, bias, count = ctx.saved_tensors
    call = Call(mean, var, bias, count, ctx.eps, ctx.group, ctx.layer, ctx.activation, needed)
    if not torch.is_grad_enabled():
        return _gradients(dy, x, weight, call)
    return _Backward.apply(_dz(dy, x, weight, call), x, weight, *call._replace(activation=None))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mean, var, weight, bias, count, ctx.eps, group, ctx.layer, ctx.activation = inputs
    ctx.group = CONSTANT if count is None else group
    ctx.save_for_backward(x, weight, mean, var, bias, count)


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    need_dx, _, _, *needed = ctx.needs_input_grad[:5]
    dx, dw, db = _differentiate(ctx, dy, (need_dx, *needed))
    return dx, None, None, dw, db, *[None] * 5


def _setup_local(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, ctx.eps, ctx.activation = inputs
    ctx.group, ctx.layer = OWN, ""
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(x, weight, mean, var, bias, None)


def _backward_local(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    return *_differentiate(ctx, dy, ctx.needs_input_grad[:3]), None, None


op.autograd(_backward, _setup)
op_local.autograd(_backward_local, _setup_local)

# ---- public function -------------------------------------------------------------------------


def normalize(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | Tensor,
    eps: float,
    group: str,
    layer: str,
    activation: str | None = None,
) -> Tensor:
    """`sync_batch_norm` over the ranks of the group of that name ('': none), for the layer of that name."""
    if not training:
        if running_mean is None or running_var is None:
            check_batch_norm(input, running_mean, running_var, weight, bias, False, eps)
        return op(dense(input), running_mean, running_var, weight, bias, None, eps, "", "", activation)
    types = input.dtype, sum_type(input)
    if (
        group
        or running_mean is None
        or running_var is None
        or not running_mean.shape == running_var.shape == input.shape[1:2]
        or running_mean.dtype not in types
        or running_var.dtype not in types
    ):
        check_batch_norm(input, running_mean, running_var, weight, bias, True, eps, group != "")
    x = dense(input)
    count: Any
    if group:
        with torch.no_grad():
            mean, var, count = exchange_moments(*moments(x), group, layer)
        y = op(x, mean, var, weight, bias, count, eps, group, layer, activation)
        momentum = momentum * (count > 0).to(count.dtype)  # no values, no news
        correction = count / (count - 1).clamp(min=1)
    else:
        y, mean, var = op_local(x, weight, bias, eps, activation)
        count = x.numel() // max(1, x.shape[1])
        correction = count / max(1, count - 1)
    if running_mean is not None and running_var is not None and (group or count > 0):
        track(running_mean, running_var, mean, var * correction, momentum)
    return y


@torch.no_grad()
def track(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float | Tensor) -> None:
    """Takes a batch's mean and unbiased variance into the running ones, by that share."""
    for running, new in ((running_mean, mean), (running_var, var)):
        share = momentum.to(running.dtype) if isinstance(momentum, Tensor) else momentum
        running.lerp_(new if new.dtype == running.dtype else new.to(running.dtype), share)


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    process_group: ProcessGroup | None = None,
    *,
    activation: str | None = None,
) -> Tensor:
    r"""Is ``F.batch_norm``, with the statistics of all processes' batches taken together, and an activation after it.

    .. math::
        y_{n,c,i} = f\left(\frac{x_{n,c,i} - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \, w_c + b_c\right)

    In training, :math:`\mu` and :math:`\sigma^2` are mean and biased variance over batch, space and ranks, and the
    running statistics take :math:`\mu` and the unbiased variance over all ranks. The forward pass makes one
    collective of 2 c + 2 numbers a rank, the backward pass one of 2 c; none where there is one process. Batches may
    differ in size between ranks, and be empty. Gradients of weight and bias are of this rank's batch: that is what
    ``DistributedDataParallel`` sums up. Every rank of the group must call, in the same order.

    Args:
        input: (n, c, ...), two dimensions or more, floating. Contiguous and channels_last are read as they are, any
            other strides through a copy.
        running_mean, running_var: (c), input's type or float32, or both None; written in training, read otherwise.
        weight, bias: (c), input's type or float32, or None for 1 and 0.
        training: whether the batch's statistics are used, or the running ones.
        momentum: share of the new value in a running statistic, a number or a tensor without dimensions; for the
            cumulative average, 1 / the number of batches so far.
        eps: added to the variance; in training greater than 0.
        process_group: whose ranks take part; None for the default group, if ``torch.distributed`` is initialised.
        activation: f: None, 'relu', 'relu6', 'leaky_relu' (slope 0.1), 'silu', 'hardswish' or 'sigmoid', applied in the
            store. The backward pass computes its slope out of input: nothing more is kept or read for it.

    Returns:
        In the type, shape and layout of input. Statistics and sums are taken in float32 (float64 for float64).
        Allocates beside it a few numbers per channel and the working memory of :func:`batch_moments`; the backward
        pass likewise beside the gradients; of running statistics with an activation, also what that is applied to and
        its gradient. Double backward works, with one more collective, and another one for an
        activation.

    Raises:
        ValueError, RuntimeError, TypeError: as ``F.batch_norm``, with the same messages.
        ValueError: an unknown activation.
        RuntimeError: a rank did not come within the group's time-out, or (seen on a CPU) came from another layer of as
            many channels. Of another number, gloo itself ends the process.

    Paper: S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
    Covariate Shift", 2015, https://arxiv.org/abs/1502.03167

    Example:
        >>> import torch
        >>> from fastnets.ops import sync_batch_norm
        >>> mean, var = torch.zeros(1), torch.ones(1)
        >>> y = sync_batch_norm(torch.tensor([[1.0], [3.0]]), mean, var, training=True, momentum=0.5, eps=1e-12)
        >>> y.flatten().tolist(), mean.item(), var.item()
        ([-1.0, 1.0], 1.0, 1.5)
    """
    group = group_name(process_group) if training else ""
    try:
        return normalize(input, running_mean, running_var, weight, bias, training, momentum, eps, group, "", activation)
    except WRONG_TYPE:
        refuse_types_as(F.batch_norm, input, running_mean, running_var, weight, bias, training, momentum, eps)
        raise

"""Mean and sum of squared deviations of every channel, from one read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnets._op import Op
from fastnets.ops._arguments import WRONG_TYPE, refuse_types
from fastnets.ops._convolution import FLOATS, memory_format

# ---- layout ----------------------------------------------------------------------------------


def dense(x: Tensor) -> Tensor:
    """x (n, c, ...), or a copy of it if it is neither contiguous nor channels_last."""
    if x.is_contiguous():
        return x
    if x.dim() == 4:
        return x.contiguous(memory_format=memory_format(x))
    return x if x.is_contiguous(memory_format=layout(x)) else x.contiguous()


def layout(x: Tensor) -> torch.memory_format:
    """The layout of a dense tensor; of another one the layout to bring it into."""
    if x.is_contiguous() or x.dim() not in (4, 5):
        return torch.contiguous_format
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return last if x.is_contiguous(memory_format=last) else torch.contiguous_format


def empty_like(x: Tensor) -> Tensor:
    """An uninitialised tensor with the type, shape and layout of a dense x."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout(x))


def sum_type(x: Tensor) -> torch.dtype:
    """The type that sums over x are taken in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def channel_dims(x: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [0, *range(2, x.dim())]


def per_channel(t: Tensor, x: Tensor) -> Tensor:
    """t (c) in the shape that combines with x (n, c, ...)."""
    return t.view(-1, *[1] * (x.dim() - 2))


# ---- schema ----------------------------------------------------------------------------------


def _check(x: Tensor) -> None:
    if x.dim() < 2 or x.dtype not in FLOATS:
        raise RuntimeError(
            "batch_moments expects input (n, c, ...) of float32, float64, bfloat16 or float16, but got "
            f"{x.dtype} {tuple(x.shape)}"
        )


op = Op("batch_moments(Tensor x) -> (Tensor mean, Tensor m2, Tensor count)", _check)

# ---- reference -------------------------------------------------------------------------------


@op.backend("reference")
def _reference(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = x.numel() // max(1, x.shape[1])
    count = torch.full((), n, dtype=torch.int64, device=x.device)
    if n == 0:
        mean, m2 = (x.new_zeros(x.shape[1], dtype=sum_type(x)) for _ in range(2))
        return mean, m2, count
    var, mean = torch.var_mean(x.to(sum_type(x)), channel_dims(x), correction=0)
    return mean, var * n, count


# ---- backends --------------------------------------------------------------------------------


def _why_not(x: Tensor) -> list[str]:
    return [] if x.dtype in FLOATS else [f"its kernels take float32, float64, bfloat16 and float16, not {x.dtype}"]


op.native("cpu", _why_not)
op.native("cuda", _why_not)


@op.backend("triton", _why_not)
def _triton(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from fastnets.kernels.batch_moments import batch_moments_fwd

    mean, m2, count = _fake(x)
    batch_moments_fwd(x, mean, m2)
    return mean, m2, count.fill_(x.numel() // max(1, x.shape[1]))


# ---- fake ------------------------------------------------------------------------------------


@op.fake
def _fake(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, m2 = (x.new_empty(x.shape[1], dtype=sum_type(x)) for _ in range(2))
    return mean, m2, x.new_empty((), dtype=torch.int64)


# ---- autograd --------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[0])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx: Any, dmean: Tensor, dm2: Tensor, _: Any) -> Tensor:
    from fastnets.ops.sync_batch_norm import op as normalize

    x, mean = ctx.saved_tensors
    n = x.numel() // max(1, x.shape[1])
    # m2 = sum (x - mean)²: what the mean takes from it adds up to zero. So dx = dmean / n + 2 dm2 (x - mean).
    scale, shift = 2 * dm2, dmean / max(1, n)
    if torch.is_grad_enabled():  # this gradient is to be differentiated in its turn
        return ((x - per_channel(mean, x)) * per_channel(scale, x) + per_channel(shift, x)).to(x.dtype)
    return normalize(x, mean, torch.ones_like(mean), scale, shift, None, 0.0, "", "", None)


op.autograd(_backward, _setup)

# ---- public function -------------------------------------------------------------------------


def batch_moments(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Mean and sum of squared deviations of every channel over batch and space, from one read of the input.

    .. math::
        \mathrm{mean}_c = \frac{1}{k} \sum_{n,i} x_{n,c,i}, \qquad
        \mathrm{m2}_c = \sum_{n,i} (x_{n,c,i} - \mathrm{mean}_c)^2

    Deviations are taken from the mean of what came before, so that a mean far from zero costs no digits; the moments
    of parts are merged by Chan's formula.

    Args:
        input: (n, c, ...), two dimensions or more, floating. Contiguous and channels_last are read as they are, any
            other strides through a copy.

    Returns:
        mean (c) and m2 (c), in float32 (float64 for float64), and count, the number k of values in a channel, as an
        int64 tensor without dimensions. All are 0 for an empty batch. The biased variance is m2 / count, the unbiased
        one m2 / (count - 1). Allocates beside them at most a sixteenth of the input's size, and a few numbers per channel.

    Raises:
        RuntimeError: the input has fewer than two dimensions or is not floating.
        TypeError: it is no tensor.

    Paper: T. Chan, G. Golub, R. LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
    1979, https://doi.org/10.1007/978-3-642-51461-6_3

    Example:
        >>> import torch
        >>> from fastnets.ops import batch_moments
        >>> mean, m2, count = batch_moments(torch.tensor([[1.0, 10.0], [3.0, 40.0]]))
        >>> mean.tolist(), m2.tolist(), count.item()
        ([2.0, 25.0], [2.0, 450.0], 2)
    """
    try:
        return op(dense(input))
    except WRONG_TYPE:
        refuse_types(batch_moments, input)
        raise

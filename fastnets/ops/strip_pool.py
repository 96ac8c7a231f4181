"""Strip pooling: the means of an image along its rows and along its columns, SPNet's layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnets._op import Op
from fastnets.ops._arguments import WRONG_TYPE, refuse_types
from fastnets.ops._convolution import FLOATS, empty, memory_format

# ---- schema ----------------------------------------------------------------------------------


def _check(x: Tensor) -> None:
    if x.dim() != 4 or x.dtype not in FLOATS:
        raise RuntimeError(
            "strip_pool expects input (n, c, h, w) or (c, h, w) of float32, float64, bfloat16 or float16, but got "
            f"{x.dtype} of shape {tuple(x.shape)}"
        )


def _check_backward(drows: Tensor, dcolumns: Tensor, channels_last: bool) -> None:
    _check(drows)
    n, c, _, w = drows.shape
    fits = w == 1 and dcolumns.dim() == 4 and dcolumns.shape[:3] == (n, c, 1)
    if not fits or drows.dtype != dcolumns.dtype or drows.device != dcolumns.device:
        raise RuntimeError(
            "strip_pool_backward expects gradients (n, c, h, 1) and (n, c, 1, w) of one type and device, but got "
            f"{drows.dtype} {tuple(drows.shape)} on {drows.device} and "
            f"{dcolumns.dtype} {tuple(dcolumns.shape)} on {dcolumns.device}"
        )


op = Op("strip_pool(Tensor x) -> (Tensor rows, Tensor columns)", _check)
op_backward = Op("strip_pool_backward(Tensor drows, Tensor dcolumns, bool channels_last) -> Tensor", _check_backward)

# ---- reference -------------------------------------------------------------------------------


def _sum_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _mean(x: Tensor, dim: int) -> Tensor:
    y = x.mean(dim, keepdim=True, dtype=_sum_type(x))
    if torch.onnx.is_in_onnx_export():
        return y.to(x.dtype)
    return empty(x, y.shape).copy_(y)  # in the layout of x: PyTorch's mean is always contiguous


@op.backend("reference")
def _reference(x: Tensor) -> tuple[Tensor, Tensor]:
    return _mean(x, 3), _mean(x, 2)


@op_backward.backend("reference")
def _reference_backward(drows: Tensor, dcolumns: Tensor, channels_last: bool) -> Tensor:
    dx = _fake_backward(drows, dcolumns, channels_last)
    drows, dcolumns = drows.to(_sum_type(drows)), dcolumns.to(_sum_type(drows))
    return dx.copy_(drows / dx.shape[3] + dcolumns / dx.shape[2])


# ---- backends --------------------------------------------------------------------------------


def _why_not(x: Tensor, *args: Any) -> list[str]:
    return [] if x.dtype in FLOATS else [f"its kernels take float32, float64, bfloat16 and float16, not {x.dtype}"]


for _name in ("cpu", "cuda"):
    op.native(_name, _why_not)
    op_backward.native(_name, _why_not)


@op.backend("triton", _why_not)
def _triton(x: Tensor) -> tuple[Tensor, Tensor]:
    from fastnets.kernels.strip_pool import strip_pool_fwd

    rows, columns = _fake(x)
    strip_pool_fwd(x, rows, columns)
    return rows, columns


@op_backward.backend("triton", _why_not)
def _triton_backward(drows: Tensor, dcolumns: Tensor, channels_last: bool) -> Tensor:
    from fastnets.kernels.strip_pool import strip_pool_bwd

    dx = _fake_backward(drows, dcolumns, channels_last)
    strip_pool_bwd(drows, dcolumns, dx)
    return dx


# ---- fake ------------------------------------------------------------------------------------


@op.fake
def _fake(x: Tensor) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    return empty(x, (n, c, h, 1)), empty(x, (n, c, 1, w))


@op_backward.fake
def _fake_backward(drows: Tensor, dcolumns: Tensor, channels_last: bool) -> Tensor:
    shape = *drows.shape[:3], dcolumns.shape[3]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=drows.dtype, device=drows.device, memory_format=layout)


# ---- autograd --------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.channels_last = memory_format(inputs[0]) == torch.channels_last


def _backward(ctx: Any, drows: Tensor, dcolumns: Tensor) -> Tensor:
    return op_backward(drows, dcolumns, ctx.channels_last)  # a gradient that is missing comes as zeros


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass  # linear: nothing to keep


def _backward_backward(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
    # dx[h, w] = drows[h] / w + dcolumns[w] / h: the transpose of that linear map takes the means of ddx.
    return *op(ddx), None


op.autograd(_backward, _setup)
op_backward.autograd(_backward_backward, _setup_backward)

# ---- public function -------------------------------------------------------------------------


def strip_pool(input: Tensor) -> tuple[Tensor, Tensor]:
    r"""Takes the mean of every row and of every column of an image, from one read of it.

    .. math::
        \text{rows}_{n,c,i,0} = \frac{1}{w} \sum_j x_{n,c,i,j} \qquad
        \text{columns}_{n,c,0,j} = \frac{1}{h} \sum_i x_{n,c,i,j}

    Args:
        input: (n, c, h, w) or (c, h, w), floating; contiguous, channels_last or any other strides (the CPU kernels
            copy those first).

    Returns:
        (rows, columns): (n, c, h, 1) and (n, c, 1, w), or without n, in the type and layout of input. Sums are taken in
        float32 (float64 for float64), in an order that depends on shape and layout alone. The mean of no pixels is
        NaN. Allocates nothing else that grows with n or h, except on a CPU in channels_last: sums of columns, no more than
        a sixteenth of what the input takes in float32, or one set for each image. The backward pass keeps nothing and
        allocates its result.

    Raises:
        RuntimeError: input has another number of dimensions or another type.
        TypeError: input is no tensor.

    Paper: Q. Hou et al., "Strip Pooling: Rethinking Spatial Pooling for Scene Parsing", 2020,
    https://arxiv.org/abs/2003.13328

    Example:
        >>> import torch
        >>> from fastnets.ops import strip_pool
        >>> rows, columns = strip_pool(torch.tensor([[[1.0, 3.0], [5.0, 7.0]]]))
        >>> rows.tolist(), columns.tolist()
        ([[[2.0], [6.0]]], [[[3.0, 5.0]]])
    """
    try:
        if input.dim() == 3:
            rows, columns = op(input[None])
            return rows[0], columns[0]
        return op(input)
    except WRONG_TYPE:
        refuse_types(strip_pool, input)
        raise

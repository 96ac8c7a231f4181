"""Corner pooling: the running maximum along one direction of an image, CornerNet's layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnets._op import Op
from fastnets.ops._arguments import WRONG_TYPE, refuse_types
from fastnets.ops._convolution import FLOATS, memory_format

# Where each direction scans: the dimension, and whether from its end.
DIRECTIONS = {"top": (2, True), "bottom": (2, False), "left": (3, True), "right": (3, False)}
CORNERS = {"top_left": ("top", "left"), "bottom_right": ("bottom", "right")}
TIES = ("first", "last")
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
TYPES = (*FLOATS, *INTEGERS, torch.bool)

# ---- schema ----------------------------------------------------------------------------------


def check_choice(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, but got {value!r}")


def _check(x: Tensor, direction: str, tie: str) -> None:
    check_choice("direction", direction, DIRECTIONS)
    check_choice("tie", tie, TIES)
    if x.dim() != 4 or x.dtype not in TYPES:
        raise RuntimeError(
            "corner_pool expects a real input (n, c, h, w) or (c, h, w) of at most 64 bits, signed unless uint8 or "
            f"bool, but got {x.dtype} of shape {tuple(x.shape)}"
        )


def _check_backward(dy: Tensor, x: Tensor, direction: str, tie: str) -> None:
    _check(x, direction, tie)
    if dy.shape != x.shape or dy.dtype != x.dtype or dy.device != x.device or x.dtype not in FLOATS:
        raise RuntimeError(
            "corner_pool_backward expects a gradient of the shape, floating type and device of the input, but got "
            f"{dy.dtype} {tuple(dy.shape)} on {dy.device} for {x.dtype} {tuple(x.shape)} on {x.device}"
        )


def _check_sum(vertical: Tensor, horizontal: Tensor, corner: str) -> None:
    check_choice("corner", corner, CORNERS)
    v, h = vertical, horizontal
    alike = v.shape == h.shape and v.dtype == h.dtype and v.device == h.device
    if not alike or v.dim() != 4 or v.dtype not in FLOATS + INTEGERS:
        raise RuntimeError(
            "corner_pool_sum expects two inputs (n, c, h, w) or (c, h, w) of one shape, device and type that can be "
            f"added, but got {v.dtype} {tuple(v.shape)} on {v.device} and {h.dtype} {tuple(h.shape)} on {h.device}"
        )


op = Op("corner_pool(Tensor x, str direction, str tie) -> Tensor", _check)
op_backward = Op("corner_pool_backward(Tensor dy, Tensor x, str direction, str tie) -> Tensor", _check_backward)
op_sum = Op("corner_pool_sum(Tensor vertical, Tensor horizontal, str corner) -> Tensor", _check_sum)

# ---- reference -------------------------------------------------------------------------------


@op.backend("reference")
def _reference(x: Tensor, direction: str, tie: str) -> Tensor:
    dim, reverse = DIRECTIONS[direction]
    if torch.onnx.is_in_onnx_export():
        return _doubling(x, dim, reverse)
    y = x.flip(dim).cummax(dim).values.flip(dim) if reverse else x.cummax(dim).values
    return y.contiguous(memory_format=memory_format(x))


def _doubling(x: Tensor, dim: int, reverse: bool) -> Tensor:
    """The same of ops that ONNX has: windows of 1, 2, 4, ... elements until they cover the dimension."""
    from torch._higher_order_ops import while_loop

    length = x.shape[dim]
    here = torch.arange(length, device=x.device)

    def shorter(size: Tensor, y: Tensor) -> Tensor:
        return size < length

    def double(size: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # The window that follows; past the end it is the last one, which every window there contains.
        next_window = (here + size).clamp(max=length - 1) if reverse else (here - size).clamp(min=0)
        return size * 2, torch.maximum(y, y.index_select(dim, next_window))

    one = torch.ones((), dtype=torch.int64, device=x.device)
    return while_loop(shorter, double, (one, x))[1]


def _sources(x: Tensor, direction: str, tie: str) -> Tensor:
    """For each output the index, along the dimension, of the input that it is, and that receives its gradient."""
    dim, reverse = DIRECTIONS[direction]
    y, index = (x.flip(dim) if reverse else x).cummax(dim)
    place = torch.arange(x.shape[dim], device=x.device)
    if tie == "first":  # the last place where the running maximum changed
        before = y.index_select(dim, (place - 1).clamp(min=0))
        changed = (y > before) | (y.isnan() & ~before.isnan())
        index = torch.where(changed, place.view(-1, 1) if dim == 2 else place, 0).cummax(dim).values
    return x.shape[dim] - 1 - index.flip(dim) if reverse else index


@op_backward.backend("reference")
def _reference_backward(dy: Tensor, x: Tensor, direction: str, tie: str) -> Tensor:
    sum_type = torch.float64 if x.dtype == torch.float64 else torch.float32
    dx = torch.zeros_like(x, dtype=sum_type)
    dx = dx.scatter_add(DIRECTIONS[direction][0], _sources(x, direction, tie), dy.to(sum_type))
    return dx.to(x.dtype).contiguous(memory_format=memory_format(x))


@op_sum.backend("reference")
def _reference_sum(vertical: Tensor, horizontal: Tensor, corner: str) -> Tensor:
    v, h = (_reference(x, d, "first") for x, d in zip((vertical, horizontal), CORNERS[corner], strict=True))
    return (v + h).contiguous(memory_format=memory_format(vertical))


# ---- backends --------------------------------------------------------------------------------


def _why_not(x: Tensor, *args: Any) -> list[str]:
    return [] if x.dtype in TYPES else [f"its kernels do not take {x.dtype}"]


for _name in ("cpu", "cuda"):
    for _op in (op, op_backward, op_sum):
        _op.native(_name, _why_not)


@op.backend("triton", _why_not)
def _triton(x: Tensor, direction: str, tie: str) -> Tensor:
    from fastnets.kernels.corner_pool import corner_pool_fwd

    y = _fake(x, direction, tie)
    corner_pool_fwd(x, y, *DIRECTIONS[direction])
    return y


@op_backward.backend("triton", _why_not)
def _triton_backward(dy: Tensor, x: Tensor, direction: str, tie: str) -> Tensor:
    from fastnets.kernels.corner_pool import corner_pool_bwd

    dx = _fake_backward(dy, x, direction, tie)
    corner_pool_bwd(dy, x, dx, *DIRECTIONS[direction], tie == "first")
    return dx


@op_sum.backend("triton", _why_not)
def _triton_sum(vertical: Tensor, horizontal: Tensor, corner: str) -> Tensor:
    from fastnets.kernels.corner_pool import corner_pool_sum_fwd

    y = _fake_sum(vertical, horizontal, corner)
    corner_pool_sum_fwd(vertical, horizontal, y, corner == "top_left")
    return y


# ---- fake ------------------------------------------------------------------------------------


@op.fake
def _fake(x: Tensor, direction: str, tie: str) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


@op_backward.fake
def _fake_backward(dy: Tensor, x: Tensor, direction: str, tie: str) -> Tensor:
    return _fake(x, direction, tie)


@op_sum.fake
def _fake_sum(vertical: Tensor, horizontal: Tensor, corner: str) -> Tensor:
    return _fake(vertical, "top", "first")


# ---- autograd --------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.direction, ctx.tie = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    return _gradient(dy, x, ctx.direction, ctx.tie), None, None


def _gradient(dy: Tensor, x: Tensor, direction: str, tie: str) -> Tensor:
    # A gradient in another layout (or of stride 0) is brought into the input's, once.
    return op_backward(dy.contiguous(memory_format=memory_format(x)), x, direction, tie)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, ctx.direction, ctx.tie = inputs
    ctx.save_for_backward(x)


def _backward_backward(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
    # dx is linear in dy: each dy goes to the place of its maximum, from where its own gradient comes.
    (x,) = ctx.saved_tensors
    return ddx.gather(DIRECTIONS[ctx.direction][0], _sources(x, ctx.direction, ctx.tie)), None, None, None


def _setup_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.corner = inputs
    ctx.save_for_backward(*tensors)


def _backward_sum(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    each = zip(ctx.saved_tensors, CORNERS[ctx.corner], ctx.needs_input_grad[:2], strict=True)
    return *(_gradient(dy, x, d, "first") if needed else None for x, d, needed in each), None


op.autograd(_backward, _setup)
op_backward.autograd(_backward_backward, _setup_backward)
op_sum.autograd(_backward_sum, _setup_sum)

# ---- public functions ------------------------------------------------------------------------


def corner_pool(input: Tensor, direction: str, *, tie: str = "first") -> Tensor:
    r"""Replaces every pixel by the largest on the way from it to one border of the image.

    .. math::
        \text{top: } y_{i,j} = \max_{k \ge i} x_{k,j} \qquad \text{bottom: } y_{i,j} = \max_{k \le i} x_{k,j} \qquad
        \text{left: } y_{i,j} = \max_{k \ge j} x_{i,k} \qquad \text{right: } y_{i,j} = \max_{k \le j} x_{i,k}

    The scan begins at the far border: 'top' goes from the last row upwards. From a NaN on, all results are NaN.

    Args:
        input: (n, c, h, w) or (c, h, w), floating, integer or bool; contiguous, channels_last or any other strides
            (the CPU kernels copy those first).
        direction: 'top', 'bottom', 'left' or 'right'.
        tie: which of several equal maxima receives the gradient: 'first' in the order of the scan, as in CornerNet's
            code, or 'last', as in ``torch.cummax``. A NaN counts as larger than any number, and as equal to a NaN.

    Returns:
        The shape, type and layout of input. Allocates nothing else of that size, and keeps only input for the
        backward pass, which finds the maxima anew; a gradient of the gradient holds them as int64.

    Raises:
        ValueError: an unknown direction or tie.
        RuntimeError: input has another number of dimensions or another type.
        TypeError: an argument is no tensor, or no str.

    Paper: H. Law and J. Deng, "CornerNet: Detecting Objects as Paired Keypoints", 2018,
    https://arxiv.org/abs/1808.01244

    Example:
        >>> import torch
        >>> from fastnets.ops import corner_pool
        >>> corner_pool(torch.tensor([[[2.0, 1.0, 3.0, 0.0]]]), "left").tolist()
        [[[3.0, 3.0, 3.0, 0.0]]]
    """
    try:
        if input.dim() == 3:
            return op(input[None], direction, tie)[0]
        return op(input, direction, tie)
    except WRONG_TYPE:
        refuse_types(corner_pool, input, direction, tie)
        raise


def corner_pool_sum(vertical: Tensor, horizontal: Tensor, corner: str) -> Tensor:
    r"""Adds the corner pools of two maps towards the two sides of a corner, in one pass over memory on a CPU.

    .. math::
        \text{top\_left: } y_{i,j} = \max_{k \ge i} v_{k,j} + \max_{k \ge j} h_{i,k} \qquad
        \text{bottom\_right: } y_{i,j} = \max_{k \le i} v_{k,j} + \max_{k \le j} h_{i,k}

    Of equal maxima, the first in the order of the scan receives the gradient, as in :func:`corner_pool`.

    Args:
        vertical: v, (n, c, h, w) or (c, h, w), floating or integer; pooled towards the top or the bottom.
        horizontal: h, the shape, type and device of vertical; pooled towards the left or the right.
        corner: 'top_left' or 'bottom_right'.

    Returns:
        The shape, type and layout of vertical. Allocates nothing else of that size where both inputs have that layout.

    Raises:
        ValueError: an unknown corner.
        RuntimeError: the inputs do not fit each other, or have another number of dimensions or another type.
        TypeError: an argument is no tensor, or no str.

    Paper: H. Law and J. Deng, "CornerNet: Detecting Objects as Paired Keypoints", 2018,
    https://arxiv.org/abs/1808.01244

    Example:
        >>> import torch
        >>> from fastnets.ops import corner_pool_sum
        >>> x = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> corner_pool_sum(x, 10 * x, "top_left").tolist()
        [[[11.0, 2.0], [20.0, 22.0]]]
    """
    try:
        if vertical.dim() == 3 and horizontal.dim() == 3:
            return op_sum(vertical[None], horizontal[None], corner)[0]
        return op_sum(vertical, horizontal, corner)
    except WRONG_TYPE:
        refuse_types(corner_pool_sum, vertical, horizontal, corner)
        raise

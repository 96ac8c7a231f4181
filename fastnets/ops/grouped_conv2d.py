"""Grouped convolution: channels in groups, each convolved by itself."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastnets._op import Op
from fastnets.ops import _convolution as convolution
from fastnets.ops._activation import check_activation
from fastnets.ops._arguments import WRONG_TYPE, refuse_types_as
from fastnets.ops._convolution import Ints, Pair, pad_input, pair, why_not

# ---- schema ----------------------------------------------------------------------------------


def _check(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    activation: str | None,
) -> None:
    if activation is not None:
        check_activation(activation)
    if not convolution.fits(x, w, bias, stride, padding, dilation, groups):
        # PyTorch's own message, for everything that F.conv2d refuses as well.
        F.conv2d(x, w, bias, stride, padding, dilation, groups)
        raise RuntimeError(
            "grouped_conv2d expects input (n, c, h, w), weight (o, c / groups, kh, kw) and bias (o), but got input "
            f"{tuple(x.shape)}, weight {tuple(w.shape)}, bias {None if bias is None else tuple(bias.shape)} and "
            f"groups {groups}"
        )


def _check_backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int, *needed: bool
) -> None:
    _check(x, w, None, stride, padding, dilation, groups, None)
    convolution.check_gradient("grouped_conv2d_backward", dy, x, w, stride, padding, dilation)


op = Op(
    "grouped_conv2d(Tensor x, Tensor w, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, "
    "int groups, str? activation) -> Tensor",
    _check,
    autocast=True,
)
op_backward = Op(
    "grouped_conv2d_backward(Tensor dy, Tensor x, Tensor w, int[2] stride, int[2] padding, int[2] dilation, "
    "int groups, bool need_dx, bool need_dw, bool need_db) -> (Tensor dx, Tensor dw, Tensor db)",
    _check_backward,
)

# ---- reference -------------------------------------------------------------------------------


@op.backend("reference")
def _reference(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    activation: str | None,
) -> Tensor:
    return convolution.reference(x, w, bias, stride, padding, dilation, groups, activation)


@op_backward.backend("reference")
def _reference_backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int, *needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return convolution.reference_backward(dy, x, w, stride, padding, dilation, groups, *needed)


# ---- backends --------------------------------------------------------------------------------

for _name in ("cpu", "cuda"):
    op.native(_name, why_not)
    op_backward.native(_name, why_not)


@op.backend("triton", why_not)
def _triton(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    activation: str | None,
) -> Tensor:
    from fastnets.kernels.grouped_conv2d import grouped_conv2d_fwd

    y = convolution.empty_result(x, w, stride, padding, dilation)
    grouped_conv2d_fwd(x, w, bias, y, stride, padding, dilation, activation)
    return y


@op_backward.backend("triton", why_not)
def _triton_backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int, *needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from fastnets.kernels.grouped_conv2d import grouped_conv2d_bwd

    gradients = convolution.empty_gradients(x, w, *needed)
    grouped_conv2d_bwd(dy, x, w, *gradients, stride, padding, dilation, *needed)
    return gradients


# ---- fake ------------------------------------------------------------------------------------


@op.fake
def _fake(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    activation: str | None,
) -> Tensor:
    return convolution.empty_result(x, w, stride, padding, dilation)


@op_backward.fake
def _fake_backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int, *needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return convolution.empty_gradients(x, w, *needed)


# ---- autograd --------------------------------------------------------------------------------

convolution.differentiate(op, op_backward)

# ---- public function -------------------------------------------------------------------------


def grouped_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
) -> Tensor:
    r"""Convolves each of ``groups`` equal parts of the channels by itself, then applies an activation in the same pass.

    .. math::
        y_{n,o,i,j} = f\Big(b_o + \sum_{k,p,q} w_{o,k,p,q} \;
                      x_{n,\,g(o) C + k,\; i s_h - p_h + p d_h,\; j s_w - p_w + q d_w}\Big)

    with C = c / groups input channels in a group and g(o) the group of output channel o.

    Args:
        input: (n, c, h, w) or (c, h, w), floating; contiguous, channels_last or any other strides.
        weight: (o, c / groups, kh, kw), input's type and device; o is a multiple of groups.
        bias: (o), input's type and device, or None.
        stride: steps of the kernel in pixels, an int or (vertical, horizontal), at least 1.
        padding: rows and columns of zeros on each side, an int or (vertical, horizontal), or 'valid' (none)
            or 'same' (as many as keep h and w; stride 1 only; an odd number of them takes a copy of input).
        dilation: distance between the kernel's taps in pixels, an int or (vertical, horizontal), at least 1.
        groups: how many parts the channels of input and result fall into, at least 1; c is a multiple of it.
        activation: f: None, 'relu', 'relu6', 'leaky_relu' (slope 0.1), 'silu', 'hardswish' or 'sigmoid'.

    Returns:
        (n, o, h', w') or (o, h', w') in the type and layout of input; h' and w' as ``F.conv2d`` gives. Sums are
        taken in float32 (float64 for float64). Allocates beside it, for each thread of a CPU and in the type of the
        sums, the weights of its channels and a strip of rows: 192 KiB, or one row with those its kernel spans, or, with
        few weights in channels_last, 400 KiB and all weights; of 1x1 kernels on float32 in channels_last no rows, but
        the weights of all groups, each with its outputs brought to a multiple of 32. On a GPU it allocates nothing else.
        The backward pass holds as much beside the gradients, on a CPU two strips, and partial sums of those of weight and
        bias, on a CPU up to 16 of each; with an activation also the gradient before it, for 'silu' and 'hardswish' what
        that is applied to; and a copy of a gradient in another layout than the input's.

    Raises:
        RuntimeError, TypeError: shapes, types or devices do not fit, with the message of ``F.conv2d``.
        ValueError: an unknown activation.

    Paper: S. Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", 2017,
    https://arxiv.org/abs/1611.05431

    Example:
        >>> import torch
        >>> from fastnets.ops import grouped_conv2d
        >>> x = torch.arange(8.0).view(1, 4, 1, 2)
        >>> grouped_conv2d(x, torch.ones(2, 2, 1, 2), groups=2, activation="relu6").flatten().tolist()
        [6.0, 6.0]
    """
    try:
        steps, spacing = pair(stride), pair(dilation)
        if input.dim() == 3:
            return grouped_conv2d(input[None], weight, bias, steps, padding, spacing, groups, activation=activation)[0]
        x, border = pad_input(input, weight, steps, padding, spacing)
        return op(x, weight, bias, steps, border, spacing, groups, activation)
    except WRONG_TYPE:
        refuse_types_as(F.conv2d, input, weight, bias, stride, padding, dilation, groups)
        raise

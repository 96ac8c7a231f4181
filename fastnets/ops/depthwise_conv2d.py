"""Depthwise convolution: every channel convolved with kernels of its own."""

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
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, activation: str | None
) -> None:
    if activation is not None:
        check_activation(activation)
    channels = x.shape[1] if x.dim() > 1 else 1
    if not convolution.fits(x, w, bias, stride, padding, dilation, channels):
        # PyTorch's own message, for everything that F.conv2d refuses as well.
        F.conv2d(x, w, bias, stride, padding, dilation, channels)
        raise RuntimeError(
            "depthwise_conv2d expects input (n, c, h, w), weight (c * m, 1, kh, kw) and bias (c * m), but got "
            f"input {tuple(x.shape)}, weight {tuple(w.shape)} and bias {None if bias is None else tuple(bias.shape)}"
        )


def _check_backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, *needed: bool
) -> None:
    _check(x, w, None, stride, padding, dilation, None)
    convolution.check_gradient("depthwise_conv2d_backward", dy, x, w, stride, padding, dilation)


op = Op(
    "depthwise_conv2d(Tensor x, Tensor w, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, "
    "str? activation) -> Tensor",
    _check,
    autocast=True,
)
op_backward = Op(
    "depthwise_conv2d_backward(Tensor dy, Tensor x, Tensor w, int[2] stride, int[2] padding, int[2] dilation, "
    "bool need_dx, bool need_dw, bool need_db) -> (Tensor dx, Tensor dw, Tensor db)",
    _check_backward,
)

# ---- reference -------------------------------------------------------------------------------


@op.backend("reference")
def _reference(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, activation: str | None
) -> Tensor:
    return convolution.reference(x, w, bias, stride, padding, dilation, x.shape[1], activation)


@op_backward.backend("reference")
def _reference_backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, *needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return convolution.reference_backward(dy, x, w, stride, padding, dilation, x.shape[1], *needed)


# ---- backends --------------------------------------------------------------------------------

for _name in ("cpu", "cuda"):
    op.native(_name, why_not)
    op_backward.native(_name, why_not)


@op.backend("triton", why_not)
def _triton(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, activation: str | None
) -> Tensor:
    from fastnets.kernels.depthwise_conv2d import depthwise_conv2d_fwd

    y = convolution.empty_result(x, w, stride, padding, dilation)
    depthwise_conv2d_fwd(x, w, bias, y, stride, padding, dilation, activation)
    return y


@op_backward.backend("triton", why_not)
def _triton_backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, *needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from fastnets.kernels.depthwise_conv2d import depthwise_conv2d_bwd

    gradients = convolution.empty_gradients(x, w, *needed)
    depthwise_conv2d_bwd(dy, x, w, *gradients, stride, padding, dilation, *needed)
    return gradients


# ---- fake ------------------------------------------------------------------------------------


@op.fake
def _fake(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, activation: str | None
) -> Tensor:
    return convolution.empty_result(x, w, stride, padding, dilation)


@op_backward.fake
def _fake_backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, *needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return convolution.empty_gradients(x, w, *needed)


# ---- autograd --------------------------------------------------------------------------------

convolution.differentiate(op, op_backward)

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
            or 'same' (as many as keep h and w; stride 1 only; an odd number of them takes a copy of input).
        dilation: distance between the kernel's taps in pixels, an int or (vertical, horizontal), at least 1.
        activation: f: None, 'relu', 'relu6', 'leaky_relu' (slope 0.1), 'silu', 'hardswish' or 'sigmoid'.

    Returns:
        (n, c·m, h', w') or (c·m, h', w') in the type and layout of input; h' and w' as ``F.conv2d`` gives.
        Sums are taken in float32 (float64 for float64). Allocates nothing else of that size.

    Raises:
        RuntimeError, TypeError: shapes, types or devices do not fit, with the message of ``F.conv2d``.
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
    try:
        steps, spacing = pair(stride), pair(dilation)
        if input.dim() == 3:
            return depthwise_conv2d(input[None], weight, bias, steps, padding, spacing, activation=activation)[0]
        x, border = pad_input(input, weight, steps, padding, spacing)
        return op(x, weight, bias, steps, border, spacing, activation)
    except WRONG_TYPE:
        refuse_types_as(F.conv2d, input, weight, bias, stride, padding, dilation, 1)
        raise

"""Precision gating: a convolution in few bits, refined to more bits where its result passes a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnets._op import Op
from fastnets.ops._arguments import WRONG_TYPE, refuse_types, refuse_types_as
from fastnets.ops._convolution import FLOATS, Ints, Pair, empty, memory_format, output_size, pad_input, pair

ALPHA = 5.0  # steepness of the sigmoid that stands for the gate in the backward pass
aten = torch.ops.aten

# ---- schema ----------------------------------------------------------------------------------


def check(
    x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None, scale: Tensor | None,
    stride: Ints, padding: Ints, dilation: Ints, groups: int,
    activation_bits: int, high_bits: int, weight_bits: int, sparse_backward: bool,
) -> None:  # fmt: skip
    in_range = 1 <= high_bits < activation_bits <= 8 and 1 <= weight_bits <= 8
    if not in_range or float in map(type, (high_bits, activation_bits, weight_bits)):
        raise ValueError(
            "precision_gate_conv2d expects integers 1 <= high_bits < activation_bits <= 8 and 1 <= weight_bits <= 8, but "
            f"got high_bits {high_bits}, activation_bits {activation_bits} and weight_bits {weight_bits}"
        )
    if not _fits(x, w, bias, stride, padding, dilation, groups):
        # PyTorch's own message, for everything that F.conv2d refuses as well.
        F.conv2d(x, w, bias, stride, padding, dilation, groups)
        raise RuntimeError(
            "precision_gate_conv2d expects a floating input (n, c, h, w), weight (o, c / groups, kh, kw) and bias (o), "
            f"but got input {x.dtype} {tuple(x.shape)}, weight {tuple(w.shape)} and bias "
            f"{None if bias is None else tuple(bias.shape)} for {groups} groups"
        )
    if threshold.shape != w.shape[:1] or (threshold.dtype, threshold.device) != (x.dtype, x.device):
        raise RuntimeError(
            f"precision_gate_conv2d expects a threshold of shape ({w.shape[0]},), type {x.dtype}, on {x.device}, "
            f"but got shape {tuple(threshold.shape)}, type {threshold.dtype}, on {threshold.device}"
        )
    if scale is not None and (scale.numel() != 1 or (scale.dtype, scale.device) != (x.dtype, x.device)):
        raise RuntimeError(
            f"precision_gate_conv2d expects a scale of one number, type {x.dtype}, on {x.device}, "
            f"but got shape {tuple(scale.shape)}, type {scale.dtype}, on {scale.device}"
        )


def _fits(x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> bool:
    if x.dim() != 4 or w.dim() != 4 or x.dtype not in FLOATS or x.dtype != w.dtype or x.device != w.device:
        return False
    if bias is not None and (bias.shape != w.shape[:1] or bias.dtype != x.dtype or bias.device != x.device):
        return False
    if groups < 1 or w.shape[1] == 0 or x.shape[1] != w.shape[1] * groups or w.shape[0] == 0 or w.shape[0] % groups:
        return False
    if len(stride) != 2 or len(padding) != 2 or len(dilation) != 2:
        return False
    if min(stride) < 1 or min(padding) < 0 or min(dilation) < 1 or w.shape[2] == 0 or w.shape[3] == 0:
        return False
    height, width = output_size(x, w, stride, padding, dilation)
    return height > 0 and width > 0


op = Op(
    "precision_gate_conv2d(Tensor x, Tensor w, Tensor threshold, Tensor? bias, Tensor? scale, int[2] stride, "
    "int[2] padding, int[2] dilation, int groups, int activation_bits, int high_bits, int weight_bits, "
    "bool sparse_backward) -> (Tensor y, Tensor open)",  # open: how many gates are, int64
    check,
    autocast=True,
)

# ---- reference -------------------------------------------------------------------------------


def _sum_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def largest(x: Tensor) -> Tensor:
    """max|x|, 0 of nothing, in the type of the sums."""
    x = x.detach()
    return (x.abs().amax((0, 1, 2, 3)) if x.numel() else x.new_zeros(())).to(_sum_type(x))


def _scale_of(x: Tensor, scale: Tensor | None) -> Tensor:
    return largest(x) if scale is None else scale.reshape(()).to(_sum_type(x))


def quantize(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Integers of up to ``bits`` bits beside the sign. What is no number (NaN, 0 / 0) becomes 0."""
    share = (x.detach().to(scale.dtype).abs() / scale).clamp(0, 1)
    magnitude = torch.where(share > 0, share * (2**bits - 1), 0.0).round()
    return torch.where(x < 0, -magnitude, magnitude)


def _high_part(q: Tensor, low_bits: int) -> Tensor:
    return torch.trunc(q / 2**low_bits) * 2**low_bits


def _factor(sx: Tensor, sw: Tensor, activation_bits: int, weight_bits: int) -> Tensor:
    """What one unit of the integer sums is worth."""
    return (sx / (2**activation_bits - 1)) * (sw / (2**weight_bits - 1))


@op.backend("reference")
def _reference(
    x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None, scale: Tensor | None,
    stride: Ints, padding: Ints, dilation: Ints, groups: int,
    activation_bits: int, high_bits: int, weight_bits: int, sparse_backward: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    sw = largest(w)
    return gated(x, quantize(w, sw, weight_bits), sw, threshold, bias, scale, stride, padding, dilation, groups,
                 activation_bits, high_bits, weight_bits)  # fmt: skip


def gated(
    x: Tensor, qw: Tensor, sw: Tensor, threshold: Tensor, bias: Tensor | None, scale: Tensor | None,
    stride: Ints, padding: Ints, dilation: Ints, groups: int, activation_bits: int, high_bits: int, weight_bits: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y and how many gates are open, of weights that are quantised already, of the largest magnitude ``sw``."""
    sum_type = _sum_type(x)
    # Sums of integers, exact in float64. ONNX Runtime convolves in float32 only, which is exact below 2^24.
    integers = torch.float32 if torch.onnx.is_in_onnx_export() else torch.float64
    sx, sw, qw = _scale_of(x, scale), sw.to(sum_type), qw.to(integers)
    q = quantize(x, sx, activation_bits).to(integers)
    q_high = _high_part(q, activation_bits - high_bits)
    high, low = (F.conv2d(part, qw, None, stride, padding, dilation, groups) for part in (q_high, q - q_high))
    factor = _factor(sx, sw, activation_bits, weight_bits)
    gate = high.to(sum_type) * factor > threshold.to(sum_type).view(-1, 1, 1)
    y = (high + torch.where(gate, low, 0.0)).to(sum_type) * factor
    if bias is not None:
        y = y + bias.to(sum_type).view(-1, 1, 1)
    return y.to(x.dtype).contiguous(memory_format=memory_format(x)), gate.sum()


# ---- backends --------------------------------------------------------------------------------


def kernels_decline(x: Tensor, w: Tensor, activation_bits: int, weight_bits: int) -> list[str]:
    """Every reason why a kernel does not take these."""
    if x.dtype not in FLOATS:
        return [f"its kernels take float32, float64, bfloat16 and float16, not {x.dtype}"]
    if not (1 <= activation_bits <= 8 and 1 <= weight_bits <= 8):
        return []  # `check` refuses them
    largest_product = 2 ** (activation_bits + weight_bits)
    if w.numel() * largest_product < 2**31 or (terms := math.prod(w.shape[1:])) * largest_product < 2**31:
        return []
    return [f"sums of {terms} products of {activation_bits} and {weight_bits} bits may pass 32 bits"]


def _why_not(
    x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None, scale: Tensor | None,
    stride: Ints, padding: Ints, dilation: Ints, groups: int,
    activation_bits: int, high_bits: int, weight_bits: int, sparse_backward: bool,
) -> list[str]:  # fmt: skip
    return kernels_decline(x, w, activation_bits, weight_bits)


for _name in ("cpu", "cuda"):
    op.native(_name, _why_not)


@op.backend("triton", _why_not)
def _triton(
    x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None, scale: Tensor | None,
    stride: Ints, padding: Ints, dilation: Ints, groups: int,
    activation_bits: int, high_bits: int, weight_bits: int, sparse_backward: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from fastnets.kernels.precision_gate_conv2d import precision_gate_conv2d_fwd

    y = empty(x, (x.shape[0], w.shape[0], *output_size(x, w, stride, padding, dilation)))
    open = torch.zeros((), dtype=torch.int64, device=x.device)
    geometry = stride, padding, dilation, groups
    precision_gate_conv2d_fwd(x, w, threshold, bias, scale, y, open, *geometry, activation_bits, high_bits, weight_bits)
    return y, open


# ---- fake ------------------------------------------------------------------------------------


@op.fake
def _fake(
    x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None, scale: Tensor | None,
    stride: Ints, padding: Ints, dilation: Ints, groups: int,
    activation_bits: int, high_bits: int, weight_bits: int, sparse_backward: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y = empty(x, (x.shape[0], w.shape[0], *output_size(x, w, stride, padding, dilation)))
    return y, x.new_empty((), dtype=torch.int64)


# ---- autograd --------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w, threshold, _, scale, *ctx.geometry, ctx.groups, ctx.a, ctx.h, ctx.b, ctx.sparse = inputs
    ctx.save_for_backward(x, w, threshold, scale)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Any, ...]:
    gradients: Callable[..., Any] = _Gradients.apply if torch.is_grad_enabled() else _gradients
    how = *ctx.geometry, ctx.groups, ctx.a, ctx.h, ctx.b, ctx.sparse
    return *gradients(dy, *ctx.saved_tensors, how, ctx.needs_input_grad[:4]), *[None] * 9


def _gradients(
    dy: Tensor, x: Tensor, w: Tensor, threshold: Tensor, scale: Tensor | None, how: tuple[Any, ...],
    needed: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """dx, dw, dt and db: those that are needed."""
    *geometry, a, h, b, sparse = how
    dtype = x.dtype
    # Everything in the type of the sums: float16 would lose the low part beside the high one.
    x, w, threshold, dy = (t.to(_sum_type(t)) for t in (x, w, threshold, dy))
    scale = None if scale is None else scale.to(x.dtype)
    dy = dy.contiguous(memory_format=memory_format(x))
    need_dx, need_dw, need_dt, need_db = needed
    arguments = scale, *geometry, a, h, b, False

    # y = y_high + gate y_low, gate = [u > 0], u = y_high - t. In its place the gradient sees sigmoid(alpha u):
    # du = dy y_low alpha s (1 - s), s = sigmoid(alpha u); then dt = -sum du, dy_high = dy + du, dy_low = gate dy.
    y_high = op(x, w, torch.full_like(threshold, math.inf), None, *arguments)[0]
    y_low = op(x, w, torch.full_like(threshold, -math.inf), None, *arguments)[0] - y_high
    u = y_high - threshold.view(-1, 1, 1)
    s = torch.sigmoid(ALPHA * u)
    du = dy * y_low * ALPHA * s * (1 - s)
    if sparse:
        du = torch.where(u > 0, du, 0.0)
    dy_high, dy_low = dy + du, torch.where(u > 0, dy, 0.0)

    dx = dw = None
    sx, sw = _scale_of(x, scale), largest(w)
    # Straight through the rounding: x_high + x_low is x, up to the clamp; and so is x_high, so x_low has slope 0.
    # w: y_high = conv(x_high, w) and y_low = conv(x_low, w).
    w_hat = quantize(w, sw, b) * (sw / (2**b - 1))
    if need_dx:
        dx = _conv_gradient(geometry, dy_high, x, w_hat, 0).masked_fill(x.abs() > sx, 0.0).to(dtype)
    if need_dw:
        q = quantize(x, sx, a)
        q_high = _high_part(q, a - h)
        unit = sx / (2**a - 1)
        dw = _conv_gradient(geometry, dy_high, q_high * unit, w_hat, 1) + _conv_gradient(
            geometry, dy_low, (q - q_high) * unit, w_hat, 1
        )
        dw = dw.to(dtype)
    dt = -du.sum((0, 2, 3)).to(dtype) if need_dt else None
    db = dy.sum((0, 2, 3)).to(dtype) if need_db else None
    return dx, dw, dt, db


def _conv_gradient(geometry: list[Any], dy: Tensor, x: Tensor, w: Tensor, which: int) -> Tensor:
    """The gradient of sum(dy * conv(x, w)) by x (0) or by w (1)."""
    *rest, groups = geometry
    wanted = [which == 0, which == 1, False]
    return aten.convolution_backward(dy, x, w, None, *rest, False, [0, 0], groups, wanted)[which]


class _Gradients(torch.autograd.Function):
    """`_gradients` where theirs may be asked for, as transforms always do."""

    generate_vmap_rule = True
    forward = staticmethod(_gradients)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("precision_gate_conv2d has no double backward: its gradient is a straight-through estimate")


op.autograd(_backward, _setup)

# ---- public function -------------------------------------------------------------------------


def precision_gate_conv2d(
    input: Tensor,
    weight: Tensor,
    threshold: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    activation_bits: int = 8,
    high_bits: int = 4,
    weight_bits: int = 8,
    scale: Tensor | float | None = None,
    sparse_backward: bool = False,
    return_density: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Convolves the upper bits of the input, and the lower ones where that first result passes a threshold.

    .. math::
        y_\mathrm{high} = q_\mathrm{high} * q_w \, f, \quad
        y = \big(q_\mathrm{high} * q_w + [y_\mathrm{high} > t] \, (q_\mathrm{low} * q_w)\big) f + b

    with :math:`q = \pm\mathrm{round}(\mathrm{clamp}(|x| / s, 0, 1) \, (2^a - 1))`, ties to even, of a =
    activation_bits; :math:`q_\mathrm{high}` its high_bits upper bits and :math:`q_\mathrm{low} = q - q_\mathrm{high}`;
    :math:`q_w` the weight likewise with weight_bits and s = max|w|; and
    :math:`f = \frac{s}{2^a - 1} \cdot \frac{s_w}{2^{b} - 1}`. Sums of integers are exact, so that every backend
    opens the same gates.

    The gradient goes straight through the rounding, is zero where \|x\| > s, and sees sigmoid(5 (y_high − t))
    in the gate's place. s is a constant to it.

    Args:
        input: (n, c, h, w) or (c, h, w), floating; contiguous, channels_last or any other strides.
        weight: (o, c / groups, kh, kw), input's type and device.
        threshold: (o), t, one for each output channel, in the unit of y; input's type and device.
        bias: (o), input's type and device, or None. Added once; the gate does not see it.
        stride: steps of the kernel in pixels, an int or (vertical, horizontal), at least 1.
        padding: rows and columns of zeros on each side, an int or (vertical, horizontal), or 'valid' (none)
            or 'same' (as many as keep h and w; stride 1 only; an odd number of them takes a copy of input).
        dilation: distance between the kernel's taps in pixels, an int or (vertical, horizontal), at least 1.
        groups: how many equal parts the channels fall into, each convolved by itself.
        activation_bits: of the input's magnitude, beside its sign: 2 to 8.
        high_bits: of those, how many the first result is made of: 1 to activation_bits − 1.
        weight_bits: of the weight's magnitude, beside its sign: 1 to 8.
        scale: s, positive and finite, a float or a tensor of one number of input's type: the value above which the input
            is clamped. Nobody looks at the number in a tensor, which would mean to wait for a GPU. None: max|x| over the
            tensor, so that a result depends on what else is in the batch.
        sparse_backward: whether the gradient through the gate is zero where the gate is closed.
        return_density: whether to return the share of open gates as well.

    Returns:
        (n, o, h', w') or (o, h', w') in the type and layout of input; h' and w' as ``F.conv2d`` gives. With
        ``return_density`` a pair of this and a float32 tensor of no dimensions, from 0 to 1. An input of zeros
        gives the bias. With a scale, NaN counts as 0 and infinity as the scale; without one, as in the weight,
        either makes all results NaN. Allocates beside the result two bytes for each number of the padded input, on
        a CPU of one image or as many as have 2 MB of that, and about two for each of the weight, on a CPU of groups that
        are filled up to 16 output channels.

    Raises:
        RuntimeError, TypeError: shapes, types or devices do not fit, with the message of ``F.conv2d`` where it refuses
            them too; a second derivative is asked for.
        ValueError: bits outside their range; a scale given as a float that is not positive or not finite.

    Paper: Y. Zhang et al., "Precision Gating: Improving Neural Network Efficiency with Dynamic Dual-Precision
    Activations", ICLR 2020, https://arxiv.org/abs/2002.07136

    Example:
        >>> import torch
        >>> from fastnets.ops import precision_gate_conv2d
        >>> x = torch.tensor([255.0, 31.0, 15.0]).view(1, 1, 1, 3)
        >>> w, threshold = torch.ones(1, 1, 1, 1), torch.tensor([20.0])
        >>> y, density = precision_gate_conv2d(x, w, threshold, weight_bits=1, return_density=True)
        >>> y.flatten().tolist()  # the high parts are 240, 16 and 0; the gate opens above 20
        [255.0, 16.0, 0.0]
        >>> round(density.item(), 3)
        0.333
    """
    bits = activation_bits, high_bits, weight_bits
    try:
        batch, steps, spacing = input[None] if input.dim() == 3 else input, pair(stride), pair(dilation)
        batch, border = pad_input(batch, weight, steps, padding, spacing)
        s = None if scale is None else _as_tensor(scale, input)
        y, open = op(batch, weight, threshold, bias, s, steps, border, spacing, groups, *bits, sparse_backward)
    except WRONG_TYPE:
        geometry = stride, padding, dilation, groups
        refuse_types_as(F.conv2d, input, weight, bias, *geometry)
        refuse_types(
            precision_gate_conv2d,
            input,
            weight,
            threshold,
            bias,
            *geometry,
            *bits,
            scale,
            sparse_backward,
            return_density,
        )
        raise
    if input.dim() == 3:
        y = y[0]
    return (y, open / max(1, y.numel())) if return_density else y


def _as_tensor(scale: Tensor | float, x: Tensor) -> Tensor:
    if isinstance(scale, Tensor):
        return scale
    if not 0 < scale < math.inf:
        raise ValueError(f"precision_gate_conv2d expects a positive and finite scale, but got {scale}")
    return x.new_full((), scale)

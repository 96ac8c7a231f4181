"""What layers for inference run on: weights packed once, in the order in which kernels read them, and ops on those.

They take float32 in channels_last, most of them bfloat16 too, on CUDA float16 and bfloat16, which their callers see to,
and have no gradient. A panel is 32 results or hidden channels whose weights lie together; the last one ends in zeros.
What is added up is float32 on a CPU: biases, and the weights of depthwise convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import BatchNorm2d

from fastnets._backends import BACKENDS, requested
from fastnets._op import Op, is_plain
from fastnets.ops import _int8
from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops._convolution import lay_zeros

PANEL = 32  # kPanel in csrc/packed.h
MOST_EXPANDED = 384  # kChannels in csrc/cuda/inverted_residual.cu
TYPES = torch.float32, torch.bfloat16  # that most of these ops take on a CPU
LANES = 16  # that the number of hidden channels is brought to a multiple of; kLanes in csrc/cpu/preact_conv2d.h


class Packs:
    """A module that keeps what it made of tensors until they or its mode change; not in its state_dict, nor in copies.

    Changes through ``Tensor.data`` or numpy are not counted by PyTorch: only a change of mode brings them in.
    """

    training: bool

    # Of what they were made, its memory, which as long as it is held becomes no other tensor's, and what, by how.
    _packed: tuple[Any, list[torch.UntypedStorage], dict[Hashable, Any]] | None = None
    # How often this one forgot what it kept, and all did, for plans, which use it without asking here.
    _forgotten = all_forgotten = 0

    def _takes_packs(self, *tensors: Tensor | None) -> bool:
        """Whether a call on these tensors may run on packs."""
        if torch.compiler.is_compiling():
            return False
        if not (plain := is_plain(*tensors)):
            self._forget()
        return plain

    def _forget(self) -> None:
        """To be called where training may follow: fused optimizers and BatchNorm leave versions as they are."""
        if self._packed is not None:
            self._packed = None
            self._forgotten += 1
            Packs.all_forgotten += 1

    def _pack(self, how: Hashable, make: Callable[[], Any], *tensors: Tensor | None) -> Any:
        """What ``make`` makes, kept as ``how``. An input of another size may take another kernel, with other packs."""
        made_of = tuple([None if t is None else _identity(t) for t in tensors])
        kept = self._packed
        if kept is None or kept[0] != made_of:
            kept = self._packed = made_of, [t.untyped_storage() for t in tensors if t is not None], {}
        if how in kept[2]:
            return kept[2][how]
        made = make()
        # What is made while a CUDA graph is captured has no numbers before the graph runs.
        if not (any(t is not None and t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing()):
            kept[2][how] = made
        return made

    def train(self, mode: bool = True) -> Any:
        if mode != self.training:  # a call that changes nothing may come before each evaluation
            self._forget()
        return super().train(mode)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}


def _identity(t: Tensor) -> Any:
    """The same until the numbers change; never twice the same for tensors that do not count their changes."""
    return object() if t.is_inference() else (t.data_ptr(), t._version)


def compiled_kernels(x: Tensor, weight: Tensor, types: Sequence[torch.dtype] = TYPES) -> bool:
    """Whether these ops run on the compiled kernels for an input and weights of one of these types."""
    fits = x.is_cpu and x.dim() == 4 and x.numel() > 0 and x.dtype == weight.dtype and x.dtype in types
    return fits and x.is_contiguous(memory_format=torch.channels_last) and cpu_kernels()


def is_image_like(x: Tensor, size: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether these are images in channels_last of that size and type, as kernels take a residual."""
    return x.shape == tuple(size) and x.dtype == dtype and x.is_contiguous(memory_format=torch.channels_last)


def cpu_kernels() -> bool:
    """Whether the compiled kernels are there, and no other backend is asked for."""
    return requested.get() in (None, "cpu") and BACKENDS["cpu"].missing() is None


def cuda_kernels(x: Tensor) -> bool:
    """Whether those of these ops that are there for CUDA are to run; each says by itself what it takes."""
    backend, name = BACKENDS["cuda"], requested.get()
    devices = backend.devices if name == "cuda" else backend.automatic if name is None else None
    return devices is not None and x.device.type in devices and backend.missing() is None


# ---- packing ---------------------------------------------------------------------------------


def pack_panels(weight: Tensor, together: int = 1) -> Tensor:
    """Weights (o, c, 1, 1) or (o, c) as (⌈o / 32⌉, c, 32), with t channels together (⌈o / 32⌉, ⌈c / t⌉, 32, t)."""
    o, c = weight.shape[:2]
    rows = F.pad(weight.detach().reshape(o, c), (0, -c % together, 0, -o % PANEL))
    panels = rows.view(-1, PANEL, rows.shape[1])
    return (panels.unflatten(2, (-1, together)) if together > 1 else panels).transpose(1, 2).contiguous()


def pack_for_cpu(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Panels, in bfloat16 of pairs, and a bias, as the CPU's kernels read and add them."""
    panels = pack_panels(weight, 2 if weight.dtype == torch.bfloat16 else 1)
    return panels, None if bias is None else bias.detach().float()


def pack_int8(weight: Tensor, bias: Tensor | None, levels: _int8.Levels) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Weights (o, k) as panels (⌈o / 32⌉, ⌈k / 4⌉, 32, 4), a bias, and what the ops take as ``quantized``.

    Σ w (q - z) step = scale (Σ whole q) - scale z Σ whole, whose second term is in the bias.
    """
    rows = weight.detach().double()
    steps = rows.abs().amax(1) / 127
    steps = torch.where(steps > 0, steps, 1.0)
    whole = (rows / steps[:, None]).round()
    scales = steps * levels.step
    shift = -scales * levels.zero * whole.sum(1)
    if bias is not None:
        shift = shift + bias.detach().double()
    return pack_panels(whole.to(torch.int8), 4), shift.float(), [scales.float(), levels.packed()]


def shuffle_results(weight: Tensor, r: int) -> Tensor:
    """Weights or biases of a convolution before ``pixel_shuffle`` with its results in the order of the r * r fine pixels.

    Result c r² + i r + j becomes (i r + j) o / r² + c, so that the channels of a fine pixel, and its row, lie together.
    """
    return weight.unflatten(0, (-1, r * r)).transpose(0, 1).flatten(0, 1)


def unpack_panels(panels: Tensor, out: int, c: int) -> Tensor:
    """The same as (o, c, 1, 1)."""
    return panels.transpose(1, 2).flatten(2).flatten(0, 1)[:out, :c, None, None]


def scale_and_shift(norm: BatchNorm2d) -> tuple[Tensor, Tensor]:
    """g / sqrt(variance + eps) and b - mean g / sqrt(variance + eps) of a norm in eval mode, in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift + norm.bias.detach().double() if norm.affine else shift


def pack_norm(norm: BatchNorm2d, pool: int) -> Tensor:
    """Scales and shifts (2, c + 16), whose results on pool² pixels add up to their mean; the last 16 are for whole vectors."""
    return F.pad(torch.stack(scale_and_shift(norm)) / pool**2, (0, LANES)).float()


def pack_depthwise(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weights (c, 1, kh, kw) and biases (c): one panel after the other, each as (kh kw + 1, its channels)."""
    taps = weight.detach().flatten(1)
    last = taps.new_zeros(len(taps)) if bias is None else bias.detach()
    return torch.cat([panel.t().flatten() for panel in torch.cat((taps, last[:, None]), 1).split(PANEL)])


def unpack_depthwise(packed: Tensor, channels: int) -> Tensor:
    """The same as (c, kh kw + 1)."""
    panels = packed.split(PANEL * (packed.numel() // channels))
    return torch.cat([panel.view(packed.numel() // channels, -1).t() for panel in panels])


def _winograd(side: int) -> Tensor:
    """What takes the three numbers of an axis of a kernel to its points, (side + 2, 3): Winograd's G."""
    points = {2: [0.0, 1.0, -1.0], 4: [0.0, 0.5**0.5, -(0.5**0.5), 2.0**0.5, -(2.0**0.5)]}[side]
    rows = [[p**k / math.prod(p - q for q in points if q != p) for k in range(3)] for p in points]
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


def pack_winograd(weight: Tensor, side: int) -> Tensor:
    """Weights (o, c, 3, 3) as (⌈o / 32⌉, (side + 2)², c, 32), for tiles of side² results."""
    g = _winograd(side)
    points = torch.einsum("ai,ocij,bj->aboc", g, weight.detach().double(), g).flatten(0, 1).float()
    return torch.stack([pack_panels(point) for point in points], 1)


def unpack_winograd(panels: Tensor, out: int) -> Tensor:
    """The same as (o, c, 3, 3)."""
    g = torch.linalg.pinv(_winograd(math.isqrt(panels.shape[1]) - 2))
    points = torch.stack([unpack_panels(p, out, p.shape[1]).flatten(1) for p in panels.unbind(1)]).unflatten(
        0, (g.shape[1], -1)
    )
    return torch.einsum("ia,aboc,jb->ocij", g, points.double(), g).float().contiguous()


# ---- ops -------------------------------------------------------------------------------------
# Those with `into` and `channel` write their results into channels of that image, from that one on, and return it. Their x
# may be some of the channels of an image too. A padding of four numbers is that above, left, below and right. With an
# `upscale_factor` the results, in the order of `shuffle_results`, are pixels of an image so many times as fine. Those with
# `quantized` multiply in int8 where that has tensors, which are what `pack_int8` gives for each of their products; x may
# be bytes then, and results and residual are where there are `levels`, which `_int8.stored` gives.


def packed_op(schema: str) -> Op:
    """An op with a kernel for the CPU."""
    op = Op(schema, lambda *_: None)  # arguments are checked where they are used
    op.native("cpu")
    return op


pointwise_conv2d = packed_op(
    "pointwise_conv2d(Tensor x, Tensor panels, int out, Tensor? bias, Tensor? residual, str? activation, "
    "Tensor[] quantized, Tensor? levels, Tensor? into=None, int channel=0) -> Tensor"
)
preact_conv2d = packed_op(
    "preact_conv2d(Tensor norm, Tensor[] xs, int pool, Tensor panels, int out, Tensor? bias, str? activation, "
    "Tensor? into=None, int channel=0) -> Tensor"
)
outer_sum_conv2d = packed_op(
    "outer_sum_conv2d(Tensor rows, Tensor columns, Tensor panels, int out, Tensor? bias, str? activation, "
    "Tensor? factor, Tensor? into=None, int channel=0) -> Tensor"
)
inverted_residual = packed_op(
    "inverted_residual(Tensor x, Tensor? expand, Tensor? expand_bias, str? expand_activation, "
    "Tensor depthwise, int hidden, int[2] kernel, int[2] stride, int[4] padding, int[2] dilation, str? activation, "
    "Tensor project, Tensor? project_bias, int out, Tensor? residual, str? project_activation, "
    "Tensor[] squeeze, str? squeeze_activation, bool hard, Tensor[] quantized, Tensor? levels, "
    "Tensor? into=None, int channel=0) -> Tensor"
)


def not_on_cuda(
    x: Tensor, expands: bool, squeezes: bool, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[str]:
    """Why the CUDA kernel of an inverted residual does not take an input and a depthwise convolution."""
    reasons = ["its kernel has no squeeze and excitation"] if squeezes else []
    if x.dtype not in (torch.float16, torch.bfloat16):
        reasons.append(f"its kernel takes float16 and bfloat16, not {x.dtype}")
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        reasons.append("its kernel takes images in channels_last")
    elif expands and x.shape[1] > MOST_EXPANDED:
        reasons.append(f"its kernel expands at most {MOST_EXPANDED} channels, not {x.shape[1]}")
    known = [*kernel] in ([3, 3], [5, 5]) and [*stride] in ([1, 1], [2, 2]) and [*dilation] == [1, 1]
    if not known:
        reasons.append("its kernel takes 3x3 and 5x5 kernels of stride 1 or 2 without dilation")
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        reasons.append("its kernel needs compute capability 8.0")
    return reasons


inverted_residual.native(
    "cuda",
    lambda x, expand, _, __, ___, hidden, kernel, stride, padding, dilation, *rest: not_on_cuda(
        x, expand is not None, len(rest[6]) > 0, kernel, stride, dilation
    ),
)
direct_conv2d = packed_op(
    "direct_conv2d(Tensor x, Tensor panels, int out, int[2] kernel, int[2] stride, int[4] padding, Tensor? bias, "
    "Tensor? residual, str? activation, Tensor[] quantized, Tensor? levels, Tensor? into=None, int channel=0) -> Tensor"
)
direct_max_pool2d = packed_op(
    "direct_max_pool2d(Tensor x, Tensor panels, int out, int[2] kernel, int[2] stride, int[4] padding, Tensor? bias, "
    "str? activation, int[2] pool_kernel, int[2] pool_stride, int[2] pool_padding, bool ceil_mode, Tensor? into=None, "
    "int channel=0) -> Tensor"
)
winograd_conv2d = packed_op(
    "winograd_conv2d(Tensor x, Tensor panels, int out, int[2] padding, Tensor? bias, Tensor? residual, str? activation, "
    "int upscale_factor, Tensor? into=None, int channel=0) -> Tensor"
)
squeeze_excitation = packed_op(
    "squeeze_excitation(Tensor x, Tensor[] squeeze, str? squeeze_activation, bool hard, Tensor? residual, "
    "str? activation, Tensor? into=None, int channel=0) -> Tensor"
)
pooled_linear = packed_op("pooled_linear(Tensor x, Tensor panels, int out, Tensor? bias, Tensor[] quantized) -> Tensor")
max_pool2d = packed_op(
    "max_pool2d(Tensor x, int[2] kernel, int[2] stride, int[2] padding, bool ceil_mode, Tensor? into=None, int channel=0) "
    "-> Tensor"
)
avg_pool2d = packed_op(
    "avg_pool2d(Tensor x, int[2] kernel, int[2] stride, int[2] padding, bool ceil_mode, bool count_include_pad, "
    "Tensor? into=None, int channel=0) -> Tensor"
)

add_images = packed_op(
    "add_images(Tensor a, Tensor b, str? activation=None, Tensor? into=None, int channel=0) -> Tensor"
)
concat_images = packed_op("concat_images(Tensor(a!) into, Tensor[] xs, int[] channels) -> Tensor(a!)")  # from these on


def _like(sums: Tensor | None, x: Tensor) -> Tensor | None:
    return None if sums is None else sums.to(x.dtype)


def _placed(y: Tensor, into: Tensor | None, channel: int) -> Tensor:
    if into is None:
        return y
    into.narrow(1, channel, y.shape[1]).copy_(y)
    return into


@pointwise_conv2d.backend("reference")
def _pointwise_conv2d(
    x: Tensor,
    panels: Tensor,
    out: int,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    quantized: Sequence[Tensor] = (),
    levels: Tensor | None = None,
    into: Tensor | None = None,
    channel: int = 0,
) -> Tensor:
    weight = unpack_panels(panels, out, x.shape[1])
    if quantized:
        y = _int8.scale(F.conv2d(_int8.quantize(x, quantized[1]), weight.double()), bias, quantized)
    else:
        y = F.conv2d(x, weight, _like(bias, x))
    return _placed(_finished(y, residual, activation, levels), into, channel)


def _finished(y: Tensor, residual: Tensor | None, activation: str | None, levels: Tensor | None) -> Tensor:
    if residual is not None:
        y = y + (residual if levels is None else _int8.numbers(residual, levels[1]))
    y = ACTIVATIONS[activation](y)
    return y if levels is None else _int8.quantize(y, levels[0]).to(torch.uint8)


@preact_conv2d.backend("reference")
def _preact_conv2d(
    norm: Tensor, xs: Sequence[Tensor], pool: int, panels: Tensor, out: int, bias: Tensor | None,
    activation: str | None, into: Tensor | None = None, channel: int = 0,
) -> Tensor:  # fmt: skip
    scale, shift = norm[:, :-LANES, None, None]
    y = F.avg_pool2d(F.relu(torch.cat(tuple(xs), 1) * scale + shift), pool, divisor_override=1).to(xs[0].dtype)
    return _pointwise_conv2d(y, panels, out, bias, None, activation, (), None, into, channel)


@outer_sum_conv2d.backend("reference")
def _outer_sum_conv2d(
    rows: Tensor, columns: Tensor, panels: Tensor, out: int, bias: Tensor | None, activation: str | None,
    factor: Tensor | None, into: Tensor | None = None, channel: int = 0,
) -> Tensor:  # fmt: skip
    y = _pointwise_conv2d(F.relu(rows + columns), panels, out, bias, None, activation)
    return _placed(y if factor is None else y * factor, into, channel)


@inverted_residual.backend("reference")
def _inverted_residual(
    x: Tensor,
    expand: Tensor | None,
    expand_bias: Tensor | None,
    expand_activation: str | None,
    depthwise: Tensor,
    hidden: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str | None,
    project: Tensor,
    project_bias: Tensor | None,
    out: int,
    residual: Tensor | None,
    project_activation: str | None,
    squeeze: Sequence[Tensor],
    squeeze_activation: str | None,
    hard: bool,
    quantized: Sequence[Tensor],
    levels: Tensor | None,
    into: Tensor | None = None,
    channel: int = 0,
) -> Tensor:
    last, first = quantized[:2], quantized[2:]
    if expand is None and x.dtype == torch.uint8:
        x = _int8.numbers(x, first[1])
    y = x if expand is None else _pointwise_conv2d(x, expand, hidden, expand_bias, None, expand_activation, first)
    taps = unpack_depthwise(depthwise, hidden).to(y.dtype)
    weight = taps[:, :-1].view(hidden, 1, *kernel)
    y = ACTIVATIONS[activation](F.conv2d(lay_zeros(y, padding), weight, taps[:, -1], stride, 0, dilation, hidden))
    y = y[:, : unpack_panels(project, out, hidden).shape[1]]  # those that only fill a vector may be left out
    if squeeze:
        scales = _scales(y, squeeze, squeeze_activation, hard)
        y = y * F.pad(scales, (0, 0) * 2 + (0, y.shape[1] - scales.shape[1]))  # an odd one fills a pair
    return _pointwise_conv2d(y, project, out, project_bias, residual, project_activation, last, levels, into, channel)


@direct_conv2d.backend("reference")
def _direct_conv2d(
    x: Tensor,
    panels: Tensor,
    out: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    quantized: Sequence[Tensor],
    levels: Tensor | None,
    into: Tensor | None = None,
    channel: int = 0,
) -> Tensor:
    c = x.shape[1]
    c += -c % 4 if quantized else 0
    weight = unpack_panels(panels, out, kernel[0] * kernel[1] * c).view(out, *kernel, c).permute(0, 3, 1, 2)
    if quantized:
        x = F.pad(x, (0, 0) * 2 + (0, c - x.shape[1]))
        zero = quantized[1][1]  # the level of 0
        x = lay_zeros(_int8.quantize(x, quantized[1]) - zero, padding) + zero
        y = _int8.scale(F.conv2d(x, weight.double(), None, stride), bias, quantized)
    else:
        x = lay_zeros(x, padding).contiguous(memory_format=torch.channels_last)
        y = F.conv2d(x, weight.to(x.dtype), _like(bias, x), stride)
    return _placed(_finished(y, residual, activation, levels), into, channel)


@direct_max_pool2d.backend("reference")
def _direct_max_pool2d(
    x: Tensor, panels: Tensor, out: int, kernel: list[int], stride: list[int], padding: list[int], bias: Tensor | None,
    activation: str | None, pool_kernel: list[int], pool_stride: list[int], pool_padding: list[int], ceil_mode: bool,
    into: Tensor | None = None, channel: int = 0,
) -> Tensor:  # fmt: skip
    y = _direct_conv2d(x, panels, out, kernel, stride, padding, bias, None, activation, (), None)
    return _max_pool2d(y, pool_kernel, pool_stride, pool_padding, ceil_mode, into, channel)


@winograd_conv2d.backend("reference")
def _winograd_conv2d(
    x: Tensor,
    panels: Tensor,
    out: int,
    padding: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    upscale_factor: int,
    into: Tensor | None = None,
    channel: int = 0,
) -> Tensor:
    y = F.conv2d(x, unpack_winograd(panels, out), bias, padding=tuple(padding))
    y = ACTIVATIONS[activation](y if residual is None else y + residual)
    if upscale_factor > 1:  # whose pixels are results in the order of `shuffle_results`
        y = F.pixel_shuffle(y.unflatten(1, (upscale_factor**2, -1)).transpose(1, 2).flatten(1, 2), upscale_factor)
    return _placed(y, into, channel)


@squeeze_excitation.backend("reference")
def _squeeze_excitation(
    x: Tensor, squeeze: Sequence[Tensor], squeeze_activation: str | None, hard: bool, residual: Tensor | None,
    activation: str | None, into: Tensor | None = None, channel: int = 0,
) -> Tensor:  # fmt: skip
    y = x * _scales(x, squeeze, squeeze_activation, hard)
    return _placed(ACTIVATIONS[activation](y if residual is None else y + residual), into, channel)


def _scales(x: Tensor, squeeze: Sequence[Tensor], activation: str | None, hard: bool) -> Tensor:
    first, first_bias, last, last_bias = squeeze
    few = _pointwise_conv2d(x.mean((2, 3), keepdim=True), first, len(first_bias), first_bias, None, activation)
    scales = _pointwise_conv2d(few, last, len(last_bias), last_bias, None, None)
    return F.hardsigmoid(scales) if hard else scales.sigmoid()


@pooled_linear.backend("reference")
def _pooled_linear(x: Tensor, panels: Tensor, out: int, bias: Tensor | None, quantized: Sequence[Tensor]) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return _pointwise_conv2d(mean, panels, out, bias, None, None, quantized).flatten(1)


@max_pool2d.backend("reference")
def _max_pool2d(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    into: Tensor | None = None,
    channel: int = 0,
) -> Tensor:
    return _placed(F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode), into, channel)


@avg_pool2d.backend("reference")
def _avg_pool2d(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    into: Tensor | None = None,
    channel: int = 0,
) -> Tensor:
    return _placed(F.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad), into, channel)


@add_images.backend("reference")
def _add_images(
    a: Tensor, b: Tensor, activation: str | None = None, into: Tensor | None = None, channel: int = 0
) -> Tensor:
    return _placed(ACTIVATIONS[activation](a + b), into, channel)


@concat_images.backend("reference")
def _concat_images(into: Tensor, xs: list[Tensor], channels: list[int]) -> Tensor:
    for x, channel in zip(xs, channels, strict=True):
        _placed(x, into, channel)
    return into

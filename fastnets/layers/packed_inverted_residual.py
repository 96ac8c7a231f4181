"""The inverted residual for inference: all its layers in one pass, the wide tensor between them in the caches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.layers._int8 import StoresBytes, can_multiply, numbers
from fastnets.layers.conv import DepthwiseConv2d
from fastnets.layers.packed_conv import PackedConv2d
from fastnets.layers.packed_squeeze_excitation import PackedSqueezeExcitation
from fastnets.ops._convolution import output_size
from fastnets.ops._int8 import Levels, stored
from fastnets.ops._packed import (
    LANES,
    Packs,
    compiled_kernels,
    cuda_kernels,
    inverted_residual,
    is_image_like,
    not_on_cuda,
    pack_depthwise,
    pack_for_cpu,
    pack_int8,
    pack_panels,
)


class PackedInvertedResidual(StoresBytes, Packs, nn.Module):
    """Applies a pointwise, a depthwise and a pointwise convolution, and adds a residual, in one pass.

    Each has its bias and its activation; the first may be missing. Squeeze and excitation may scale what the last one
    takes. Where the compiled kernels do not take the input (another layout than channels_last, another type than float32
    and bfloat16 on a CPU, float16 and bfloat16 without squeeze and excitation on a GPU, gradients, tracing), the layers
    run in turn.

    In int8, where ``accelerate`` has set levels (:class:`PackedConv2d`), the pointwise convolutions multiply bytes and the
    depthwise one float32; with squeeze and excitation the layers run in turn.

    Args:
        expand: the first pointwise convolution, or None.
        depthwise: the depthwise convolution of its results, with one kernel for each.
        project: the second pointwise convolution.
        squeeze: squeeze and excitation of the results of ``depthwise``, or None.

    Returns:
        (from a call with input (n, c, h, w) and, if any, residual (n, o, h', w'), whose memory may become the result's)
        project(squeeze(depthwise(expand(input)))) + residual, with the activation of ``project`` last, (n, o, h', w').

    Raises:
        ValueError: the layers are not of these kinds, or do not follow one another.
        RuntimeError: (from a call) as ``torch.nn.Conv2d``.

    Papers: M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018,
    https://arxiv.org/abs/1801.04381; with squeeze and excitation M. Tan, Q. Le, "EfficientNet: Rethinking Model Scaling
    for Convolutional Neural Networks", 2019, https://arxiv.org/abs/1905.11946

    Example:
        >>> import torch
        >>> from fastnets.layers import DepthwiseConv2d, PackedConv2d, PackedInvertedResidual
        >>> expand, project = PackedConv2d(4, 16, 1, activation="relu6"), PackedConv2d(16, 8, 1)
        >>> layer = PackedInvertedResidual(expand, DepthwiseConv2d(16, 3, padding=1), project).eval()
        >>> layer(torch.ones(1, 4, 5, 5)).shape
        torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        expand: PackedConv2d | None,
        depthwise: DepthwiseConv2d,
        project: PackedConv2d,
        squeeze: PackedSqueezeExcitation | None = None,
    ) -> None:
        super().__init__()
        if not is_block(expand, depthwise, project, squeeze):
            raise ValueError(
                "expected a pointwise, a depthwise and a pointwise convolution, the depthwise one with padding of zeros "
                "and one kernel a channel, and squeeze and excitation of its channels or None, but got "
                f"{expand}, {depthwise}, {project}, {squeeze}"
            )
        self.expand = expand
        self.depthwise = depthwise
        self.project = project
        self.squeeze = squeeze

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        # Each look-up of a parameter or a layer costs a module 0.3 µs: they are looked up once.
        expand, conv, project, squeeze = self.expand, self.depthwise, self.project, self.squeeze
        first = () if expand is None else (expand.weight, expand.bias)
        scales = () if squeeze is None else squeeze.weights()
        weights = conv.weight, conv.bias, project.weight, project.bias, *first, *scales
        kernel = _kernel(self, input) if self._takes_packs(input, residual, *weights) else None
        if kernel is None or not _takes(self, kernel, input, residual):
            input = input if self.levels is None else numbers(input, self.levels)  # stand-ins for tensors have no type
            y = conv(input if expand is None else expand(input))
            return project(y if squeeze is None else squeeze(y), residual)
        how = self._all_levels() if kernel == "int8" else kernel
        packed = self._pack(how, lambda: self._panels(kernel), *weights)
        panels, hidden_bias, kernels, results, bias, squeezing, in_int8 = packed
        return inverted_residual.run(
            input,
            panels,
            hidden_bias,
            expand and expand.activation,
            kernels,
            conv.in_channels + -conv.in_channels % LANES,
            conv.kernel_size,
            conv.stride,
            conv._zeros(input.shape[2:]),
            conv.dilation,
            conv.activation,
            results,
            bias,
            project.out_channels,
            residual,
            project.activation,
            *squeezing,
            *in_int8,
        )

    def takes_int8(self) -> bool:
        """Whether there is a kernel that multiplies in int8: of all but squeeze and excitation."""
        return self.squeeze is None and all(c is None or c.takes_int8() for c in (self.expand, self.project))

    def _all_levels(self) -> tuple[Levels | None, ...]:
        """Those of the input, of what the last convolution takes, of the residual and of the results."""
        expand, project = self.expand, self.project
        levels = self.levels if expand is None else expand.levels
        return levels, project.levels, project.residual_levels, project.result_levels

    def _panels(self, kernel: str) -> tuple[Any, ...]:
        """Weights and bias of the first convolution, of the second, of the third; hidden channels padded.

        Last the op's arguments for squeeze and excitation, and for int8.
        """
        expand, conv, project = self.expand, self.depthwise, self.project
        taps = pack_depthwise(_pad(conv.weight), _pad(conv.bias))
        first: Any = (None, None) if expand is None else (_pad(expand.weight), _pad(expand.bias))
        # On a CPU the last convolution leaves out the channels that only fill a vector.
        last: Any = _pad(project.weight, 1) if kernel == "cuda" else project.weight, project.bias
        in_int8: tuple[list[Tensor], Tensor | None] = [], None
        if kernel == "int8":
            first, last, in_int8 = self._panels_in_int8(first, last)
        else:
            pack = pack_for_cpu if kernel == "cpu" else lambda weight, bias: (pack_panels(weight), bias)
            first, last = first if expand is None else pack(*first), pack(*last)
        squeezing = ([], None, False) if self.squeeze is None else self.squeeze.packed()
        return *first, taps if kernel == "cuda" else taps.float(), *last, squeezing, in_int8

    def _panels_in_int8(self, first: Any, last: Any) -> tuple[Any, Any, tuple[list[Tensor], Tensor | None]]:
        levels, hidden, residual, results = self._all_levels()
        assert hidden is not None
        *last, quantized = pack_int8(last[0].flatten(1), last[1], hidden)
        if first[0] is not None:
            assert levels is not None
            *first, of_first = pack_int8(first[0].flatten(1), first[1], levels)
            quantized = quantized + of_first
        elif levels is not None:
            quantized = [*quantized, torch.empty(0), levels.packed()]
        return first, last, (quantized, stored(results, residual) if results else None)


def _pad(t: Any, dim: int = 0) -> Any:
    """With so many more hidden channels as the kernels want, of zeros."""
    return None if t is None else F.pad(t.detach(), (0, 0) * (t.dim() - 1 - dim) + (0, -t.shape[dim] % LANES))


def _kernel(block: PackedInvertedResidual, input: Tensor) -> str | None:
    """The backend that has a kernel for an input of this device, type and layout, or "int8"."""
    expand, conv, project = block.expand, block.depthwise, block.project
    if project.levels is not None and (expand is None or expand.levels is not None):
        return "int8" if block.takes_int8() and can_multiply(input, conv.weight) else None
    if compiled_kernels(input, conv.weight):
        return "cpu"
    on_cuda = cuda_kernels(input) and input.dtype == conv.weight.dtype and input.numel() > 0
    geometry = conv.kernel_size, conv.stride, conv.dilation
    if on_cuda and not not_on_cuda(input, expand is not None, block.squeeze is not None, *geometry):
        return "cuda"
    return None


def _takes(block: PackedInvertedResidual, kernel: str, input: Tensor, residual: Tensor | None) -> bool:
    """Whether the op takes an input of these channels and a residual of this shape and layout."""
    expand, conv, project = block.expand, block.depthwise, block.project
    first = conv if expand is None else expand
    fits = input.shape[1] == first.in_channels and (expand is not None or first.in_channels % LANES == 0)
    if not fits or residual is None:
        return fits
    sizes = output_size(input, conv.weight, conv.stride, conv._zeros(input.shape[2:]), conv.dilation)
    size = input.shape[0], project.out_channels, *sizes
    return project._can_store(residual, size) if kernel == "int8" else is_image_like(residual, size, input.dtype)


def is_block(expand: Any, depthwise: Any, project: Any, squeeze: Any = None) -> bool:
    """Whether the layers are a pointwise, a depthwise and a pointwise convolution that follow one another.

    Between the last two there may be squeeze and excitation.
    """
    if type(depthwise) is not DepthwiseConv2d or type(project) is not PackedConv2d or not project.is_pointwise():
        return False
    simple = depthwise.padding_mode == "zeros"
    simple = simple and depthwise.in_channels == depthwise.out_channels == project.in_channels
    if squeeze is not None:
        simple = simple and type(squeeze) is PackedSqueezeExcitation and squeeze.activation is None
        simple = simple and squeeze.channels == depthwise.out_channels
    if expand is None:
        return simple
    follows = type(expand) is PackedConv2d and expand.out_channels == depthwise.in_channels
    return simple and follows and expand.is_pointwise()

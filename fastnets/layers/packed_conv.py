"""Convolution for inference: weights packed once; bias, residual and activation in the store."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnets.layers._int8 import StoresBytes, can_multiply, numbers
from fastnets.layers.conv import Conv2d, GroupedConv2d
from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops._convolution import output_size
from fastnets.ops._int8 import LONGEST, Levels, stored
from fastnets.ops._packed import (
    Packs,
    compiled_kernels,
    direct_conv2d,
    is_image_like,
    pack_for_cpu,
    pack_int8,
    pack_winograd,
    pointwise_conv2d,
    winograd_conv2d,
)

# What oneDNN's kernels apply in the store: name, scalars, algorithm.
_POST_OPS: dict[str | None, tuple[str, list[float], str]] = {
    None: ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "leaky_relu": ("leaky_relu", [0.1], ""),
    "silu": ("swish", [], ""),
    "hardswish": ("hardswish", [], ""),
    "sigmoid": ("sigmoid", [], ""),
}


_SIZES = 256  # of inputs, at most, whose weights a layer knows the order of
_STEM = 4  # input channels at most of a network's first convolution, whose numbers are float32


class PackedConv2d(StoresBytes, Packs, GroupedConv2d):
    """Convolves, adds a residual and applies an activation in one pass, on weights in the order that kernels read.

    The kernels are oneDNN's and our own: in float32 and bfloat16 for pointwise convolutions that are not large and for a
    network's first convolution, of at most four channels, in bfloat16 for kernels of at most nine places, and in float32
    for 3x3 convolutions of stride 1 by Winograd's algorithm (A. Lavin, S. Gray 2016), whose rounding errors are some 1e-6
    of the largest result and which spreads what is not finite over a tile of 4x4 results. The packed weights are made by
    the first call and again after the weights have changed (through ``Tensor.data``, after ``train()`` and ``eval()``); they
    are not part of the state_dict, nor of copies. Where there is no such kernel (other layouts than channels_last, other
    types and devices, gradients, tracing), the same is computed in three steps.

    Of NaN, oneDNN's 'relu' and 'relu6' make 0, be it in the convolution or in the residual; its other activations keep
    it, and so do our kernels and the three steps. oneDNN runs what has a kernel, but for these, which are ours where
    ``groups`` and ``dilation`` are 1: pointwise convolutions (stride 1, no padding) of 16 input channels or more and at
    most 2**27 products, or without a residual of 2**23 results or more; without a residual, those of at most four input
    channels, and in bfloat16 those of an even number of input channels and at most nine places that are not pointwise; in
    float32, 3x3 convolutions of stride 1, 16 input channels or more and 16 tiles of 2x2 pixels or more.

    In int8, where ``accelerate`` has set ``levels``, float32 images become 256 levels of their numbers, and weights 255 for
    each result; sums of their products are exact, a NaN counts as 0 and what is beyond the levels as the last of them.
    Images of bytes are such levels: the layer takes them, and stores them where it has ``result_levels``. Where those
    kernels do not run it computes what the bytes stand for, in float32.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias, padding_mode, device, dtype: as in
            ``torch.nn.Conv2d``.
        padding: as of :class:`GroupedConv2d`; zeros that are not the same on both sides cost no copy where ours is the
            direct kernel for at most four channels or nine places.
        activation: None, 'relu', 'relu6', 'leaky_relu' (slope 0.1), 'silu', 'hardswish' or 'sigmoid'.

    Returns:
        (from a call with input (n, in_channels, h, w) and, if any, residual (n, out_channels, h', w'), whose memory may
        become the result's) activation(convolution + residual), (n, out_channels, h', w') in the type of the input.

    Raises:
        ValueError: an argument is not one of those listed.
        RuntimeError: (from a call) as ``torch.nn.Conv2d``.

    Example:
        >>> import torch
        >>> from fastnets.layers import PackedConv2d
        >>> layer = PackedConv2d(4, 8, 1, activation="relu").eval().requires_grad_(False)
        >>> layer(torch.ones(1, 4, 5, 5), torch.zeros(1, 8, 5, 5)).shape
        torch.Size([1, 8, 5, 5])
    """

    _upscale_factor = 1  # of layers whose results are pixels of a finer image

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.levels is not None:
            if self._fits_int8(input, residual):
                return self._in_int8(input, residual, self.levels)
            input = numbers(input, self.levels)
            residual = None if residual is None else numbers(residual, self.residual_levels)
        if self._fits(input, residual):
            if (y := self._by_ours(input, residual)) is not None:
                return y
            if _onednn_has(input.dtype):
                return self._by_onednn(input, residual)
        y = Conv2d._conv_forward(self, input, self.weight, self.bias)
        return ACTIVATIONS[self.activation](y if residual is None else y + residual)

    def _fits(self, input: Tensor, residual: Tensor | None) -> bool:
        if not self._takes_packs(input, self.weight, self.bias, residual):
            return False
        fits = input.is_cpu and input.dim() == 4 and input.shape[1] == self.in_channels and input.numel() > 0
        fits = fits and input.dtype == self.weight.dtype and input.is_contiguous(memory_format=torch.channels_last)
        fits = fits and self.padding_mode == "zeros"
        if not fits or residual is None:
            return fits
        fits = is_image_like(residual, self._result_size(input), input.dtype)
        return fits and self.activation in (None, "relu")

    def _result_size(self, input: Tensor) -> tuple[int, ...]:
        sizes = output_size(input, self.weight, self.stride, self._zeros(input.shape[2:]), self.dilation)
        return input.shape[0], self.out_channels, *sizes

    def _by_ours(self, input: Tensor, residual: Tensor | None) -> Tensor | None:
        if compiled_kernels(input, self.weight):
            if self.is_pointwise() and self._gains(input, residual):
                panels, bias = self._pack(
                    "panels", lambda: pack_for_cpu(self.weight, self.bias), self.weight, self.bias
                )
                return pointwise_conv2d.run(input, panels, self.out_channels, bias, residual, self.activation, [], None)
            if self.is_direct(input.dtype) and residual is None:
                return self._direct(input)
        if compiled_kernels(input, self.weight, [torch.float32]) and (side := self._winograd_side(input)):
            return self._winograd(input, residual, side)
        return None

    def _by_onednn(self, input: Tensor, residual: Tensor | None) -> Tensor:
        input, padding = self._pad(input)
        geometry = padding, self.stride, self.dilation, self.groups
        name, scalars, algorithm = _POST_OPS[self.activation]
        weight = self._onednn_weight(geometry, input.shape)
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise.default(
                input, weight, self.bias, *geometry, name, scalars, algorithm
            )
        after = None if self.activation is None else name
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, input, weight, self.bias, *geometry, "add", 1.0, after, scalars, algorithm
        )

    def _onednn_weight(self, geometry: tuple[Any, ...], size: torch.Size) -> Tensor:
        """The weights in the order of oneDNN's kernel for inputs of this size; on those of another runs its reference.

        Orders are few, and each is kept once.
        """
        by_size, by_order = self._pack("onednn", lambda: ({}, {}), self.weight, self.bias)
        key = size, geometry[0], torch.get_num_threads()
        if (weight := by_size.get(key)) is None:
            if len(by_size) >= _SIZES:
                by_size.clear()
            weight = _reordered(self.weight, geometry, size)
            weight = by_size[key] = by_order.setdefault(_order(weight), weight)
        return weight

    def is_pointwise(self) -> bool:
        """Whether each result is of one pixel: a product of matrices."""
        one = self.kernel_size == self.stride == (1, 1) and self.groups == 1
        return one and self.padding in ((0, 0), "valid", "same")

    def _gains(self, input: Tensor, residual: Tensor | None) -> bool:
        """Whether our product of matrices is the faster one: oneDNN's takes 30 µs more, and catches up in large ones.

        Results of 32 MB are ours again: where it does not write over a residual, it takes new memory for them at each
        call, which the system has to clear. Of less than 32 channels, results of 4 to 16 MB are faster by its kernel, but
        not in networks, whose fire modules ours writes into the concatenation.
        """
        results = input.numel() // self.in_channels * self.out_channels
        if results * self.in_channels > 1 << 27 and (residual is not None or results < 1 << 23):
            return False
        return self.in_channels >= 16

    def is_direct(self, dtype: torch.dtype) -> bool:
        """Whether ours is the faster direct one: of a network's first convolution, and of small kernels in bfloat16."""
        plain = self.groups == 1 and self.dilation == (1, 1)
        small = self.kernel_size[0] * self.kernel_size[1] <= 9 and not self.is_pointwise()
        pairs = dtype == torch.bfloat16 and self.in_channels % 2 == 0
        return plain and (self.in_channels <= _STEM or (small and pairs))

    def _direct(self, input: Tensor) -> Tensor:
        def rows() -> tuple[Tensor, Tensor | None]:
            weight = self.weight.permute(0, 2, 3, 1).flatten(1)
            return pack_for_cpu(weight.float() if self.in_channels <= _STEM else weight, self.bias)

        panels, bias = self._pack("rows", rows, self.weight, self.bias)
        geometry = self.kernel_size, self.stride, self._zeros(input.shape[2:])
        return direct_conv2d.run(input, panels, self.out_channels, *geometry, bias, None, self.activation, [], None)

    def takes_int8(self) -> bool:
        """Whether there are kernels that multiply in int8."""
        return self.groups == 1 and self.dilation == (1, 1) and self.weight[0].numel() <= LONGEST

    def _fits_int8(self, input: Tensor, residual: Tensor | None) -> bool:
        fits = self._takes_packs(input, self.weight, self.bias, residual) and can_multiply(input, self.weight)
        fits = fits and input.shape[1] == self.in_channels and self.padding_mode == "zeros"
        if not fits or residual is None:
            return fits
        return self._can_store(residual, self._result_size(input)) and self.activation in (None, "relu")

    def _in_int8(self, input: Tensor, residual: Tensor | None, levels: Levels) -> Tensor:
        def rows() -> Any:
            # Channels in fours, as they lie in an image of bytes.
            weight = F.pad(self.weight.permute(0, 2, 3, 1), (0, -self.in_channels % 4))
            packed = pack_int8(weight.flatten(1), self.bias, levels)
            return *packed, self.result_levels and stored(self.result_levels, self.residual_levels)

        how = "int8", levels, self.residual_levels, self.result_levels
        panels, bias, *rest = self._pack(how, rows, self.weight, self.bias)
        last = bias, residual, self.activation, *rest
        if self.is_pointwise():
            return pointwise_conv2d.run(input, panels, self.out_channels, *last)
        geometry = self.kernel_size, self.stride, self._zeros(input.shape[2:])
        return direct_conv2d.run(input, panels, self.out_channels, *geometry, *last)

    def is_winograd(self) -> bool:
        """Whether Winograd's algorithm applies; of few input channels, its lanes would stand empty."""
        plain = self.kernel_size == (3, 3) and self.stride == self.dilation == (1, 1) and self.groups == 1
        return plain and self.in_channels >= 16

    def _winograd_side(self, input: Tensor) -> int:
        """Rows and columns of the tiles by which Winograd's kernel is faster than oneDNN's direct one, or 0.

        Tiles of 4 take 4 times the kernel's weights, tiles of 2 take 1.8 times as many: many tiles must share them.
        """
        n, h, w = (input.shape[i] for i in (0, 2, 3))
        sizes = [side for side, least in ((4, 48), (2, 16)) if n * -(-h // side) * -(-w // side) >= least]
        return sizes[0] if sizes and self.is_winograd() else 0

    def _winograd(self, input: Tensor, residual: Tensor | None, side: int) -> Tensor:
        def points() -> tuple[Tensor, Tensor | None]:
            weight, bias = self._in_order()
            return pack_winograd(weight, side), None if bias is None else bias.detach()

        panels, bias = self._pack(f"winograd {side}", points, self.weight, self.bias)
        input, padding = self._pad(input)
        rest = padding, bias, residual, self.activation, self._upscale_factor
        return winograd_conv2d.run(input, panels, self.out_channels, *rest)

    def _in_order(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in the order in which the kernels make results."""
        return self.weight, self.bias


def _reordered(weight: Tensor, geometry: tuple[Any, ...], size: torch.Size) -> Tensor:
    plain = weight.detach().contiguous().to_mkldnn()
    return torch._C._nn.mkldnn_reorder_conv2d_weight(plain, *geometry, size)  # type: ignore[call-arg]


def _order(packed: Tensor) -> bytes:
    """What tells an order of oneDNN's from others."""
    return bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())


def _onednn_has(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())

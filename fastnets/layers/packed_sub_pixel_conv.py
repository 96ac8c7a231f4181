"""Sub-pixel convolution for inference: results stored as the pixels of a finer image."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnets.layers.packed_conv import PackedConv2d
from fastnets.ops import pixel_shuffle
from fastnets.ops._packed import compiled_kernels, shuffle_results


class PackedSubPixelConv2d(PackedConv2d):
    r"""Convolves and makes of each pixel's results the r × r pixels of a finer image, in the store.

    .. math::
        y_{n, c, i r + p, j r + q} = a(z_{n, c r^2 + p r + q, i, j}), \quad z = w * x + b

    The weights are packed in an order in which the channels of a fine pixel, and its row of r, lie together, so that
    vectors of results go straight into the image. So does the kernel by Winograd's algorithm, where
    :class:`fastnets.layers.PackedConv2d` would take it; elsewhere that layer and :func:`fastnets.ops.pixel_shuffle` run
    in turn.

    Args:
        conv: the convolution, with its activation a; its ``out_channels`` are a multiple of r². Its parameters are shared.
        upscale_factor: r, the fine pixels along each side of one.

    Returns:
        (from a call with input (n, in_channels, h, w)) (n, out_channels / r², r h', r w') in the type of the input.

    Raises:
        ValueError: r² does not divide the convolution's ``out_channels``.
        RuntimeError: (from a call) as ``torch.nn.Conv2d`` and ``torch.nn.PixelShuffle``.

    Paper: W. Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
    Neural Network", 2016, https://arxiv.org/abs/1609.05158

    Example:
        >>> import torch
        >>> from fastnets.layers import PackedConv2d, PackedSubPixelConv2d
        >>> PackedSubPixelConv2d(PackedConv2d(32, 12, 3, padding=1), 2)(torch.ones(1, 32, 5, 6)).shape
        torch.Size([1, 3, 10, 12])
    """

    def __init__(self, conv: PackedConv2d, upscale_factor: int) -> None:
        names = "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "activation"
        geometry = {name: getattr(conv, name) for name in names}
        super().__init__(conv.in_channels, conv.out_channels, **geometry, bias=conv.bias is not None, device="meta")
        if upscale_factor < 1 or self.out_channels % upscale_factor**2:
            raise ValueError(
                f"expected an upscale_factor whose square divides {self.out_channels} channels, but got {upscale_factor}"
            )
        self.weight, self.bias = conv.weight, conv.bias
        self._upscale_factor = upscale_factor

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        fits = self._fits(input, None) and compiled_kernels(input, self.weight, [torch.float32])
        if side := self._winograd_side(input) if fits else 0:
            return self._winograd(input, None, side)
        return pixel_shuffle(super().forward(input), self._upscale_factor)

    def _in_order(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = super()._in_order()
        r = self._upscale_factor
        return shuffle_results(weight, r), None if bias is None else shuffle_results(bias, r)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, upscale_factor={self._upscale_factor}"

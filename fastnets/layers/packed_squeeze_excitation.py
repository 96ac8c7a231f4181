"""Squeeze and excitation for inference, alone or as other layers take it in."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.layers.packed_conv import PackedConv2d
from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops._packed import Packs, compiled_kernels, is_image_like, pack_for_cpu, squeeze_excitation


class PackedSqueezeExcitation(Packs, nn.Module):
    r"""Multiplies each channel by a weight that two pointwise convolutions compute from the means of all channels.

    .. math::
        y = a(x \cdot g(W_2 f(W_1 \bar{x} + b_1) + b_2) + r)

    The compiled kernels read x twice, and once more what is added; where they do not take the input (another layout than
    channels_last, another type than float32 and bfloat16, gradients, tracing), each step runs in turn.

    Args:
        squeeze: the convolution of the means to fewer numbers, with its activation f.
        excite: the convolution of these to one for each channel; its activation is g, or None where ``hard`` is.
        hard: whether g is hardsigmoid, min(max(z + 3, 0), 6) / 6.
        activation: a, None or 'relu'.

    Returns:
        (from a call with input (n, c, h, w) and, if any, residual r of its shape) the shape and type of the input.

    Raises:
        ValueError: the convolutions are not pointwise, do not follow one another, or have no such activation.

    Paper: J. Hu, L. Shen, S. Albanie, G. Sun, E. Wu, "Squeeze-and-Excitation Networks", 2017,
    https://arxiv.org/abs/1709.01507

    Example:
        >>> import torch
        >>> from fastnets.layers import PackedConv2d, PackedSqueezeExcitation
        >>> squeeze, excite = PackedConv2d(32, 8, 1, activation="relu"), PackedConv2d(8, 32, 1, activation="sigmoid")
        >>> PackedSqueezeExcitation(squeeze, excite)(torch.ones(1, 32, 7, 7)).shape
        torch.Size([1, 32, 7, 7])
    """

    def __init__(
        self, squeeze: PackedConv2d, excite: PackedConv2d, hard: bool = False, activation: str | None = None
    ) -> None:
        super().__init__()
        if not is_squeeze_excitation(squeeze, excite, hard):
            raise ValueError(
                "expected a pointwise convolution and one of its results back to as many channels, with the activation "
                f"'sigmoid' or, where hard is true, None, but got {squeeze}, {excite}, {hard}"
            )
        self.squeeze = squeeze
        self.excite = excite
        self.hard = hard
        self.activation = activation

    @property
    def channels(self) -> int:
        """Those of the input."""
        return self.squeeze.in_channels

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        weights = self.weights()
        if self._takes_packs(input, residual, *weights) and self._has_kernel(input, residual):
            packed = self._pack("cpu", self.packed, *weights)
            return squeeze_excitation.run(input, *packed, residual, self.activation)
        scale = self.excite(self.squeeze(input.mean((2, 3), keepdim=True)))
        y = input * (F.hardsigmoid(scale) if self.hard else scale)
        return ACTIVATIONS[self.activation](y if residual is None else y + residual)

    def _has_kernel(self, input: Tensor, residual: Tensor | None) -> bool:
        if not compiled_kernels(input, self.squeeze.weight) or input.shape[1] != self.channels:
            return False
        return residual is None or is_image_like(residual, input.shape, input.dtype)

    def weights(self) -> tuple[Tensor | None, ...]:
        """All parameters, with None for those that are missing."""
        squeeze, excite = self.squeeze, self.excite
        return squeeze.weight, squeeze.bias, excite.weight, excite.bias

    def packed(self) -> tuple[list[Any], str | None, bool]:
        """Weights, each with its bias, the activation between them and ``hard``, as ops on packed weights take them."""
        squeeze, excite = self.squeeze, self.excite
        tensors = [*pack_for_cpu(squeeze.weight, _bias(squeeze)), *pack_for_cpu(excite.weight, _bias(excite))]
        return tensors, squeeze.activation, self.hard


def _bias(conv: PackedConv2d) -> Tensor:
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias


def is_squeeze_excitation(squeeze: Any, excite: Any, hard: bool) -> bool:
    """Whether the layers are the two convolutions."""
    if type(squeeze) is not PackedConv2d or type(excite) is not PackedConv2d:
        return False
    follow = squeeze.out_channels == excite.in_channels and squeeze.in_channels == excite.out_channels
    return (
        follow
        and squeeze.is_pointwise()
        and excite.is_pointwise()
        and excite.activation == (None if hard else "sigmoid")
    )

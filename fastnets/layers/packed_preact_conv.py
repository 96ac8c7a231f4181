"""The pointwise convolution of normalised pixels for inference: the tensor between the two stays in the caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.layers.packed_conv import PackedConv2d
from fastnets.ops._packed import Packs, compiled_kernels, pack_for_cpu, pack_norm, preact_conv2d


class PackedPreactConv2d(Packs, nn.Module):
    """Applies BatchNorm, ReLU, a pointwise convolution and average pooling in one pass.

    The pixels are averaged before the convolution, which then has fewer of them: the order changes nothing but roundings.
    Where the compiled kernels do not take the input (another layout than channels_last, another type than float32
    and bfloat16, gradients, tracing, training), the layers run in turn.

    Args:
        norm: with running statistics.
        conv: a pointwise convolution of as many channels, without activation where its results are pooled.
        pool: height and width of the squares of results that are averaged.

    Returns:
        (from a call with one or more inputs (n, c, h, w), whose concatenation along the channels is x)
        avg_pool2d(conv(relu(norm(x))), pool), (n, o, h // pool, w // pool).

    Raises:
        ValueError: the layers are not of these kinds, or do not follow one another.
        RuntimeError: (from a call) as ``torch.nn.BatchNorm2d``.

    Paper: K. He et al., "Identity Mappings in Deep Residual Networks", 2016, https://arxiv.org/abs/1603.05027

    Example:
        >>> import torch
        >>> from fastnets.layers import PackedConv2d, PackedPreactConv2d
        >>> layer = PackedPreactConv2d(torch.nn.BatchNorm2d(4), PackedConv2d(4, 8, 1), pool=2).eval()
        >>> layer(torch.ones(1, 4, 5, 5)).shape
        torch.Size([1, 8, 2, 2])
    """

    def __init__(self, norm: nn.BatchNorm2d, conv: PackedConv2d, pool: int = 1) -> None:
        super().__init__()
        if not is_preact(norm, conv) or pool < 1 or (pool > 1 and conv.activation is not None):
            raise ValueError(
                "expected a BatchNorm2d with running statistics, a pointwise convolution of as many channels, and a "
                f"positive size of pooling, with which there is no activation, but got {norm}, {conv}, {pool}"
            )
        self.norm = norm
        self.conv = conv
        self.pool = pool

    def forward(self, *inputs: Tensor) -> Tensor:
        if all(self.takes(input) for input in inputs) and sum(x.shape[1] for x in inputs) == self.conv.in_channels:
            return self.in_one_pass(inputs)
        return self.in_turn(inputs)

    def takes(self, input: Tensor) -> bool:
        """Whether the compiled kernel may run on this input, alone or with others of its size."""
        if not self._takes_packs(input, *self._tensors()):
            return False
        if self.norm.training:
            self._forget()
            return False
        return compiled_kernels(input, self.conv.weight) and min(input.shape[2:]) >= self.pool

    def in_one_pass(self, inputs: Sequence[Tensor]) -> Tensor:
        """What a call gives for inputs that the kernel takes."""
        conv = self.conv
        norm, panels, bias = self._pack("preact", self._packs, *self._tensors())
        return preact_conv2d.run(norm, inputs, self.pool, panels, conv.out_channels, bias, conv.activation)

    def in_turn(self, inputs: Sequence[Tensor]) -> Tensor:
        """What a call gives for any inputs, by one layer after the other."""
        y = self.conv(F.relu(self.norm(torch.cat(tuple(inputs), 1) if len(inputs) > 1 else inputs[0]), inplace=True))
        return y if self.pool == 1 else F.avg_pool2d(y, self.pool)

    def _tensors(self) -> tuple[Tensor | None, ...]:
        """What is packed."""
        norm = self.norm
        return norm.running_mean, norm.running_var, norm.weight, norm.bias, self.conv.weight, self.conv.bias

    def _packs(self) -> tuple[Tensor | None, ...]:
        return pack_norm(self.norm, self.pool), *pack_for_cpu(self.conv.weight, self.conv.bias)


def is_preact(norm: Any, conv: Any) -> bool:
    """Whether the layers are a BatchNorm by running statistics and a pointwise convolution that follows it."""
    fits = type(norm) is nn.BatchNorm2d and norm.running_mean is not None
    return fits and type(conv) is PackedConv2d and conv.is_pointwise() and conv.in_channels == norm.num_features

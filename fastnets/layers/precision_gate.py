"""The convolution of precision gating as a layer: thresholds that are learnt, a scale that is frozen for inference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastnets.layers.conv import Conv2d
from fastnets.ops import precision_gate_conv2d
from fastnets.ops._convolution import Pair, pad_input
from fastnets.ops._packed import Packs
from fastnets.ops._packed_precision_gate_conv2d import (
    pack_precision_gate_conv2d,
    packed_precision_gate_conv2d,
    takes,
)
from fastnets.ops.precision_gate_conv2d import check


class PrecisionGateConv2d(Packs, Conv2d):
    r"""Convolves with few bits, and with more where the first result passes a threshold that is learnt.

    In training the scale of the input is the largest magnitude seen so far, this batch included. In evaluation it
    stays as it is: a result then depends on nothing else in the batch. Until a training pass (or you) set it, it is
    NaN, and so are the results of an evaluation. Where an evaluation records no gradients and runs on the CPU's kernels,
    weights are quantised and packed once, until they change: about a byte for each, of groups that are filled up to 16
    output channels. What is written to them through ``Tensor.data`` or numpy is seen after the next change of mode, by
    :meth:`train` and then :meth:`eval`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            device, dtype: as in ``torch.nn.Conv2d``.
        activation_bits: of the input's magnitude, beside its sign: 2 to 8.
        high_bits: of those, how many the first result is made of: 1 to activation_bits − 1.
        weight_bits: of the weight's magnitude, beside its sign: 1 to 8.
        target: δ, which :meth:`penalty` pulls the thresholds to: higher opens fewer gates. In the unit of the output.
        sparse_backward: whether the gradient through the gate is zero where the gate is closed.

    Attributes:
        threshold: parameter (out_channels), 0 at first.
        scale: buffer of one number, the magnitude above which the input is clamped.
        density: the share of gates that were open in the last call, a tensor of no dimensions on the layer's device;
            reading it as a number is what waits for a GPU. None before the first call.

    Returns:
        (from a call) (n, out_channels, h', w') in the type of the input (n, in_channels, h, w).

    Raises:
        ValueError, RuntimeError: (from a call) as :func:`fastnets.ops.precision_gate_conv2d`.

    Paper: Y. Zhang et al., "Precision Gating: Improving Neural Network Efficiency with Dynamic Dual-Precision
    Activations", ICLR 2020, https://arxiv.org/abs/2002.07136

    Example:
        >>> import torch
        >>> from fastnets.layers import PrecisionGateConv2d
        >>> layer = PrecisionGateConv2d(4, 6, 3, padding=1, target=1.0)
        >>> layer(torch.ones(1, 4, 8, 8)).shape
        torch.Size([1, 6, 8, 8])
        >>> layer.scale.item(), layer.penalty(sigma=0.5).item()  # 6 thresholds at 0: 0.5 · 6 · (0 − 1)²
        (1.0, 3.0)
    """

    scale: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        activation_bits: int = 8,
        high_bits: int = 4,
        weight_bits: int = 8,
        target: float = 0.0,
        sparse_backward: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            padding,  # type: ignore[arg-type]
            dilation,  # type: ignore[arg-type]
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )
        self.activation_bits, self.high_bits, self.weight_bits = activation_bits, high_bits, weight_bits
        self.target, self.sparse_backward = target, sparse_backward
        self.threshold = torch.nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype))
        self.register_buffer("scale", torch.full((), math.nan, device=device, dtype=dtype))
        self._open: tuple[Tensor, int] | None = None  # how many gates the last call opened, and of how many

    @property
    def density(self) -> Tensor | None:
        return None if self._open is None else self._open[0] / max(1, self._open[1])

    def penalty(self, sigma: float) -> Tensor:
        """The paper's regulariser, to be added to the loss: sigma · ‖threshold − target‖²."""
        return sigma * (self.threshold - self.target).square().sum()

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = self._pad(input)
        threshold, scale = self.threshold, self.scale
        if self.training:
            # A new tensor, since the graph of an earlier call may hold the old one. fmax ignores the NaN of the start.
            largest = torch.linalg.vector_norm(input.detach(), math.inf) if input.numel() else input.new_zeros(())
            self.scale = scale = torch.fmax(scale, largest.to(scale.dtype))
        elif input.dim() == 4 and takes(input, weight, threshold, bias, scale, self.activation_bits, self.weight_bits):
            return self._on_packed_weights(input, weight, threshold, bias, scale, padding)
        self._forget()
        y, density = precision_gate_conv2d(
            input, weight, threshold, bias, self.stride, padding, self.dilation, self.groups,
            activation_bits=self.activation_bits, high_bits=self.high_bits, weight_bits=self.weight_bits,
            scale=scale, sparse_backward=self.sparse_backward, return_density=True,
        )  # fmt: skip
        self._open = density, 1
        return y

    def _on_packed_weights(
        self, x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None, scale: Tensor, padding: Pair | str
    ) -> Tensor:
        x, padding = pad_input(x, w, self.stride, padding, self.dilation)
        how = self.stride, padding, self.dilation, self.groups, self.activation_bits, self.high_bits, self.weight_bits
        try:
            packed = self._pack(
                f"{how[-1]} bits", lambda: pack_precision_gate_conv2d.run(w, self.groups, self.weight_bits), w
            )
            y, open = packed_precision_gate_conv2d.run(x, packed, w.shape, threshold, bias, scale, *how)
        except RuntimeError:
            check(x, w, threshold, bias, scale, *how, self.sparse_backward)  # for its message
            raise
        self._open = open, y.numel()
        return y

    def extra_repr(self) -> str:
        bits = f"activation_bits={self.activation_bits}, high_bits={self.high_bits}, weight_bits={self.weight_bits}"
        return f"{super().extra_repr()}, {bits}, target={self.target}"

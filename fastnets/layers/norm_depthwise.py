"""Batch normalisation in training, the activation after it and a depthwise convolution as one op."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastnets._backends import requested
from fastnets._op import nothing_listens
from fastnets.layers.conv import Conv2d
from fastnets.layers.sync_batch_norm import count_batch
from fastnets.ops import _norm_depthwise_conv2d as norm_depthwise_conv2d
from fastnets.ops.sync_batch_norm import track


def joins(norm: _BatchNorm, conv: nn.Module, input: Tensor) -> bool:
    """Whether `norm_depthwise` takes the layers and the input.

    Args:
        norm: in training; its input is this one.
        conv: of what is normalised and activated.
        input: (n, c, h, w).
    """
    if type(norm) is not nn.BatchNorm2d or type(conv) is not Conv2d or conv.bias is not None:
        return False
    if not conv.groups == conv.in_channels == conv.out_channels == norm.num_features or isinstance(conv.padding, str):
        return False
    if conv.padding_mode != "zeros" or (requested.get() or "cpu") not in norm_depthwise_conv2d.op.implementations:
        return False
    fits = not norm_depthwise_conv2d.why_not(input) and input.shape[1] == norm.num_features
    return fits and nothing_listens()


def norm_depthwise(norm: _BatchNorm, activation: str, conv: nn.Module, input: Tensor) -> Tensor:
    """The convolution of the activation of the normalised input, as the layers compute it one after the other.

    Args:
        norm, conv: layers that `joins` says yes to.
        activation: as of :func:`fastnets.ops.sync_batch_norm`.
        input: float32 (n, c, h, w) in channels_last.

    Returns:
        float32 (n, c, h', w') in channels_last. For the backward pass only input is kept, and what is per channel.

    Raises:
        ValueError, RuntimeError: as the layers.
    """
    assert isinstance(conv, nn.Conv2d)
    share = count_batch(norm)
    vectors = norm.weight, norm.bias, conv.weight
    geometry = conv.stride, conv.padding, conv.dilation
    y, mean, var = norm_depthwise_conv2d.op(input, *vectors, norm.eps, activation, *geometry)
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        count = input.numel() // input.shape[1]
        track(norm.running_mean, norm.running_var, mean, var * (count / (count - 1)), share)
    return y

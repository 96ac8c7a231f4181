"""PyTorch's layers in a network exchanged for those of fastnets, in place, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from fastnets.layers import ChannelShuffle, Conv2d, PixelShuffle, PixelUnshuffle, Sequential
from fastnets.layers.sequential import has_norm, sequential_class

# The same attributes, parameters and arguments: only the class of the object changes.
_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.ChannelShuffle: ChannelShuffle,
    nn.Conv2d: Conv2d,
    nn.PixelShuffle: PixelShuffle,
    nn.PixelUnshuffle: PixelUnshuffle,
}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()} | {Sequential: nn.Sequential}

M = TypeVar("M", bound=nn.Module)


def convert(model: M) -> M:
    """Exchanges, in place, PyTorch's layers for drop-in layers on the kernels of fastnets, for training and inference.

    ``nn.Conv2d`` in groups, ``nn.ChannelShuffle``, ``nn.PixelShuffle`` and ``nn.PixelUnshuffle``; and, in training,
    BatchNorm in an ``nn.Sequential``, with the activation and the depthwise convolution after it where these are its
    neighbours (:class:`fastnets.layers.Sequential`). Parameters, buffers, hooks and the state_dict stay the same
    objects, so an optimizer goes on. Subclasses of these are left alone, but for those of ``nn.Sequential`` that leave
    its ``forward`` as it is. For BatchNorm across processes there is :class:`fastnets.layers.SyncBatchNorm`.

    Args:
        model: any module; may itself be one of those layers.

    Returns:
        The same object.

    Raises:
        TypeError: not a module.

    Example:
        >>> import torch, fastnets
        >>> fastnets.convert(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=4)))[0].__class__
        <class 'fastnets.layers.conv.Conv2d'>
    """
    return _exchange(model, _ours, "convert")


def revert(model: M) -> M:
    """Undoes :func:`convert`.

    Args:
        model: any module.

    Returns:
        The same object, with PyTorch's layers.

    Raises:
        TypeError: not a module.

    Example:
        >>> import torch, fastnets
        >>> fastnets.revert(fastnets.convert(torch.nn.Sequential(torch.nn.PixelShuffle(2))))
        Sequential(
          (0): PixelShuffle(upscale_factor=2)
        )
    """
    return _exchange(model, _torchs, "revert")


def _ours(module: nn.Module) -> type[nn.Module]:
    theirs = type(module)
    if isinstance(module, nn.Sequential) and theirs.forward is nn.Sequential.forward and has_norm(module):
        return sequential_class(theirs)
    return _OURS.get(theirs, theirs)


def _torchs(module: nn.Module) -> type[nn.Module]:
    ours = type(module)
    return ours.__dict__["converted_from"] if "converted_from" in ours.__dict__ else _TORCHS.get(ours, ours)


def _exchange(model: M, class_of: Callable[[nn.Module], type[nn.Module]], name: str) -> M:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} expects a torch.nn.Module, but got {type(model).__name__}")
    for module in model.modules():
        if (other := class_of(module)) is not type(module):
            module.__class__ = other
    return model

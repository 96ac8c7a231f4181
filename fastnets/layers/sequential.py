"""A chain of layers in which those that a kernel can take together are one call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook

from fastnets._backends import BACKENDS
from fastnets.layers.activation import activation_name
from fastnets.layers.norm_depthwise import joins, norm_depthwise
from fastnets.layers.sync_batch_norm import SyncBatchNorm, batch_norm

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, SyncBatchNorm)  # not PyTorch's own SyncBatchNorm
_LARGE = 1 << 20  # bytes; on fewer, our calls cost more than our kernels save over those of PyTorch's BatchNorm


class Sequential(nn.Sequential):
    """Is ``torch.nn.Sequential``, in which a batch normalisation in training and the activation after it are one op.

    That is ``torch.nn.BatchNorm1d``, ``2d``, ``3d`` or :class:`SyncBatchNorm` before ``ReLU``, ``ReLU6``, ``SiLU``,
    ``Hardswish``, ``Sigmoid`` or ``LeakyReLU(0.1)``, on :func:`fastnets.ops.sync_batch_norm`. What is between the two
    is then never written: hooks on one of them, or on all modules, keep them apart. Chains within the chain count as
    their layers.

    On a CPU, from 1 MiB on, a depthwise :class:`Conv2d` without bias that follows a ``BatchNorm2d`` and its activation
    joins them where the input is float32 in channels_last: what it reads is not written either, nor kept for the
    backward pass. And a batch normalisation without an activation runs on our op, but where ``torch.compile`` would
    fuse PyTorch's with what is around it.

    Args:
        modules: as of ``torch.nn.Sequential``.

    Returns:
        (from a call) what ``torch.nn.Sequential`` returns.

    Raises:
        ValueError, RuntimeError: (from a call) as the layers.

    Paper: S. Rota Bulò, L. Porzi, P. Kontschieder, "In-Place Activated BatchNorm for Memory-Optimized Training of
    DNNs", 2018, https://arxiv.org/abs/1712.02616

    Example:
        >>> import torch
        >>> from fastnets.layers import Sequential
        >>> layers = Sequential(torch.nn.BatchNorm1d(1), torch.nn.ReLU())
        >>> layers(torch.tensor([[1.0], [3.0]])).round().flatten().tolist()
        [0.0, 1.0]
    """

    def forward(self, input: Tensor) -> Tensor:
        layers = list(_flat(self))
        while layers:
            layer = layers.pop(0)
            if not layer.training or type(layer) not in _NORMS or _is_watched(layer):
                input = layer(input)
                continue
            assert isinstance(layer, _BatchNorm)
            after = _unwatched(layers)
            activation = None if after is None else activation_name(after)
            if activation is None:
                input = batch_norm(layer, input) if _is_large(input) else layer(input)
                continue
            layers.pop(0)
            after = _unwatched(layers)
            if after is not None and _is_large(input) and joins(layer, after, input):
                input = norm_depthwise(layer, activation, after, input)
                layers.pop(0)
            else:
                input = batch_norm(layer, input, activation)
        return input


def _flat(chain: nn.Sequential) -> Iterator[nn.Module]:
    """The layers of a chain, and of those in it that only call their layers."""
    for layer in chain:
        if isinstance(layer, Sequential) and type(layer).forward is Sequential.forward and not _is_watched(layer):
            yield from _flat(layer)
        else:
            yield layer


def has_norm(chain: nn.Sequential) -> bool:
    """Whether there is a layer in it that `Sequential` may call otherwise."""
    return any(type(layer) in _NORMS for layer in chain)


def _is_large(input: Tensor) -> bool:
    # What is no tensor stands for one, in torch.fx.
    here = isinstance(input, Tensor) and input.is_cpu and not torch.compiler.is_compiling()
    return here and input.nbytes >= _LARGE and not BACKENDS["cpu"].missing()


def _unwatched(layers: list[nn.Module]) -> nn.Module | None:
    """The next layer, if nobody looks at it."""
    return layers[0] if layers and not _is_watched(layers[0]) else None


def _is_watched(layer: nn.Module) -> bool:
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    changed = "forward" in layer.__dict__ or layer._compiled_call_impl is not None
    return any(hooks) or _has_any_global_hook() or changed


_CLASSES: dict[type[nn.Module], type[Sequential]] = {nn.Sequential: Sequential}


def sequential_class(theirs: type[nn.Module]) -> type[Sequential]:
    """`Sequential`, and what a subclass of ``torch.nn.Sequential`` adds to it; looks and pickles like that."""
    if theirs not in _CLASSES:

        def reduce(self: nn.Module, _: Any) -> tuple[Any, ...]:
            return _new, (theirs,), self.__dict__

        also = {"converted_from": theirs, "__reduce_ex__": reduce}
        _CLASSES[theirs] = type(theirs.__name__, (Sequential, theirs), also)
    return _CLASSES[theirs]


def _new(theirs: type[nn.Module]) -> Sequential:
    ours = sequential_class(theirs)
    return ours.__new__(ours)

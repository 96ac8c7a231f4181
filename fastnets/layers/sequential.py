"""A chain of layers in which those that a kernel can take together are one call."""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook

from fastnets.layers.activation import activation_name
from fastnets.layers.sync_batch_norm import SyncBatchNorm, batch_norm

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, SyncBatchNorm)  # not PyTorch's own SyncBatchNorm


class Sequential(nn.Sequential):
    """Is ``torch.nn.Sequential``, in which a batch normalisation in training and the activation after it are one op.

    That is ``torch.nn.BatchNorm1d``, ``2d``, ``3d`` or :class:`SyncBatchNorm` before ``ReLU``, ``ReLU6``, ``SiLU``,
    ``Hardswish``, ``Sigmoid`` or ``LeakyReLU(0.1)``, on :func:`fastnets.ops.sync_batch_norm`. What is between the two
    is then never written: hooks on one of them, or on all modules, keep them apart.

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
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            activation = _joined(layer, layers[0]) if layers and layer.training else None
            if activation is None or _is_watched(layer) or _is_watched(layers[0]):
                input = layer(input)
            else:
                assert isinstance(layer, _BatchNorm)
                input = batch_norm(layer, input, activation)
                layers.pop(0)
        return input


def has_pair(chain: nn.Sequential) -> bool:
    """Whether there are two layers in it that `Sequential` takes together."""
    return any(_joined(*pair) for pair in itertools.pairwise(chain))


def _joined(norm: nn.Module, activation: nn.Module) -> str | None:
    """The activation's name, if the two layers are a pair."""
    return activation_name(activation) if type(norm) in _NORMS else None


def _is_watched(layer: nn.Module) -> bool:
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return any(hooks) or _has_any_global_hook() or "forward" in layer.__dict__


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

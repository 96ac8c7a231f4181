"""Batch normalisation over the batches of all processes, and the way to it and back for a whole network."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastnets.ops._exchange import group_name
from fastnets.ops.sync_batch_norm import normalize

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

CONVERTIBLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class SyncBatchNorm(_BatchNorm):
    """Is ``torch.nn.SyncBatchNorm`` (same arguments, same state_dict) on :func:`fastnets.ops.sync_batch_norm`.

    It also trains on a CPU (gloo), compiles with ``fullgraph=True``, and accepts empty batches on some ranks in any
    type. A rank that ends or skips a layer ends the others' wait in an error that names the layer.

    Args:
        num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype: as in
            ``torch.nn.SyncBatchNorm``. ``momentum=None`` is the cumulative average.

    Attributes:
        layer_name: what error messages call it: its name in the network where `convert` has seen it.

    Returns:
        (from a call) in the type, shape and layout of the input (n, num_features, ...).

    Raises:
        ValueError, RuntimeError: (from a call) as :func:`fastnets.ops.sync_batch_norm`.

    Example:
        >>> import torch
        >>> from fastnets.layers import SyncBatchNorm
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        >>> network = SyncBatchNorm.convert(network)
        >>> network(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 4, 6, 6])
        >>> type(SyncBatchNorm.revert(network)[1])
        <class 'torch.nn.modules.batchnorm.BatchNorm2d'>
    """

    layer_name = ""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        return batch_norm(self, input)

    @classmethod
    def convert(cls, model: nn.Module, process_group: ProcessGroup | None = None) -> nn.Module:
        """Turns every BatchNorm1d, 2d, 3d and ``torch.nn.SyncBatchNorm`` of a network into this layer, in place.

        Modules stay the same objects, with their parameters, buffers, hooks, mode and other attributes, under the same
        names; those that are shared stay shared. `revert` is the inverse.

        Args:
            model: a module, itself to be converted or with such modules inside.
            process_group: for the converted layers; None: the default group, or what a ``torch.nn.SyncBatchNorm`` had.

        Returns:
            The same model.

        Warns:
            UserWarning: about each layer of another class derived from batch normalisation, whose own behaviour would
                be lost; it stays as it is.
        """
        for name, module in model.named_modules():
            if isinstance(module, cls):
                module.layer_name = module.layer_name or name
            elif type(module) in CONVERTIBLE:
                module.__dict__["converted_from"] = type(module), module.__dict__.get("process_group")
                module.__dict__["process_group"] = process_group or module.__dict__.get("process_group")
                module.__dict__["layer_name"] = name
                module.__class__ = cls
            elif isinstance(module, _BatchNorm):
                kind = f"{type(module).__module__}.{type(module).__qualname__}"
                warnings.warn(
                    f"{cls.__name__}.convert leaves {name or 'the model'!r} as it is: {kind} may do more than batch "
                    "normalisation, which a conversion would lose",
                    stacklevel=2,
                )
        return model

    @classmethod
    def revert(cls, model: nn.Module) -> nn.Module:
        """Turns every layer that `convert` made back into what it was, in place.

        Args:
            model: a module, itself to be reverted or with such modules inside. Layers that were made as
                `SyncBatchNorm` stay.

        Returns:
            The same model.
        """
        for module in model.modules():
            if isinstance(module, cls) and "converted_from" in module.__dict__:
                module.__class__, process_group = module.__dict__.pop("converted_from")
                del module.__dict__["layer_name"], module.__dict__["process_group"]
                if isinstance(module, nn.SyncBatchNorm):
                    module.process_group = process_group
        return model


def batch_norm(layer: _BatchNorm, input: Tensor, activation: str | None = None) -> Tensor:
    """What a layer makes of an input, and the activation after it; of processes only `SyncBatchNorm` knows.

    Args:
        layer: whose parameters, statistics and mode count; in training it counts the batch.
        input: (n, num_features, ...).
        activation: as of :func:`fastnets.ops.sync_batch_norm`.

    Returns:
        In the type, shape and layout of the input.

    Raises:
        ValueError, RuntimeError: as :func:`fastnets.ops.sync_batch_norm`.
    """
    layer._check_input_dim(input)
    momentum = count_batch(layer)
    tracks = layer.training and layer.track_running_stats
    running = (layer.running_mean, layer.running_var) if tracks or not layer.training else (None, None)
    training = layer.training or layer.running_mean is None
    group = name = ""
    if isinstance(layer, SyncBatchNorm):
        group, name = group_name(layer.process_group) if layer.training else "", layer.layer_name
    vectors = *running, layer.weight, layer.bias
    return normalize(input, *vectors, training, momentum, layer.eps, group, name, activation)


def count_batch(layer: _BatchNorm) -> float | Tensor:
    """Counts a batch in training.

    Args:
        layer: that is about to be called.

    Returns:
        The share of the batch's statistics in the layer's running ones.
    """
    tracks = layer.training and layer.track_running_stats
    if tracks and layer.num_batches_tracked is not None and layer.running_mean is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:
            return 1 / layer.num_batches_tracked.to(torch.promote_types(layer.running_mean.dtype, torch.float32))
    return 0.0 if layer.momentum is None else layer.momentum

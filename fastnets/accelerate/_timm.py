"""timm's layers that are several of PyTorch's in one, whose own code fx cannot trace or the rewriting does not know."""

from __future__ import annotations

from torch import nn

from fastnets.accelerate._convolutions import rebuild
from fastnets.accelerate._graph import has_hooks


def split_timms(module: nn.Module) -> None:
    """Makes such layers of a module what they consist of, or layers of ours, on the same parameters."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if has_hooks(child) or not type(child).__module__.startswith("timm."):
                continue
            if type(child).__name__ == "BatchNormAct2d" and isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _norm_and_activation(child))
            elif type(child).__name__ == "Conv2dSame" and isinstance(child, nn.Conv2d):
                setattr(parent, name, rebuild(child, child.weight, child.bias, padding="same"))


def _norm_and_activation(child: nn.BatchNorm2d) -> nn.Module:
    norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
    for key, value in (*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)):
        setattr(norm, key, value)
    parts = [part for part in (getattr(child, "drop", None), getattr(child, "act", None)) if part is not None]
    return nn.Sequential(norm, *parts).eval()

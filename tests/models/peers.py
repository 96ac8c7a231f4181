"""What the tests of networks share: networks whose numbers are like those of trained ones, and other libraries'."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

_schemas: list[torch.library.Library] = []


def import_peer(name: str) -> ModuleType:
    """Imports torchvision or timm, or skips; beside a build of torch that they were not built for as well."""
    try:
        try:
            return importlib.import_module(name)
        except RuntimeError:
            # "operator torchvision::nms does not exist": its binary does not load, its networks do without.
            for module in [m for m in sys.modules if m.partition(".")[0] in ("timm", "torchvision")]:
                del sys.modules[module]
            _schemas.append(torch.library.Library("torchvision", "FRAGMENT"))
            for op in ("nms", "qnms"):
                _schemas[-1].define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{name} cannot be imported: {error}")


def build_peer(name: str, library: str) -> nn.Module:
    """The same network from the library whose names it follows."""
    peer = import_peer(library)
    return peer.models.get_model(name) if library == "torchvision" else peer.create_model(name)


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and statistic a value that shows in the result, as training does."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, 0.0, 0.2),
            ):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            # The variance that keeps the values of one layer as large as those of the one before.
            std = (2 / module.weight[0].numel()) ** 0.5
            nn.init.normal_(module.weight, std=std, generator=generator)
    return model


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest value of b."""
    assert a.shape == b.shape and a.dtype == b.dtype
    return ((a - b).abs().max() / b.abs().max()).item()

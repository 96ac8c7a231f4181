"""What the tests of networks share: networks whose numbers are like those of trained ones, and other libraries'."""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastnets.layers import Conv2d
from fastnets.models import create_model, model_info

_schemas: list[torch.library.Library] = []


class Branch(nn.Module):
    """A module of one's own: what ``forward`` does is given."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.does = forward

    def forward(self, x):
        return self.does(self, x)


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


def build_meta(name: str, peer: bool = False) -> nn.Module:
    """The network without memory for its tensors; with ``peer`` from the library that it follows, if it follows one."""
    library = model_info(name).names_follow
    with torch.device("meta"):
        return build_peer(name, library) if peer and library != "paper" else create_model(name)


def build_settled(build: Callable[[], nn.Module]) -> nn.Module:
    """What ``build`` makes, with settled values, without the time that drawing its own takes."""
    with torch.device("meta"):
        model = build()
    return settle(_allocate(model))


def copy_of_peer(model: nn.Module, name: str) -> nn.Module:
    """The library's network, or for want of one ours on PyTorch's convolutions, with the values of ``model``."""
    if model_info(name).names_follow == "paper":
        return plain_pytorch(model)
    peer = _allocate(build_meta(name, peer=True))
    peer.load_state_dict(model.state_dict())
    return peer


def _allocate(model: nn.Module) -> nn.Module:
    model = model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(math.nan if tensor.is_floating_point() else 0)  # so that what is forgotten shows
    return model


def plain_pytorch(model: nn.Module) -> nn.Module:
    """The same network with PyTorch's own convolutions."""
    return _with_convolutions(model, nn.Conv2d)


def on_our_kernels(model: nn.Module) -> nn.Module:
    """The same network with our convolutions for PyTorch's."""
    return _with_convolutions(model, Conv2d)


def _with_convolutions(model: nn.Module, kind: type[nn.Conv2d]) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) in (nn.Conv2d, Conv2d):
            module.__class__ = kind
    return model


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and statistic a value that shows in the result, as training does."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
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
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.1, 0.1, generator=generator)
    for block in model.modules():
        # A residual is small beside what it is added to: or values double with every block, until attention's sigmoids,
        # a hundred layers on, turn roundings into other results.
        last = getattr(block, "bn3", getattr(block, "bn2", None))
        if hasattr(block, "downsample") and isinstance(last, nn.BatchNorm2d):
            last.weight.data.mul_(0.3)
    return model


def outputs(result: Any) -> list[Tensor]:
    """The logits, and those of the auxiliary classifiers that some networks have in training."""
    return [result] if isinstance(result, Tensor) else list(result)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest value of b."""
    assert a.shape == b.shape and a.dtype == b.dtype
    return ((a - b).abs().max() / b.abs().max()).item()


def check_plan(fast: nn.Module, model: nn.Module, x: torch.Tensor, most: float) -> None:
    """In both layouts a network packs weights, is recorded, and runs its plan, of results that differ by less."""
    expected = model(x.clone())
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.clone(memory_format=layout)
        for _ in range(3):
            assert difference(fast(given), expected) < most
        assert torch.equal(given, x), "the input was changed"

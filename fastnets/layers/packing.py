"""What layers for inference make of their weights: once, and in the order in which kernels read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 32  # results whose weights lie together: kPanel in csrc/cpu/pointwise_conv2d.h


class Packs:
    """A module that keeps what it made of tensors until they change; not in its state_dict, nor in copies of it."""

    _packed: tuple[Any, Any] | None = None  # and of what they were made

    def _pack(self, how: str, make: Callable[[], Any], *tensors: Tensor | None) -> Any:
        made_of = (how, *(None if t is None else (t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors))
        packed = self._packed
        if packed is None or packed[0] != made_of:
            packed = self._packed = made_of, make()
        return packed[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}


def pack_panels(weight: Tensor) -> Tensor:
    """Weights (o, c, 1, 1) as (⌈o / 32⌉, c, 32), zeros after the last result: what a tile of a product reads."""
    o, c = weight.shape[:2]
    rows = F.pad(weight.detach().reshape(o, c), (0, 0, 0, -o % PANEL))
    return rows.view(-1, PANEL, c).transpose(1, 2).contiguous()


def pack_depthwise(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weights (c, 1, kh, kw) and biases (c): one panel of 32 channels after the other, each as (kh kw + 1, channels)."""
    taps = weight.detach().flatten(1)
    last = taps.new_zeros(len(taps)) if bias is None else bias.detach()
    return torch.cat([panel.t().flatten() for panel in torch.cat((taps, last[:, None]), 1).split(PANEL)])

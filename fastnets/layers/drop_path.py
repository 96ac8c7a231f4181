"""Dropping whole paths of a network, for regularisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, replaces whole samples by zeros at random, and divides the others by the chance to remain.

    Args:
        probability: of being dropped, at the end of a schedule, from 0 up to but not including 1.

    Returns:
        (from a call) x · mask / (1 - p), with one random bit of the mask for each sample; x itself in eval mode.

    Raises:
        ValueError: the probability is not one of those.

    Paper: G. Larsson, M. Maire, G. Shakhnarovich, "FractalNet: Ultra-Deep Neural Networks without Residuals", 2016,
    https://arxiv.org/abs/1605.07648

    Example:
        >>> import torch
        >>> from fastnets.layers import DropPath
        >>> DropPath(0.3).eval()(torch.ones(2, 1)).tolist()
        [[1.0], [1.0]]
    """

    scale: Tensor

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"probability expects a number from 0 up to but not including 1, but got {probability}")
        self.probability = probability
        # A tensor, so that a compiled network sees it change; not in the state_dict, which libraries' lack.
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.probability * self.scale
        random = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device)
        return x * ((random < keep) / keep).to(x.dtype)

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


def schedule_drop_path(model: nn.Module, progress: float) -> None:
    """Sets the probability of every :class:`DropPath` in a network to ``progress`` times its last value.

    NASNet was trained so, from 0 at the start to 1 at the end.

    Args:
        model: its modules are changed in place.
        progress: the part of training that is done, from 0 to 1.

    Raises:
        ValueError: progress is not from 0 to 1.

    Paper: B. Zoph et al., "Learning Transferable Architectures for Scalable Image Recognition", 2017, section 4.1,
    https://arxiv.org/abs/1707.07012

    Example:
        >>> import torch
        >>> from fastnets.layers import DropPath, schedule_drop_path
        >>> layer = DropPath(0.9)
        >>> schedule_drop_path(layer, 0)
        >>> layer(torch.ones(2, 1)).tolist()
        [[1.0], [1.0]]
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress expects a number from 0 to 1, but got {progress}")
    for module in model.modules():
        if isinstance(module, DropPath):
            module.scale.fill_(progress)

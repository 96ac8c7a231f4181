"""What the Inception networks share: branches of convolutions side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from string import ascii_lowercase

import torch
from torch import Tensor, nn

from fastnets.layers.blocks import RELU, ConvNormActivation
from fastnets.ops._convolution import Pair

# One layer of a branch: (channels, kernel size), with (..., stride, padding) where the stride is not 1 or the
# convolution makes its input smaller; or a module that keeps the number of channels.
Convolution = tuple[int, Pair] | tuple[int, Pair, int, int]
Layer = Convolution | nn.Module


class Branches(nn.Module):
    """Sends its input through modules side by side, and joins what they give by channels.

    Args:
        **branches: the modules by name, in the order in which their outputs are joined.

    Returns:
        (from a call) (n, sum of their channels, h', w').

    Paper: C. Szegedy et al., "Going Deeper with Convolutions", 2014, https://arxiv.org/abs/1409.4842

    Example:
        >>> import torch
        >>> from fastnets.layers import Branches
        >>> Branches(same=torch.nn.Identity(), pool=torch.nn.MaxPool2d(3, 1, 1))(torch.ones(1, 8, 7, 7)).shape
        torch.Size([1, 16, 7, 7])
    """

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        self.names = [*branches]
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, name)(x) for name in self.names], 1)


def chain(
    in_channels: int, *layers: Layer, eps: float = 1e-3, last_activation: Callable[[], nn.Module] = RELU
) -> list[nn.Module]:
    """Builds the layers of a branch: convolutions with batch normalisation and ReLU, and given modules.

    Args:
        in_channels: channels of the input.
        *layers: (channels, kernel size), (channels, kernel size, stride, padding), or a module that keeps the
            number of channels.
        eps: of the batch normalisations.
        last_activation: makes the activation of the last layer: ``nn.Identity`` is EraseReLU,
            https://arxiv.org/abs/1709.07634.

    Returns:
        The modules in order.
    """
    modules: list[nn.Module] = []
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Module):
            modules.append(layer)
            continue
        activation = last_activation if i == len(layers) - 1 else RELU
        modules.append(ConvNormActivation(in_channels, *layer, eps=eps, activation=activation))
        in_channels = layer[0]
    return modules


def numbered(
    in_channels: int,
    *chains: Sequence[Layer],
    first: int = 0,
    eps: float = 1e-3,
    last_activation: Callable[[], nn.Module] = RELU,
) -> dict[str, nn.Module]:
    """Builds chains for :class:`Branches`, named ``branch0``, ``branch1`` ...

    Args:
        in_channels: channels of the input.
        *chains: the layers of each branch, as of :func:`chain`.
        first: number of the first branch.
        eps, last_activation: as of :func:`chain`.

    Returns:
        The branches by name; a chain of one layer is that layer, a longer one is an ``nn.Sequential``.
    """
    named: dict[str, nn.Module] = {}
    for i, layers in enumerate(chains, first):
        modules = chain(in_channels, *layers, eps=eps, last_activation=last_activation)
        named[f"branch{i}"] = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
    return named


class Mixed(nn.Module):
    """Branches side by side, joined by channels, whose layers are all named in one row, and which may fork.

    The layers of branch ``b`` are ``b_1``, ``b_2`` ..., or ``b`` if there is one only. The last may be a list of
    layers that all see the same input, ``b_3a``, ``b_3b``; each is then an end of the branch.

    Args:
        in_channels: channels of the input.
        first: number of the first layer of a branch.
        **branches: the layers of each: (channels, kernel size), (channels, kernel size, stride, padding), a module,
            or a list of these.

    Returns:
        (from a call) (n, sum of the channels of all ends, h', w').

    Paper: C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015,
    https://arxiv.org/abs/1512.00567

    Example:
        >>> import torch
        >>> from fastnets.layers import Mixed
        >>> block = Mixed(8, one=[(4, 1)], two=[(4, 1), [(5, (1, 3)), (5, (3, 1))]])
        >>> [name for name, _ in block.named_children()]
        ['one', 'two_1', 'two_2a', 'two_2b']
        >>> block(torch.ones(1, 8, 7, 7)).shape
        torch.Size([1, 14, 7, 7])
    """

    def __init__(self, in_channels: int, first: int = 1, **branches: Sequence[Layer | list[Layer]]) -> None:
        super().__init__()
        self.branches: list[list[list[str]]] = []  # of each branch, of each step, the layers
        for branch, layers in branches.items():
            channels, steps = in_channels, []
            for number, layer in enumerate(layers, first):
                name = branch if len(layers) == 1 else f"{branch}_{number}"
                ends, letters = (layer, ascii_lowercase) if isinstance(layer, list) else ([layer], "")
                steps.append([f"{name}{letter}" for letter in letters[: len(ends)] or [""]])
                for end_name, end in zip(steps[-1], ends, strict=True):
                    self.add_module(end_name, *chain(channels, end))
                channels = layer[0] if isinstance(layer, tuple) else channels
            self.branches.append(steps)

    def forward(self, x: Tensor) -> Tensor:
        ends: list[Tensor] = []
        for steps in self.branches:
            y = [x]
            for layers in steps:
                y = [getattr(self, layer)(y[0]) for layer in layers]
            ends += y
        return torch.cat(ends, 1)

"""The size of a network: its layers, parameters, multiply-accumulates, and what training keeps in memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """One call of a module that has no modules in it.

    Attributes:
        name: of the module, as in the state_dict.
        kind: its class.
        shapes: of each tensor that it returns, without the dimension of photos.
        parameters: how many it has.
        macs: its multiply-accumulates for one photo; of convolutions and linear layers only, as in the papers.
    """

    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Size:
    """What a network costs.

    Attributes:
        parameters: how many it has.
        macs: its multiply-accumulates for one photo.
        activation_bytes: what the forward pass of one photo leaves in memory for the backward pass: the size of all
            tensors that autograd keeps but parameters and buffers, each counted once, with the photo.
        layers: in the order in which they run. Sums, concatenations and what else is no module are not among them,
            nor are modules that do nothing.
    """

    parameters: int
    macs: int
    activation_bytes: int
    layers: tuple[Layer, ...]


@torch.inference_mode(False)  # where nothing is kept for a backward pass
def measure(model: nn.Module, input_size: int) -> Size:
    """Finds out what a network costs, in eval mode, on the meta device: nothing is computed.

    Args:
        model: takes (n, 3, h, w); it is not changed.
        input_size: h and w, in pixels.

    Returns:
        Its :class:`Size`.

    Example:
        >>> import fastnets
        >>> from fastnets.models.count import measure
        >>> measure(fastnets.create_model("mobilenet_v2"), 224).layers[0]
        Layer(name='features.0.0', kind='Conv2d', shapes=((32, 112, 112),), parameters=864, macs=10838016)
    """
    model = copy.deepcopy(model).to("meta").eval().requires_grad_()
    layers = listen(model)
    own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (storage := _storage(tensor)) not in own:
            kept[storage] = tensor.untyped_storage().nbytes()
        return tensor  # lives as long as the result, so no other storage gets its number

    photo = torch.empty(1, 3, input_size, input_size, device="meta")
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model(photo)
    del result
    parameters, macs = sum(p.numel() for p in model.parameters()), sum(layer.macs for layer in layers)
    return Size(parameters, macs, sum(kept.values()), tuple(layers))


def count(model: nn.Module, input_size: int) -> tuple[int, int]:
    """Counts a network's parameters, and its multiply-accumulates for one photo.

    Args:
        model: takes (n, 3, h, w); it is not changed.
        input_size: h and w, in pixels.

    Returns:
        (parameters, multiply-accumulates), as of :func:`measure`.

    Example:
        >>> import fastnets
        >>> from fastnets.models.count import count
        >>> count(fastnets.create_model("mobilenet_v2"), 224)
        (3504872, 300774272)
    """
    size = measure(model, input_size)
    return size.parameters, size.macs


def listen(model: nn.Module) -> list[Layer]:
    """Makes the modules without modules in them tell of their calls.

    Args:
        model: gets hooks.

    Returns:
        The list that calls will fill; multiply-accumulates are those of all photos of a call.
    """
    layers: list[Layer] = []
    names = {module: name for name, module in model.named_modules()}

    def tell(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs = (output,) if isinstance(output, Tensor) else output
        shapes = tuple(tuple(y.shape[1:]) for y in outputs)
        parameters = sum(p.numel() for p in module.parameters())
        macs = 0
        if isinstance(module, nn.Conv2d | nn.Linear):
            # Every output value takes one multiplication with each weight of its output channel.
            macs = output.numel() * module.weight[0].numel()
        layers.append(Layer(names[module], type(module).__name__, shapes, parameters, macs))

    for module in names:
        if not list(module.children()) and not isinstance(module, nn.Identity):
            module.register_forward_hook(tell)
    return layers


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata

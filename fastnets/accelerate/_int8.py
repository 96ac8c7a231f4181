"""Levels for layers whose products are taken in int8, from what they are given on photos; bytes between such layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn

from fastnets._backends import use_backend
from fastnets.accelerate._graph import module_of
from fastnets.accelerate._proof import copied, results
from fastnets.layers import PackedConv2d, PackedInvertedResidual, PackedLinear, PackedMaxPool2d, PooledLinear
from fastnets.layers._int8 import InInt8
from fastnets.ops._int8 import LONGEST, Levels, levels_between
from fastnets.ops._packed import Packs

_Seen = dict[nn.Module, list[float]]  # the least and the largest of all that layers were given, or gave


def calibrate(fast: nn.Module, example: tuple[Any, ...]) -> None:
    """Gives levels to layers of an accelerated network: from the least to the largest input on the example."""
    modules = [*_modules(fast)]
    taken: _Seen = {m: [] for m in modules if _takes_int8(m)}
    given: _Seen = {m: [] for m in taken}
    hooks = [layer.register_forward_pre_hook(lambda m, args: _measure(taken[m], _taken(m, args[0]))) for layer in taken]
    hooks += [layer.register_forward_hook(lambda m, _, y: _measure(given[m], y)) for layer in taken]
    try:
        # On references blocks run layer by layer.
        with use_backend("reference"):
            results(fast, example)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, seen in taken.items():
        layer.levels = _levels(seen)  # type: ignore[assignment]
    for network in modules:
        if isinstance(network, fx.GraphModule):
            _store_bytes(network, given)
    for module in modules:
        if isinstance(module, Packs):
            module._forget()  # what plans know of it


def without_levels(model: nn.Module) -> nn.Module:
    """The model, or a copy in float32 of one that was accelerated in int8."""
    if not any(isinstance(m, InInt8) and m.levels is not None for m in _modules(model)):
        return model
    model = copied(model)
    for module in _modules(model):
        for name in ("levels", "residual_levels", "result_levels") if isinstance(module, InInt8) else ():
            vars(module).pop(name, None)
    return model


def difference(got: list[Tensor], exact: list[Tensor]) -> str:
    """By how much each of the results differs, root mean square."""
    shares = ((y.double() - e.double()).norm() / e.double().norm() for y, e in zip(got, exact, strict=True))
    return ", ".join(f"{share.nan_to_num().item():.1%}" for share in shares)


def _takes_int8(layer: nn.Module) -> bool:
    if isinstance(layer, PackedLinear | PooledLinear):
        return layer.in_features <= LONGEST
    return type(layer) is PackedConv2d and layer.takes_int8()


def _taken(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer multiplies of its input."""
    return x.mean(layer.dims) if isinstance(layer, PooledLinear) else x


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    """All modules, with those of the networks that run parts."""
    for m in module.modules():
        yield m
        if (network := vars(m).get("_network")) is not None:
            yield from _modules(network)


def _measure(seen: list[float], x: Tensor) -> None:
    if x.numel() > 0:
        seen += [end.item() for end in x.aminmax()]


def _levels(seen: list[float]) -> Levels | None:
    """None where there is nothing to tell them from."""
    return levels_between(min(seen), max(seen)) if seen and all(map(math.isfinite, seen)) else None


def _store_bytes(network: fx.GraphModule, given: _Seen) -> None:
    """Lets layers store bytes where all who use what they store multiply, or add, bytes."""
    levels: dict[fx.Node, Levels] = {}
    for node in network.graph.nodes:
        if (of := _result_levels(network, node, given, levels)) is not None:
            levels[node] = of
    # What a layer adds, or pools, is of the type of what it stores: each that is not takes others with it.
    while wrong := [node for node in levels if not _is_agreed(network, node, levels)]:
        for node in wrong:
            del levels[node]
    for node, of in levels.items():
        if (last := _last(module_of(network, node))) is not None:
            last.result_levels = of
        for user in node.users:
            layer: Any = module_of(network, user)
            if user.args[0] is node and not _pools(layer):
                first = layer.expand if isinstance(layer, PackedInvertedResidual) else layer
                (layer if first is None else first).levels = of
            if node in user.args[1:]:  # maybe both
                layer = _last(layer)
                layer.residual_levels = of


def _last(layer: Any) -> PackedConv2d | None:
    """The convolution that stores what a layer gives, if it is in int8."""
    if isinstance(layer, PackedInvertedResidual):
        first_too = layer.takes_int8() and (layer.expand is None or layer.expand.levels is not None)
        layer = layer.project if first_too else None
    return layer if type(layer) is PackedConv2d and layer.levels is not None else None


def _pools(layer: Any) -> bool:
    return isinstance(layer, PackedMaxPool2d) and layer.fits()


def _result_levels(
    network: fx.GraphModule, node: fx.Node, given: _Seen, levels: dict[fx.Node, Levels]
) -> Levels | None:
    """Those of what a node gives, if it can be bytes."""
    layer = module_of(network, node)
    if _pools(layer):
        return levels.get(node.all_input_nodes[0])
    last = _last(layer)
    is_clamp = last is not None and last.activation in (None, "relu", "relu6") and last.out_channels % 4 == 0
    return _levels(given[last]) if is_clamp else None  # type: ignore[index]


def _is_agreed(network: fx.GraphModule, node: fx.Node, levels: dict[fx.Node, Levels]) -> bool:
    """Whether all that a node adds, or pools, is bytes, and all users of its result take bytes."""
    others = node.args if _pools(module_of(network, node)) else node.args[1:]
    for user in node.users:
        layer = module_of(network, user)
        if _last(layer) is None and not _pools(layer):
            return False
        if (_pools(layer) or node in user.args[1:]) and user not in levels:
            return False
    return all(other in levels for other in others)

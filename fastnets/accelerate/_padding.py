"""Zeros that are laid around the input of a convolution, which it can add itself."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastnets.accelerate._graph import bypass, module_of, only_user
from fastnets.accelerate._memory import is_written
from fastnets.ops._convolution import zeros_around


def take_zeros(network: fx.GraphModule, node: fx.Node, conv: nn.Conv2d) -> Any:
    """The padding of a node's convolution and of zeros before it, which are taken out if nothing else uses them."""
    pad = node.args[0]
    if conv.padding == "same" or conv.padding_mode != "zeros" or conv.kernel_size == (1, 1):
        return conv.padding
    if not isinstance(pad, fx.Node) or only_user(pad) is not node or not (zeros := _zeros_of(network, pad)):
        return conv.padding
    if is_written(pad.all_input_nodes[0], pad, node):
        return conv.padding
    bypass(pad)
    own = zeros_around((1, 1), conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    sides = [a + b for a, b in zip(own, zeros, strict=True)]
    return tuple(sides[:2] if sides[:2] == sides[2:] else sides)


def _zeros_of(network: fx.GraphModule, node: fx.Node) -> tuple[int, ...]:
    """Those above, left, below and right, if they are all that the node adds to its input; else none."""
    module: Any = module_of(network, node)
    given: dict[str, Any] = {}
    if type(module) in (nn.ZeroPad2d, nn.ConstantPad2d):
        given = {"pad": module.padding, "value": module.value}
    elif node.op == "call_function" and node.target in (F.pad, torch._C._nn.pad):
        given = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | node.kwargs
    ends = given.get("pad")
    if (
        not isinstance(ends, tuple | list)
        or len(ends) not in (2, 4)
        or not all(type(n) is int and n >= 0 for n in ends)
    ):
        return ()
    left, right, top, bottom = (*ends, 0, 0)[:4]
    is_zero = given.get("mode", "constant") == "constant" and not given.get("value")
    return (top, left, bottom, right) if is_zero else ()

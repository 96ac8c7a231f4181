"""Reading a traced network: what a node calls, what uses it."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastnets.layers.activation import activation_name

IN_PLACE_ADDITIONS = (operator.iadd, "add_")
ADDITIONS = (operator.add, torch.add, "add", *IN_PLACE_ADDITIONS)


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks (pruning, weight_norm, the user's own) or a forward of its own change what its class does."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)


def module_of(network: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that a node calls with its input not by name, if no hooks change what it does."""
    if not isinstance(node, fx.Node) or node.op != "call_module" or not node.args:
        return None
    module = network.get_submodule(str(node.target))
    return None if has_hooks(module) else module


def were(network: fx.GraphModule, node: fx.Node) -> list[tuple[Any, ...]]:
    """The layers that the node's module stands for, each with its type, and with those that were added to it."""
    own = str(node.target), type(module_of(network, node)).__name__
    return node.meta.get("were", [node.meta.get("was", own)])


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that takes the value as its only tensor, if nothing else uses the value."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].all_input_nodes == [node] else None


def calls(node: Any, *names: str) -> bool:
    """Whether the node calls a method of that name, or PyTorch's function, with its input not by name."""
    if not isinstance(node, fx.Node) or node.op not in ("call_method", "call_function") or not node.args:
        return False
    return node.target in names or any(node.target is getattr(torch, name, None) for name in names)


def mean_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of a node that calls ``mean``, by name."""
    return dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs


def is_mean(node: fx.Node, *, keeps: bool) -> bool:
    """Whether the node takes the mean over all pixels, which become one or, unless it ``keeps`` them, none."""
    if not calls(node, "mean"):
        return False
    names = mean_of(node)
    dims: Any = names.pop("dim", ())
    kept = names.pop("keepdim", False)
    return not names and kept is keeps and dims in ([2, 3], (2, 3), [-2, -1], (-2, -1))


def pools_all(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node makes one pixel of an image, the mean of all."""
    module = module_of(network, node)
    if type(module) is nn.AdaptiveAvgPool2d:
        return module.output_size in (1, (1, 1))
    is_function = node.target is F.adaptive_avg_pool2d and node.args[1:] in ((1,), ((1, 1),)) and not node.kwargs
    return is_function or is_mean(node, keeps=True)


def concatenated(node: fx.Node) -> tuple[fx.Node, ...]:
    """What a node concatenates along the channels; of other nodes, nothing."""
    if not calls(node, "cat") or not isinstance(node.args[0], tuple | list):
        return ()
    parts, dim = node.args[0], node.kwargs.get("dim", (*node.args, 0)[1])
    return tuple(parts) if dim == 1 else ()  # type: ignore[arg-type]


def bypass(node: fx.Node) -> None:
    """Takes a node out: its input takes its place."""
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)


def is_size(value: Any, x: Any, i: int) -> bool:
    """Whether a value is the size of x along dimension i."""
    if not isinstance(value, fx.Node):  # Dynamo knows the sizes
        known = x.meta.get("example_value")
        return isinstance(known, Tensor) and type(value) is int and known.shape[i] == value
    args: Any = value.args
    if value.target is operator.getitem:
        sizes, index = args
        return index == i and is_shape(sizes, x)
    return calls(value, "size") and args == (x, i)


def is_shape(sizes: Any, x: Any) -> bool:
    """Whether a value is all the sizes of x."""
    return (calls(sizes, "size") and sizes.args == (x,)) or (is_getattr(sizes) and sizes.args == (x, "shape"))


def is_getattr(node: Any) -> bool:
    """Whether the node reads an attribute."""
    return isinstance(node, fx.Node) and node.target is getattr


_ACTIVATION_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
    torch.sigmoid: "sigmoid",
}
_ACTIVATION_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid"}


def activation_of(network: fx.GraphModule, node: fx.Node) -> str | None:
    """The name that ops know the activation by, if the node is one."""
    if node.op == "call_function":
        return _ACTIVATION_FUNCTIONS.get(node.target)
    if node.op == "call_method":
        return _ACTIVATION_METHODS.get(str(node.target))
    module = module_of(network, node)
    return None if module is None else activation_name(module)


def batch_norm_of(network: fx.GraphModule, node: fx.Node) -> nn.BatchNorm2d | None:
    """The BatchNorm that a node calls, if it normalises by what it has learnt and not by the batch."""
    module = module_of(network, node)
    return module if type(module) is nn.BatchNorm2d and module.running_mean is not None else None

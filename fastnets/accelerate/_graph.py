"""Reading a traced network: what a node calls, what uses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks (pruning, weight_norm, the user's own) see or change what goes in or comes out."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def module_of(network: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that a node calls, if no hooks change what it does."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = network.get_submodule(str(node.target))
    return None if has_hooks(module) else module


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that takes the value as its only tensor, if nothing else uses the value."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].all_input_nodes == [node] else None


def calls(node: Any, *names: str) -> bool:
    """Whether the node calls a method of that name, or PyTorch's function."""
    if not isinstance(node, fx.Node) or node.op not in ("call_method", "call_function"):
        return False
    return node.target in names or any(node.target is getattr(torch, name, None) for name in names)


def writes_over(user: fx.Node, value: fx.Node) -> bool:
    """Whether a user of the value puts its result into the value's memory."""
    if user.op == "call_module":
        return len(user.args) > 1 and user.args[1] is value
    return user.op == "call_method" and str(user.target).endswith("_") or bool(user.kwargs.get("inplace"))

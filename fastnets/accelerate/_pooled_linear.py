"""Global average pooling, a flattening of what has one pixel, and a linear layer, as one layer."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fastnets.accelerate._graph import calls, is_mean, mean_of, module_of, pools_all
from fastnets.accelerate._memory import is_written
from fastnets.layers import PooledLinear


def fuse_pooled_linears(network: fx.GraphModule) -> None:
    """Replaces linear(flatten(pool(x))) and linear(x.mean((2, 3)))."""
    for node in list(network.graph.nodes):
        linear = module_of(network, node)
        if type(linear) is not nn.Linear or len(node.args) != 1 or node.kwargs:
            continue
        steps = _steps(network, node)
        if steps is None or is_written(steps[-1].all_input_nodes[0], steps[-1], node):
            continue
        layer = PooledLinear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.dims, layer.flattens = _dims(steps[-1]), len(steps) > 1
        name = f"pooled_linears.{node.name}"
        network.add_submodule(name, layer.eval())
        node.meta = {"was": node.meta.get("was", (str(node.target), type(linear).__name__))}
        node.target, node.args = name, (steps[-1].args[0],)
        for step in steps:
            network.graph.erase_node(step)


def _steps(network: fx.GraphModule, linear: fx.Node) -> list[fx.Node] | None:
    """The nodes between the image and the linear layer, last first, if they pool it over all pixels for nothing else."""
    last: Any = linear.args[0]
    if list(last.users) != [linear]:
        return None
    if is_mean(last, keeps=False):
        return [last]
    if not _flattens(last, module_of(network, last)):
        return None
    pool: Any = last.args[0]
    pools = isinstance(pool, fx.Node) and list(pool.users) == [last]
    return [last, pool] if pools and pools_all(network, pool) else None


def _dims(pool: fx.Node) -> tuple[int, int]:
    """Those that a node takes the mean over."""
    first, last = mean_of(pool)["dim"] if calls(pool, "mean") else (-2, -1)
    return first, last


def _flattens(node: fx.Node, module: nn.Module | None) -> bool:
    if type(module) is nn.Flatten:
        return (module.start_dim, module.end_dim) == (1, -1)
    return calls(node, "flatten") and node.args[1:] == (1,) and not node.kwargs

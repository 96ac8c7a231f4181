"""Means of an image's rows and columns, and what is made of them all over the image again, as SPNet spells it."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastnets.accelerate._graph import ADDITIONS, activation_of, calls, is_shape, is_size, mean_of, module_of, were
from fastnets.accelerate._memory import is_written
from fastnets.layers import PackedConv2d, PackedOuterSumConv2d
from fastnets.ops import strip_pool

_SIZES: tuple[Any, ...] = ((None, 1), (1, None))  # of rows and of columns, the results of `strip_pool` in their order
_MEANS = [{"dim": dim, "keepdim": True} for dim in (3, 2)]


def pool_strips(network: fx.GraphModule) -> None:
    """Takes the means of rows and those of columns of one image in one pass."""
    before: set[fx.Node] = set()
    for node in network.graph.nodes:
        before.add(node)
        if (strip := _strip_taken_by(network, node)) is None:
            continue
        image = node.args[0]
        other = next((user for user in image.users if _strip_taken_by(network, user) == 1 - strip), None)
        if other is None or other in before or is_written(image, node, other):
            continue
        with network.graph.inserting_before(node):
            both = network.graph.call_function(strip_pool, (image,))
            made = [network.graph.call_function(operator.getitem, (both, i)) for i in (strip, 1 - strip)]
        for old, new in zip((node, other), made, strict=True):
            new.meta["was"] = _name(network, old)
            old.replace_all_uses_with(new)
            network.graph.erase_node(old)


def _name(network: fx.GraphModule, node: fx.Node) -> tuple[str, str]:
    """What the table calls a node: of what name and kind."""
    module = module_of(network, node)
    if module is not None:
        return str(node.target), type(module).__name__
    return node.name, str(getattr(node.target, "__name__", node.target))


def _strip_taken_by(network: fx.GraphModule, node: fx.Node) -> int | None:
    """Which of the results of `strip_pool` a node takes of an image, if one."""
    module = module_of(network, node)
    if type(module) is nn.AdaptiveAvgPool2d and len(node.args) == 1:
        size: Any = module.output_size
    elif node.target is F.adaptive_avg_pool2d and len(node.args) == 2 and not node.kwargs:
        size = node.args[1]
    elif calls(node, "mean") and mean_of(node) in _MEANS:
        # Of images, which is what convolutions take.
        is_image = any(isinstance(module_of(network, user), nn.Conv2d) for user in node.users)
        return _MEANS.index(mean_of(node)) if is_image else None
    else:
        return None
    return _SIZES.index(tuple(size)) if isinstance(size, tuple | list) and tuple(size) in _SIZES else None


def fuse_outer_sums(network: fx.GraphModule) -> None:
    """Adds strips without spreading them first, and where a pointwise convolution alone reads the sums, in its kernel."""
    for relu in network.graph.nodes:
        total: Any = relu.args[0] if activation_of(network, relu) == "relu" and relu.args else None
        if (found := _strips_added_by(network, total)) is None:
            continue
        image, *strips = found
        if any(is_written(strip, total, relu) for strip in strips):
            continue
        relu.op, relu.target, relu.args, relu.kwargs = "call_function", rectified_sum, tuple(strips), {}
        for node in (total, *total.args):
            if not node.users:  # what spread a strip
                network.graph.erase_node(node)
        conv: Any = next(iter(relu.users)) if len(relu.users) == 1 else None
        layer: Any = module_of(network, conv)
        is_pointwise = type(layer) is PackedConv2d and layer.is_pointwise() and len(conv.args) == 1
        if is_pointwise and not any(is_written(strip, relu, conv) for strip in strips):
            _fuse(network, conv, PackedOuterSumConv2d(layer), image)
            network.graph.erase_node(relu)


def rectified_sum(rows: Tensor, columns: Tensor) -> Tensor:
    """relu(rows + columns), of rows (n, c, h, 1) and columns (n, c, 1, w): all pixels (n, c, h, w)."""
    return F.relu_(rows + columns)


def _fuse(network: fx.GraphModule, conv: fx.Node, layer: PackedOuterSumConv2d, image: fx.Node) -> None:
    """Puts the layer in place of the convolution of a sum of strips, and of the product of its results and the image."""
    name = f"outer_sums.{conv.name}"
    network.add_submodule(name, layer.eval())
    strips: Any = conv.all_input_nodes[0].args
    meta = {"were": were(network, conv)}
    product: Any = next(iter(conv.users)) if len(conv.users) == 1 else None
    is_product = product is not None and product.target in (operator.mul, torch.mul, "mul") and not product.kwargs
    if is_product and {*product.args} == {conv, image} and not any(is_written(s, conv, product) for s in strips):
        product.op, product.target, product.args, product.meta = "call_module", name, (*strips, image), meta
        network.graph.erase_node(conv)
    else:
        conv.target, conv.args, conv.meta = name, strips, meta


# ---- what strips are -------------------------------------------------------------------------


def _strips_added_by(network: fx.GraphModule, node: Any) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """An image, and rows and columns of it that a node adds up all over it, for a single user."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method") or len(node.users) != 1:
        return None
    if node.target not in ADDITIONS or node.kwargs or len(node.args) != 2:
        return None
    found: dict[int, fx.Node] = {}
    images = set()
    for term in node.args:
        strip = _before_spreading(network, term)
        image, which = _origin(network, strip)
        images.add(image)
        found[which] = strip
    return (images.pop(), found[0], found[1]) if len(images) == 1 and found.keys() == {0, 1} else None


def _origin(network: fx.GraphModule, strip: Any) -> Any:
    """The image whose means a strip is made of, pixel by pixel, and whether those are of rows, 0, or columns, 1."""
    *_, first = _same_size(network, strip)
    if isinstance(first, fx.Node) and first.target is operator.getitem:
        both, which = first.args
        if isinstance(both, fx.Node) and both.target is strip_pool and len(both.args) == 1:
            return both.args[0], which
    return None, -1


def _before_spreading(network: fx.GraphModule, term: Any) -> Any:
    """A strip that a node repeats all over its image; other nodes themselves."""
    if calls(term, "expand") and len(term.args) == 5 and term.args[1:3] == (-1, -1):
        sizes = term.args[3:]
    elif isinstance(term, fx.Node) and term.target is F.interpolate:
        sizes = term.args[1] if len(term.args) > 1 else term.kwargs.get("size")
    else:
        return term
    strip = term.args[0]
    image, _ = _origin(network, strip)
    known = _same_size(network, image) if image is not None else ()
    return strip if any(_is_size_of(sizes, x) for x in known) else term


def _is_size_of(sizes: Any, image: fx.Node) -> bool:
    """Whether these are the numbers of rows and columns."""
    if isinstance(sizes, fx.Node) and sizes.target is operator.getitem:
        return sizes.args[1] == slice(2, None, None) and is_shape(sizes.args[0], image)
    return isinstance(sizes, tuple | list) and len(sizes) == 2 and all(map(is_size, sizes, (image, image), (2, 3)))


def _same_size(network: fx.GraphModule, node: Any) -> Iterator[Any]:
    """A node, and those before it whose values have as many rows and columns."""
    yield node
    layer: Any
    while type(layer := module_of(network, node)) is PackedConv2d and len(node.args) == 1:
        axes: Any = zip(layer.kernel_size, layer.padding, layer.dilation, layer.stride, strict=True)
        if len(layer.padding) != 2 or any(2 * p != d * (k - 1) or s > 1 for k, p, d, s in axes):
            return
        node = node.args[0]
        yield node

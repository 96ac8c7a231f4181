"""Images that lie where they are written and read, or never lie: concatenations, splits, first layers without copies.

These passes work on the graph of a plan, whose nodes are operators and have the tensors of the recorded call in
``meta["val"]``, as sketches without numbers: sizes and layouts are known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastnets.ops._packed import TYPES

aten = torch.ops.aten
LAST = torch.channels_last

# Kernels of ours that write results into channels of larger images, and those that read such too.
_READ = {"pointwise_conv2d", "winograd_conv2d", "max_pool2d", "avg_pool2d"}
_READ_PLANES = {"direct_conv2d", "direct_max_pool2d"}
_WRITE = {
    *(*_READ, *_READ_PLANES, "add_images", "inverted_residual", "outer_sum_conv2d", "preact_conv2d"),
    "squeeze_excitation",
}


def pool_what_is_made(graph: fx.Graph) -> None:
    """Lets the direct convolution take the maxima of its results, which then stay in the caches."""
    cpu = torch.ops.fastnets_cpu
    for pool in graph.find_nodes(op="call_function", target=cpu.max_pool2d.default):
        conv = pool.args[0]
        if not is_ours(conv, {"direct_conv2d"}) or [*conv.users] != [pool]:
            continue
        *args, residual, activation, quantized, _ = conv.args
        if residual is None and not quantized and not _is_written(graph, conv.args[0].meta["val"], conv):
            pool.target, pool.args = cpu.direct_max_pool2d.default, (*args, activation, *pool.args[1:])
            graph.erase_node(conv)


def concatenate_in_place(graph: fx.Graph) -> None:
    """Lets kernels write their results to where a concatenation along the channels, or of batches, would copy them.

    What others make is copied there by a kernel of ours.
    """
    for cat in graph.find_nodes(op="call_function", target=aten.cat.default):
        (parts, dim), image = (*cat.args, 0)[:2], cat.meta["val"]
        are_images = all(x.meta["val"].dim() == 4 and x.meta["val"].dtype == image.dtype for x in parts)
        if are_images and image.dtype in TYPES and image.is_contiguous(memory_format=LAST) and dim in (0, 1):
            (_concatenate if dim == 1 else _concatenate_batches)(graph, cat, parts)


def _concatenate(graph: fx.Graph, cat: fx.Node, parts: list[fx.Node]) -> None:
    image, channel = cat.meta["val"], 0
    written = _written(cat, parts)
    copied: dict[int, fx.Node] = {}
    whole = _empty_for(graph, cat, written)
    for part in parts:
        end = channel + _channels(part)
        if part in written:
            part.kwargs, part.meta["val"] = {"into": whole, "channel": channel}, image
        else:
            copied[channel] = part
        channel = end
    if copied:
        with graph.inserting_before(cat):
            concat = torch.ops.fastnets_cpu.concat_images.default
            _call(graph, image, concat, into=whole, xs=list(copied.values()), channels=list(copied))
    cat.replace_all_uses_with(whole)
    graph.erase_node(cat)


def _concatenate_batches(graph: fx.Graph, cat: fx.Node, parts: list[fx.Node]) -> None:
    image, first = cat.meta["val"], 0
    written = _written(cat, parts)
    whole = _empty_for(graph, cat, written)
    for part in parts:
        end = first + len(part.meta["val"])
        with graph.inserting_before(part if part in written else cat):
            place = _call(graph, image[first:end], aten.slice.Tensor, whole, 0, first, end)
            if part not in written:
                concat = torch.ops.fastnets_cpu.concat_images.default
                _call(graph, image[first:end], concat, into=place, xs=[part], channels=[0])
        if part in written:
            part.kwargs, part.meta["val"] = {"into": place, "channel": 0}, image[first:end]
        first = end
    cat.replace_all_uses_with(whole)
    graph.erase_node(cat)


def _written(cat: fx.Node, parts: list[fx.Node]) -> set[fx.Node]:
    """Those that their kernels can write into the concatenation, which alone uses them."""
    return {p for p in parts if writes_slices(p) and list(p.users) == [cat] and parts.count(p) == 1}


def _empty_for(graph: fx.Graph, cat: fx.Node, written: set[fx.Node]) -> fx.Node:
    """Memory for a concatenation, before the first of what is written there."""
    image = cat.meta["val"]
    with graph.inserting_before(next(node for node in graph.nodes if node in {*written, cat})):
        how = {"dtype": image.dtype, "device": torch.device("cpu"), "memory_format": LAST}
        return _call(graph, image, aten.empty.memory_format, list(image.shape), **how)


def add_where_they_lie(graph: fx.Graph) -> None:
    """Lets a kernel of ours add images, and parts of images, which can write the sum into a larger one."""
    for node in graph.find_nodes(op="call_function", target=aten.add.Tensor):
        y, terms = node.meta["val"], [x.meta["val"] for x in node.args if isinstance(x, fx.Node)]
        are_alike = len(terms) == 2 and all(_is_slice(x) and x.dtype == y.dtype and x.shape == y.shape for x in terms)
        if are_alike and not node.kwargs and y.is_contiguous(memory_format=LAST):
            node.target = torch.ops.fastnets_cpu.add_images.default


def _call(graph: fx.Graph, value: Tensor, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = value
    return node


def read_slices(graph: fx.Graph) -> None:
    """Lets kernels read channels and planes where they lie, in place of copies of them."""
    for copy in [node for node in graph.nodes if node.target in (aten.clone.default, aten.contiguous.default)]:
        source = copy.args[0]
        value = source.meta["val"]
        readers = _READ if _is_slice(value) else _READ_PLANES if _is_in_planes(value) else set()
        is_read = all(is_ours(user, readers) and _places(copy, user) == [0] for user in copy.users)
        if is_read and not _is_written(graph, value, copy):
            copy.replace_all_uses_with(source)
            graph.erase_node(copy)


def _places(value: fx.Node, user: fx.Node) -> list[int]:
    return [i for i, argument in enumerate(user.args) if argument is value]


def _is_slice(x: Tensor) -> bool:
    """Whether these are channels of images in channels_last."""
    if x.dim() != 4 or x.dtype not in TYPES or x.numel() == 0:
        return False
    (n, c, h, w), (sn, sc, sh, sw) = x.shape, x.stride()
    return sc == 1 and sw >= c and sh == w * sw and sn == h * sh and min(n, h, w) > 0


def _is_in_planes(x: Tensor) -> bool:
    return x.dim() == 4 and x.dtype in TYPES and x.is_contiguous()


def _is_written(graph: fx.Graph, x: Tensor, since: fx.Node) -> bool:
    """Whether an operator after a node writes into the memory of x."""
    nodes = list(graph.nodes)
    for node in nodes[nodes.index(since) + 1 :]:
        schema = getattr(node.target, "_schema", None)
        for i, argument in enumerate(schema.arguments if schema else ()):
            given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
            if argument.is_write and _shares(given, x):
                return True
    return False


def _shares(given: Any, x: Tensor) -> bool:
    values = [
        n.meta.get("val") for n in (given if isinstance(given, list | tuple) else [given]) if isinstance(n, fx.Node)
    ]
    return any(isinstance(v, Tensor) and v.untyped_storage()._cdata == x.untyped_storage()._cdata for v in values)


def writes_slices(node: fx.Node) -> bool:
    """Whether a kernel makes new images that it could write into given ones."""
    return is_ours(node, _WRITE) and "into" not in node.kwargs


def is_ours(node: fx.Node, names: set[str]) -> bool:
    """Whether an operator is one of these kernels of ours."""
    target: Any = node.target
    return getattr(target, "namespace", None) == "fastnets_cpu" and target._opname in names


def _channels(node: fx.Node) -> int:
    return node.meta["val"].shape[1]

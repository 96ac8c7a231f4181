"""Soft non-maximum suppression: a box that overlaps a better one loses score instead of being dropped."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnets._op import Op, native_libraries
from fastnets.ops._arguments import WRONG_TYPE, refuse_types
from fastnets.ops._boxes import best_first, categories, check_boxes, decay_type, in_order, integer_ids
from fastnets.ops._soft_nms_reference import Rule, soft_nms_by_swaps, soft_nms_in_order, soft_nms_scanned

METHODS = ("linear", "gaussian", "hard")
COMPAT = (None, "mmcv", "paper")

# ---- schema ----------------------------------------------------------------------------------


def _check(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: str,
    max_output: int | None,
    compat: str | None,
) -> None:
    check_boxes(boxes, scores, idxs, "soft_nms")
    if not iou_threshold >= 0:
        raise ValueError(f"iou_threshold must be 0 or more, but is {iou_threshold}")
    if not sigma > 0:
        raise ValueError(f"sigma must be more than 0, but is {sigma}")
    if not math.isfinite(min_score):
        raise ValueError(f"min_score must be finite, but is {min_score}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, but is {method!r}")
    if max_output is not None and max_output < 0:
        raise ValueError(f"max_output must be None or 0 or more, but is {max_output}")
    if compat not in COMPAT:
        raise ValueError(f"compat must be one of {COMPAT}, but is {compat!r}")


op = Op(
    "soft_nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, float sigma, float min_score, str method, "
    "int? max_output, str? compat) -> (Tensor keep, Tensor decayed_scores, Tensor count)",
    _check,
)

# ---- reference -------------------------------------------------------------------------------


@op.backend("reference")
def _reference(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: str,
    max_output: int | None,
    compat: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    rule = Rule(iou_threshold, sigma, min_score, method, compat)
    most = _most(boxes, idxs, min_score, max_output, compat)
    b, s = boxes.detach().to(decay_type(boxes)), scores.detach().to(decay_type(boxes))
    if torch.onnx.is_in_onnx_export():
        if compat is not None:
            raise RuntimeError(f"soft_nms with compat={compat!r} cannot be exported to ONNX")
        most = boxes.shape[0] if max_output is None else max_output
        return _results(*soft_nms_scanned(b, s, idxs, most, rule), scores, max_output)
    take = soft_nms_in_order if compat is None else soft_nms_by_swaps
    if idxs is None:
        return _results(*take(b, s, most, rule), scores, max_output)
    members = [(idxs == i).nonzero()[:, 0] for i in idxs.unique()]
    taken = [take(b[m], s[m], most, rule) for m in members]
    keep = torch.cat([idxs[:0], *(m[k] for m, (k, _) in zip(members, taken, strict=True))])
    decayed = torch.cat([s[:0], *(d for _, d in taken)])
    return _results(*_merge(keep, decayed, len(scores)), scores, max_output)


def _most(boxes: Tensor, idxs: Tensor | None, min_score: float, max_output: int | None, compat: str | None) -> int:
    """How many boxes of a category to take at most."""
    # The best of several categories are their first ones only where scores do not rise: not where they may be
    # negative, nor where a NaN may be taken.
    rises = idxs is not None and (compat is not None or min_score < 0)
    return boxes.shape[0] if max_output is None or rises else min(max_output, boxes.shape[0])


def _merge(keep: Tensor, decayed: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """What was taken of several categories of n boxes (-1: nothing) by score, equal ones by index, then nothing."""
    index = torch.where(keep < 0, n, keep)
    taken = keep.new_zeros(n + 1, dtype=torch.bool).index_fill_(0, index, True)[:n]
    scores = decayed.new_full((n + 1,), -math.inf).scatter_(0, index, decayed)[:n]
    order = best_first(scores)
    order = order[(~taken[order]).byte().argsort(stable=True)]
    return torch.where(taken[order], order, -1), scores[order]


def _results(keep: Tensor, decayed: Tensor, scores: Tensor, size: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The op's results of what was taken, which ends where keep is -1: all of it, or the given size."""
    if size is None:
        some = (keep >= 0).nonzero()[:, 0]  # as long as what was taken: on a GPU this waits for it
        keep, decayed = keep[some], decayed[some]
    else:
        keep = torch.cat([keep, keep.new_full((size,), -1)])[:size]
        decayed = torch.where(keep < 0, 0.0, torch.cat([decayed, decayed.new_zeros(size)])[:size])
    return keep, decayed.to(scores.dtype), (keep >= 0).sum()


# ---- backends --------------------------------------------------------------------------------

op.native("cpu")


def _by_categories(
    kernel: Callable[..., None],
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: str,
    max_output: int | None,
    compat: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sorts by category, runs a kernel on the categories, and collects what was taken."""
    places = torch.arange(boxes.shape[0], device=boxes.device)
    index, begins = (places, None) if idxs is None else categories(idxs)
    keep, decayed = torch.full_like(places, -1), torch.zeros_like(places, dtype=decay_type(boxes))
    most = _most(boxes, idxs, min_score, max_output, compat)
    b, s = in_order(boxes, index), scores.detach()[index].to(decay_type(boxes))
    kernel(b, s, places, begins, keep, decayed, iou_threshold, sigma, min_score, method, most, compat)
    del b, s, places, begins  # 36 bytes a box, before there are others
    if idxs is not None:
        keep, decayed = _merge(torch.where(keep < 0, keep, index[keep]), decayed, len(index))
    return _results(keep, decayed, scores, max_output)


@op.backend("triton")
def _triton(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from fastnets.kernels.soft_nms import soft_nms_categories

    return _by_categories(soft_nms_categories, *args)


native_libraries["cuda"].define(
    "soft_nms_categories(Tensor(a!) boxes, Tensor(b!) scores, Tensor(c!) index, Tensor? begins, Tensor(d!) keep, "
    "Tensor(e!) decayed, float iou_threshold, float sigma, float min_score, str method, int most, "
    "str? compat) -> ()"
)


@op.backend("cuda")
def _cuda(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _by_categories(torch.ops.fastnets_cuda.soft_nms_categories, *args)


# ---- fake ------------------------------------------------------------------------------------


@op.fake
def _fake(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    a: float,
    b: float,
    c: float,
    d: str,
    max_output: int | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size() if max_output is None else max_output
    return scores.new_empty(size, dtype=torch.int64), scores.new_empty(size), scores.new_empty((), dtype=torch.int64)


# ---- autograd --------------------------------------------------------------------------------


def _backward(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "soft_nms is not differentiable: detach decayed_scores, or take scores[keep], which has a gradient"
    )


op.autograd(_backward, lambda ctx, inputs, output: None)

# ---- public functions ------------------------------------------------------------------------


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    *,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
    max_output: int | None = None,
    compat: str | None = None,
) -> tuple[Tensor, ...]:
    r"""Takes boxes best first; each lowers the scores of those that overlap it, instead of dropping them.

    .. math::
        s_i \leftarrow s_i \cdot f(\mathrm{IoU}(b_i, b_{best})), \quad f(u) =
        \begin{cases} 1 - u \text{ if } u > t \text{ else } 1 & \text{linear} \\
                      e^{-u^2 / \sigma} & \text{gaussian} \\
                      0 \text{ if } u > t \text{ else } 1 & \text{hard} \end{cases}

    Of equal scores the lowest index is taken; NaN is never taken; boxes without area have IoU 0. Overlaps are computed
    and scores decay in float32 (float64 for float64 boxes), each operation and exp rounded alike on every backend: all
    give the same indices and scores. TensorFlow's ``soft_nms_sigma`` is half of this sigma.

    Args:
        boxes: (n, 4), floating, as (x1, y1, x2, y2) in any unit; any strides.
        scores: (n,), of the type and device of boxes.
        iou_threshold: t, 0 or more; 'gaussian' does not use it.
        sigma: width of 'gaussian', more than 0.
        min_score: finite; no box is taken whose score is below.
        method: f: 'linear', 'gaussian' or 'hard'.
        max_output: None, or how many boxes to take at most: results then have this size, whatever is taken.
        compat: None, or whose released code to equal index for index: 'mmcv' (version 2: IoU of t counts as over it) or
            'paper' (widths count the last pixel). Both take their first box whatever its score, take a NaN that comes
            to the front, resolve ties by the swaps of their loop, and are slower on a GPU. Arithmetic is float32 all
            through; no ONNX.

    Returns:
        (keep, decayed_scores): int64 indices in the order taken, and their scores when taken, in the type of scores.
        With max_output (keep, decayed_scores, count), filled up with -1 and 0, count an int64 tensor of no dimensions.
        On a GPU the call waits for the number of boxes only if max_output is None. Allocates at most 100 bytes a box
        beside them (float32), never n² of anything. Not differentiable: going backward through decayed_scores raises,
        while scores[keep] has its gradient. ``torch.compile(fullgraph=True)`` without max_output needs
        ``torch._dynamo.config.capture_dynamic_output_shape_ops``.

    Raises:
        RuntimeError, NotImplementedError: shapes, types or devices do not fit.
        TypeError: an argument has another type than the one it is declared with.
        ValueError: one of the other arguments is none of those above.

    Paper: N. Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", ICCV 2017,
    https://arxiv.org/abs/1704.04503

    Example:
        >>> import torch
        >>> from fastnets.ops import soft_nms
        >>> boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1], [5, 5, 6, 6]])
        >>> keep, scores = soft_nms(boxes, torch.tensor([1.0, 0.75, 0.5]))
        >>> keep.tolist(), scores.tolist()
        ([0, 2, 1], [1.0, 0.5, 0.375])
    """
    options = iou_threshold, sigma, min_score, method, max_output, compat
    try:
        keep, decayed, count = op(boxes, scores, None, *options)
    except WRONG_TYPE:
        refuse_types(soft_nms, boxes, scores, *options)
        raise
    return (keep, decayed) if max_output is None else (keep, decayed, count)


def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float = 0.3,
    *,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
    max_output: int | None = None,
    compat: str | None = None,
) -> tuple[Tensor, ...]:
    r"""`soft_nms` in each of several categories, which never meet.

    .. math::
        s_i \leftarrow s_i \cdot f(\mathrm{IoU}(b_i, b_{best})) \text{ where } c_i = c_{best}

    Categories are compared by their ids; coordinates are not shifted, which would round them.

    Args:
        boxes: (n, 4), see `soft_nms`.
        scores: (n,), see `soft_nms`.
        idxs: (n,) integers, the category c of each box: any ids in any order, such as image · classes + class.
        iou_threshold: see `soft_nms`, as are the others.
        sigma: of 'gaussian'.
        min_score: of a box that is taken.
        method: 'linear', 'gaussian' or 'hard'.
        max_output: of all categories together: those with the highest decayed scores.
        compat: None, 'mmcv' or 'paper', in each category.

    Returns:
        As `soft_nms`, of all categories: by decayed score, the highest first (NaN before it), equal ones by index.

    Raises:
        RuntimeError, NotImplementedError, TypeError, ValueError: as `soft_nms`.

    Paper: N. Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", ICCV 2017,
    https://arxiv.org/abs/1704.04503

    Example:
        >>> import torch
        >>> from fastnets.ops import batched_soft_nms
        >>> boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1], [0, 0, 2, 1]])
        >>> keep, scores = batched_soft_nms(boxes, torch.tensor([1.0, 0.75, 0.5]), torch.tensor([4, 4, -7]))
        >>> keep.tolist(), scores.tolist()
        ([0, 2, 1], [1.0, 0.5, 0.375])
    """
    options = iou_threshold, sigma, min_score, method, max_output, compat
    try:
        keep, decayed, count = op(boxes, scores, integer_ids(idxs), *options)
    except WRONG_TYPE:
        refuse_types(batched_soft_nms, boxes, scores, idxs, *options)
        raise
    return (keep, decayed) if max_output is None else (keep, decayed, count)

"""Non-maximum suppression: of boxes that overlap, the one with the highest score stays."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from fastnets._op import Op, native_libraries
from fastnets.ops._arguments import WRONG_TYPE, refuse_types
from fastnets.ops._boxes import best_first, categories, check_boxes, decay_type, in_order, integer_ids, overlap, row

# ---- schema ----------------------------------------------------------------------------------


def _check(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> None:
    check_boxes(boxes, scores, idxs, "nms")


op = Op("nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> Tensor", _check)

# ---- reference -------------------------------------------------------------------------------


@op.backend("reference")
def _reference(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    exporting = torch.onnx.is_in_onnx_export()
    if exporting and idxs is None:
        return _onnx(boxes, scores, iou_threshold)
    # ONNX has no stable sort, but its TopK puts equal numbers in the order of their indices.
    order = scores.argsort(descending=True) if exporting else scores.argsort(descending=True, stable=True)
    b, ids = boxes.detach().to(decay_type(boxes))[order], None if idxs is None else idxs[order]
    threshold = round_down(iou_threshold, b.dtype)

    def suppress(alive: Tensor, i: Tensor) -> Tensor:
        both, either = overlap(row(b, i), b)
        worse = torch.arange(b.shape[0], device=b.device) > i
        if ids is not None:
            worse = worse & (ids == row(ids, i))
        return alive & ~(row(alive, i) & worse & (both / either > threshold))

    alive = torch.ones_like(order, dtype=torch.bool)
    if exporting:
        from torch._higher_order_ops.scan import scan

        def body(alive: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
            return suppress(alive, i), i + 0

        alive, _ = scan(body, alive, torch.arange(b.shape[0], device=b.device))
    else:
        for i in torch.arange(b.shape[0], device=b.device):
            alive = suppress(alive, i)
    return order[alive.nonzero()[:, 0]]


def _onnx(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """ONNX's operator of the same job, in float32."""
    some = torch.ones_like(scores).nonzero().shape[0]  # a size known only when it runs
    limits = torch.tensor([torch.iinfo(torch.int32).max]), torch.tensor([iou_threshold], dtype=torch.float32)
    inputs = boxes.float()[None], scores.float()[None, None], *limits
    selected = torch.onnx.ops.symbolic("NonMaxSuppression", inputs, dtype=torch.int64, shape=(some, 3))
    return selected[:, 2]


def round_down(threshold: float, dtype: torch.dtype) -> float:
    """The largest number of that type up to ``threshold``.

    torchvision compares an IoU in float32 with a threshold in double, and no float32 lies between the two.
    """
    nearest = torch.tensor(threshold, dtype=dtype)
    return (nearest if nearest.item() <= threshold else nearest.nextafter(torch.tensor(-inf, dtype=dtype))).item()


# ---- backends --------------------------------------------------------------------------------

op.native("cpu")


def _by_categories(
    kernel: Callable[..., None], boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float
) -> Tensor:
    """Sorts by category and score, runs a kernel on the categories, and collects what stays by score."""
    order = best_first(scores)
    alive = torch.ones_like(order, dtype=torch.bool)
    if idxs is None:
        kernel(in_order(boxes, order), None, alive, iou_threshold)
    else:
        ranks, begins = categories(idxs[order])
        kernel(in_order(boxes, order[ranks]), begins, alive, iou_threshold)
        alive = torch.empty_like(alive).scatter_(0, ranks, alive)
    return order[alive]


@op.backend("triton")
def _triton(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    from fastnets.kernels.nms import nms_categories

    return _by_categories(nms_categories, boxes, scores, idxs, round_down(iou_threshold, decay_type(boxes)))


native_libraries["cuda"].define(
    "nms_categories(Tensor boxes, Tensor? begins, Tensor(a!) alive, float iou_threshold) -> ()"
)


@op.backend("cuda")
def _cuda(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    return _by_categories(torch.ops.fastnets_cuda.nms_categories, boxes, scores, idxs, iou_threshold)


# ---- fake ------------------------------------------------------------------------------------


@op.fake
def _fake(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


# ---- public functions ------------------------------------------------------------------------


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    r"""Keeps, best first, each box that no kept one overlaps by more than a threshold; ``torchvision.ops.nms``.

    .. math::
        K = \{i : \mathrm{IoU}(b_i, b_j) \le t \text{ for every } j \in K \text{ before } i\}

    Boxes come in the order of scores, equal ones in that of indices, NaN first. IoU is computed in float32 (float64 for
    float64 boxes), the threshold compared in double, as torchvision does on a CPU; every backend gets the same indices.

    Args:
        boxes: (n, 4), floating, as (x1, y1, x2, y2) in any unit; any strides.
        scores: (n,), of the type and device of boxes.
        iou_threshold: t, the largest IoU, of 0 to 1, that two kept boxes may have.

    Returns:
        (k,) int64: indices of the kept boxes, the highest score first. Without gradient. On a GPU the call waits for k.
        Allocates at most 100 bytes a box beside it (float32), never n² of anything. Exported to ONNX it is
        NonMaxSuppression. ``torch.compile(fullgraph=True)`` needs
        ``torch._dynamo.config.capture_dynamic_output_shape_ops``.

    Raises:
        RuntimeError, NotImplementedError: shapes, types or devices do not fit, with the message of torchvision.
        TypeError: an argument is no tensor, or no number.

    Paper: A. Neubeck and L. Van Gool, "Efficient Non-Maximum Suppression", ICPR 2006

    Example:
        >>> import torch
        >>> from fastnets.ops import nms
        >>> boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.5], [5, 5, 6, 6]])
        >>> nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5).tolist()
        [1, 2]
    """
    try:
        return op(boxes, scores, None, iou_threshold)
    except WRONG_TYPE:
        refuse_types(nms, boxes, scores, iou_threshold)
        raise


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    r"""`nms` in each of several categories, which never meet; ``torchvision.ops.batched_nms``.

    .. math::
        K = \{i : \mathrm{IoU}(b_i, b_j) \le t \text{ for every } j \in K \text{ before } i \text{ with } c_j = c_i\}

    Categories are compared by their ids; coordinates are not shifted, which would round them.

    Args:
        boxes: (n, 4), see `nms`.
        scores: (n,), see `nms`.
        idxs: (n,) integers, the category c of each box: any ids in any order, such as image · classes + class.
        iou_threshold: t, see `nms`.

    Returns:
        (k,) int64: indices of the kept boxes of all categories, the highest score first. See `nms`.

    Raises:
        RuntimeError, NotImplementedError: shapes, types or devices do not fit.
        TypeError: an argument is no tensor, or no number.

    Paper: A. Neubeck and L. Van Gool, "Efficient Non-Maximum Suppression", ICPR 2006

    Example:
        >>> import torch
        >>> from fastnets.ops import batched_nms
        >>> boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.5], [5, 5, 6, 6]])
        >>> batched_nms(boxes, torch.tensor([0.5, 0.9, 0.7]), torch.tensor([3, 8, 3]), 0.5).tolist()
        [1, 2, 0]
    """
    try:
        return op(boxes, scores, integer_ids(idxs), iou_threshold)
    except WRONG_TYPE:
        refuse_types(batched_nms, boxes, scores, idxs, iou_threshold)
        raise

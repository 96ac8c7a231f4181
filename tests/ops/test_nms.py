"""nms and batched_nms on every backend: literal values, torchvision's rules one by one, degenerate sets, errors."""

from __future__ import annotations

import math
from functools import partial

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from boxes import KINDS, box_set, check_onnx, check_traced, some_ids
from edges import allocated, check_thread_counts

import fastnets
from fastnets._backends import INTERPRETED
from fastnets.ops import batched_nms, nms
from fastnets.ops.nms import op, round_down

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (
    (9,) if INTERPRETED else (1, 16, 33, 70)
)  # boxes: one, a vector of them, a group of 32 and one more, two and more

# A and B overlap by 1/3, B and C by 1/3, D is alone, E is A.
BOXES = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [9, 9, 10, 10], [0, 0, 2, 2]])
SCORES = torch.tensor([0.5, 0.9, 0.7, 0.6, 0.5])


def scalar_nms(boxes, scores, ids, threshold):
    """torchvision's loop, one box at a time: an IoU in the type of the boxes, a threshold in double."""
    order = scores.argsort(descending=True, stable=True).tolist()
    b, keep = boxes.numpy(), []

    def suppresses(i, j):
        (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = b[i], b[j]
        left, top = max(ax1, bx1), max(ay1, by1)
        right, bottom = min(ax2, bx2), min(ay2, by2)
        w, h = right - left, bottom - top
        both = (w if w > 0 else b.dtype.type(0)) * (h if h > 0 else b.dtype.type(0))
        either = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - both
        return ids[i] == ids[j] and float(both / either) > threshold

    with np.errstate(all="ignore"):
        for i in order:
            if not any(suppresses(j, i) for j in keep):
                keep.append(i)
    return keep


def test_literal_values(backend):
    assert nms(BOXES, SCORES, 0.3).tolist() == [1, 3]
    assert nms(BOXES, SCORES, 0.34).tolist() == [1, 2, 3, 0]  # of A and E the first
    assert nms(BOXES, SCORES, 1.0).tolist() == [1, 2, 3, 0, 4]
    assert batched_nms(BOXES, SCORES, torch.tensor([7, 7, -1, 7, 8]), 0.3).tolist() == [1, 2, 3, 4]


def test_threshold_is_compared_in_double(backend):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 3]])
    iou = (torch.tensor(30.0) / torch.tensor(100.0)).item()
    assert iou > 0.3 and round_down(0.3, torch.float32) < 0.3  # 0.3 in float32 is more than 0.3
    assert nms(boxes, SCORES[1:3], 0.3).tolist() == [0]
    assert nms(boxes, SCORES[1:3], iou).tolist() == [0, 1]
    assert nms(boxes.double(), SCORES[1:3].double(), 0.3).tolist() == [0, 1]


def test_edges(backend):
    for dtype in DTYPES:
        keep = nms(BOXES[:0].to(dtype), SCORES[:0].to(dtype), 0.5)
        assert keep.shape == (0,) and keep.dtype == torch.int64
    assert nms(BOXES, torch.zeros(5), 0.3).tolist() == [0, 2, 3]
    assert nms(BOXES, torch.tensor([0.1, 0.2, math.nan, -math.inf, math.inf]), 1.0).tolist() == [2, 4, 1, 0, 3]
    assert nms(BOXES[:, [0, 1, 0, 1]], SCORES, 0.0).tolist() == [1, 2, 3, 0, 4]  # no area: IoU is not a number
    strided = torch.full((5, 8), math.nan)
    strided[:, ::2] = BOXES
    assert nms(strided[:, ::2], SCORES.repeat_interleave(2)[::2], 0.3).tolist() == [1, 3]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_as_the_scalar_loop(backend, kind, dtype):
    for n in SIZES:
        boxes, scores = box_set(kind, n, n, dtype)
        ids, one, copies = some_ids(n, n), [0] * n, (boxes.clone(), scores.clone())
        wide = boxes.float() if dtype.itemsize == 2 else boxes
        for threshold in (0.3, 0.5, 0.0, -0.1):
            assert nms(boxes, scores, threshold).tolist() == scalar_nms(wide, scores, one, threshold)
            expected = scalar_nms(wide, scores, ids.tolist(), threshold)
            assert batched_nms(boxes, scores, ids, threshold).tolist() == expected
        for t, copy in zip((boxes, scores), copies, strict=True):
            assert torch.equal(t.nan_to_num(), copy.nan_to_num()), "input changed"


def test_more_boxes_than_a_panel_of_a_gpu_kernel_has(backend):
    boxes, scores = box_set("random", 600, 0)
    boxes *= 4
    for ids in (None, torch.zeros(600, dtype=torch.int64), torch.arange(600) % 3)[: 1 if INTERPRETED else 3]:
        fn = nms if ids is None else partial(batched_nms, idxs=ids)
        with fastnets.use_backend("reference"):
            expected = fn(boxes, scores, iou_threshold=0.1)
        assert 100 < len(expected) < 500
        assert torch.equal(fn(boxes, scores, iou_threshold=0.1), expected)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.sampled_from(KINDS), st.integers(0, 120), st.integers(0, 10**6), st.floats(0, 1), st.booleans())
def test_any_call_on_the_cpu(kind, n, seed, threshold, batched):
    boxes, scores = box_set(kind, n, seed)
    ids = some_ids(n, seed) if batched else torch.zeros(n, dtype=torch.int64)
    with fastnets.use_backend("cpu"):
        got = batched_nms(boxes, scores, ids, threshold) if batched else nms(boxes, scores, threshold)
    assert got.tolist() == scalar_nms(boxes, scores, ids.tolist(), threshold)


def test_blocks_and_threads_do_not_change_the_result(cpu_kernels):
    """More boxes than a block of the CPU kernel has, against the reference, with one and several threads."""
    boxes, scores = box_set("random", 2500, 0)
    boxes *= 5
    with fastnets.use_backend("reference"):
        expected = nms(boxes, scores, 0.4)
    assert 512 < len(expected) < 2000
    assert torch.equal(nms(boxes, scores, 0.4), expected)
    check_thread_counts(lambda: nms(boxes, scores, 0.4))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_neighbours_do_not_change_the_result(cpu_kernels, kind, dtype):
    """More boxes than make one chunk, of many sizes, here and there."""
    boxes, scores = box_set(kind, 1100, 1)
    boxes = (boxes * 2.0 ** (torch.arange(1100) % 5)[:, None] - 300).to(dtype)
    for threshold in (0.4, 0.05, -0.1):
        with fastnets.use_backend("reference"):
            expected = nms(boxes, scores.to(dtype), threshold)
        assert torch.equal(nms(boxes, scores.to(dtype), threshold), expected), threshold


def test_memory_is_as_the_docstring_says(cpu_kernels):
    n = 300_000
    boxes, scores, ids = torch.rand(n, 4), torch.rand(n), torch.arange(n) // 8
    boxes[:, 2:] += boxes[:, :2]
    assert allocated(lambda: batched_nms(boxes, scores, ids, 0.5)) < 100 * n
    assert allocated(lambda: nms(boxes, scores, 0.0)) < 100 * n


BAD = [
    (RuntimeError, "boxes should be a 2d tensor, got 1D", (BOXES[0], SCORES)),
    (RuntimeError, "boxes should have 4 elements in dimension 1, got 3", (BOXES[:, :3], SCORES)),
    (RuntimeError, "scores should be a 1d tensor, got 2D", (BOXES, SCORES[None])),
    (RuntimeError, "boxes and scores should have same number of elements in dimension 0, got 5 and 4", (BOXES, SCORES[:4])),
    (RuntimeError, "dets should have the same type as scores", (BOXES, SCORES.double())),
    (NotImplementedError, "\"nms_kernel\" not implemented for 'Long'", (BOXES.long(), SCORES.long())),
    (RuntimeError, "should be on one device, got cpu and meta", (BOXES, SCORES.to("meta"))),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "args"), BAD, ids=[message for _, message, _ in BAD])
def test_bad_input_raises_what_torchvision_raises(backend, error, message, args):
    with pytest.raises(error, match=message):
        nms(*args, 0.5)


def test_bad_categories(backend):
    with pytest.raises(RuntimeError, match=r"idxs should be integers of shape \(5,\) on cpu, got torch.float32"):
        batched_nms(BOXES, SCORES, torch.zeros(5), 0.5)


def test_tracing(backend):
    torch.library.opcheck(op.torch_op, (BOXES, SCORES, None, 0.3))
    torch.library.opcheck(op.torch_op, (BOXES, SCORES, torch.arange(5) % 2, 0.3))
    check_traced(partial(nms, iou_threshold=0.3), Module())


class Module(torch.nn.Module):
    def forward(self, boxes, scores, ids=None):
        return nms(boxes, scores, 0.3) if ids is None else batched_nms(boxes, scores, ids, 0.3)


@pytest.mark.parametrize("batched", (False, True))
def test_onnx(tmp_path, batched):
    nodes = check_onnx(Module(), batched, (9, 40), tmp_path)
    assert batched or "NonMaxSuppression" in {node.op_type for node in nodes}

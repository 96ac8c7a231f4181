"""soft_nms and batched_soft_nms on every backend: literal values, other people's loops, degenerate sets, errors."""

from __future__ import annotations

import math
from functools import cache, partial

import hypothesis
import hypothesis.strategies as st
import pytest
import soft_nms_originals
import torch
from boxes import KINDS, box_set, check_onnx, check_traced, same_bits, some_ids
from check_op import poisoned
from edges import allocated, check_at_once, check_thread_counts

import fastnets
from fastnets._backends import INTERPRETED
from fastnets.ops import batched_soft_nms, soft_nms
from fastnets.ops._soft_nms_reference import exponential
from fastnets.ops.soft_nms import METHODS, op

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (5,) if INTERPRETED else (1, 16, 33)  # boxes: one, a vector of them, two and one more

# A and B overlap by 1/3 (2 of 6), B and C by 1/3, D is alone, E is A.
BOXES = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [9, 9, 10, 10], [0, 0, 2, 2]])
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])


def on_reference(fn, *args, **kwargs):
    with fastnets.use_backend("reference"):
        return fn(*args, **kwargs)


def assert_same(got, expected, what=""):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert same_bits(a, b), f"{what}: {a}, but the reference has {b}"


def test_literal_values(backend):
    third = 1 / 3
    keep, scores = soft_nms(BOXES, SCORES)
    # 0 leaves 2/3 of B and nothing of E; then C, which costs B a third more.
    assert keep.tolist() == [0, 2, 3, 1]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.7, 0.6, 0.8 * 4 / 9]))
    keep, scores = soft_nms(BOXES, SCORES, 0.34)
    assert keep.tolist() == [0, 1, 2, 3]
    keep, scores = soft_nms(BOXES, SCORES, method="hard")
    assert keep.tolist() == [0, 2, 3] and torch.equal(scores, SCORES[keep])
    keep, scores = soft_nms(BOXES, SCORES, method="gaussian", sigma=0.25)
    w = math.exp(-third * third / 0.25)
    assert keep.tolist() == [0, 2, 3, 1, 4]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.7, 0.6, 0.8 * w * w, 0.5 * math.exp(-4) * w]))
    assert soft_nms(BOXES, SCORES, min_score=0.65)[0].tolist() == [0, 2]


def test_max_output(backend):
    keep, scores, count = soft_nms(BOXES, SCORES, max_output=2)
    assert keep.tolist() == [0, 2] and torch.equal(scores, SCORES[keep]) and count.item() == 2
    keep, scores, count = soft_nms(BOXES, SCORES, method="hard", max_output=5)
    assert keep.tolist() == [0, 2, 3, -1, -1] and scores[3:].tolist() == [0, 0] and count.item() == 3
    keep, scores, count = soft_nms(BOXES[:0], SCORES[:0], max_output=2)
    assert keep.tolist() == [-1, -1] and scores.tolist() == [0, 0] and count.item() == 0


def test_categories_do_not_meet(backend):
    boxes, ids = BOXES[[0, 0, 0, 0]], torch.tensor([5, -3, 5, 2**60])
    keep, scores = batched_soft_nms(boxes, torch.tensor([0.5, 0.5, 0.9, 0.9]), ids, method="hard")
    assert keep.tolist() == [2, 3, 1] and scores.tolist() == pytest.approx([0.9, 0.9, 0.5])
    keep, _, count = batched_soft_nms(boxes, torch.tensor([0.5, 0.5, 0.9, 0.9]), ids.int(), method="hard", max_output=2)
    assert keep.tolist() == [2, 3] and count.item() == 2


def test_one_category_is_put_in_order_too(backend):
    """The last box ties with the first, which comes before it whatever these rules took first."""
    boxes = torch.tensor(
        [[8.543596, 9.264425, 11.286661, 0.880243], [4.70411, 17.269314, 19.779284, 8.214214],
         [9.666048, 17.379875, 13.743706, 4.059086], [3.275946, 16.581686, 0.059078, 16.671503]]
    )  # fmt: skip
    kwargs = {"iou_threshold": 0.5, "min_score": 0.2, "method": "hard", "compat": "paper"}
    scores, ids = torch.tensor([0.25, 0.75, 0.25, 0.5]), torch.ones(4, dtype=torch.int64)
    assert soft_nms(boxes, scores, **kwargs)[0].tolist() == [1, 3, 2, 0]
    assert batched_soft_nms(boxes, scores, ids, **kwargs)[0].tolist() == [1, 3, 0, 2]
    assert batched_soft_nms(boxes, scores, ids, **kwargs, max_output=3)[0].tolist() == [1, 3, 0]


def test_edges(backend):
    for dtype in DTYPES:
        keep, scores = soft_nms(BOXES[:0].to(dtype), SCORES[:0].to(dtype))
        assert keep.shape == (0,) == scores.shape and keep.dtype == torch.int64 and scores.dtype == dtype
    nan = torch.tensor([0.5, math.nan, 0.5, math.nan, 0.5])
    assert soft_nms(BOXES, nan, method="hard")[0].tolist() == [0, 2]  # 4 is 0: the lower index is taken
    point = BOXES[:, [0, 1, 0, 1]]
    assert soft_nms(point, SCORES, method="gaussian")[1].tolist() == SCORES.tolist()  # IoU 0, not NaN
    assert soft_nms(BOXES, SCORES, min_score=2)[0].tolist() == []
    # Below 0 scores rise as they decay: 1 and 4 become 0 when 0 is taken, 2 when 1 is; 3 stays under min_score.
    keep, scores = soft_nms(BOXES, SCORES.flip(0) * -1, 0.0, method="hard", min_score=-0.6)
    assert keep.tolist() == [0, 1, 2, 4] and scores.tolist() == [-0.5, 0, 0, 0]
    strided = torch.full((5, 8), math.nan)
    strided[:, ::2] = BOXES
    assert_same(soft_nms(strided[:, ::2], SCORES), soft_nms(BOXES, SCORES))
    assert_same(soft_nms(BOXES.T.contiguous().T, SCORES.repeat_interleave(2)[::2]), soft_nms(BOXES, SCORES))


CALLS = [  # method, compat, other arguments
    (method, compat, kwargs)
    for method in METHODS
    for compat in (None, "mmcv", "paper")
    for kwargs in ({}, {"max_output": 5, "min_score": 0.0, "iou_threshold": 0.0}, {"min_score": -1.0})
]


@cache
def expected(n, kind, dtype, call, batched):
    method, compat, kwargs = CALLS[call]
    args = (*box_set(kind, n, n, dtype), *([some_ids(n, n)] if batched else []))
    fn = batched_soft_nms if batched else soft_nms
    return on_reference(fn, *args, method=method, compat=compat, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_gives_the_bits_of_the_reference(backend, kind, dtype):
    for n in SIZES if kind == "random" else SIZES[-1:]:
        boxes, scores = box_set(kind, n, n, dtype)
        ids = some_ids(n, n)
        copies = boxes.clone(), scores.clone(), ids.clone()
        calls = range(len(CALLS)) if dtype in (torch.float32, torch.float64) else range(0, len(CALLS), 4)
        for call in calls:
            method, compat, kwargs = CALLS[call]
            kwargs = {"method": method, "compat": compat, **kwargs}
            with poisoned():
                got = soft_nms(boxes, scores, **kwargs)
            assert_same(got, expected(n, kind, dtype, call, False), f"{n}, {kwargs}")
            got = batched_soft_nms(boxes, scores, ids, **kwargs)
            assert_same(got, expected(n, kind, dtype, call, True), f"ids, {n}, {kwargs}")
        assert_same((boxes, scores, ids), copies, "input changed")


def test_a_category_that_registers_cannot_hold(backend):
    """Of 600 boxes, beside one of 10."""
    boxes, scores = box_set("random", 610, 0)
    ids = (torch.arange(610) % 61 == 0).long()
    call = partial(batched_soft_nms, boxes, scores, ids, method="gaussian", max_output=20)
    assert_same(call(), on_reference(call))


@pytest.mark.parametrize("compat", ("mmcv", "paper"))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_compatible_index_for_index(backend, kind, method, compat):
    sets = {"cpu": 60, "reference": 4, "cuda": 8, "triton": 1}[backend]
    for seed in range(sets):
        n = seed * 7 % 23 + 3
        boxes, scores = box_set(kind, n, seed)
        threshold, min_score = ((0.3, 1e-3), (0.5, 0.05), (0.0, 0.0), (0.3, 0.3))[seed % 4]
        keep, decayed = soft_nms(boxes, scores, threshold, min_score=min_score, method=method, compat=compat)
        arguments = boxes.numpy(), scores.numpy(), threshold, 0.5, min_score, method, compat
        expected_keep, expected_decayed = soft_nms_originals.soft_nms(*arguments)
        assert keep.tolist() == expected_keep, f"set {seed}"
        assert same_bits(decayed, torch.tensor(expected_decayed).float())


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    kind=st.sampled_from(KINDS),
    n=st.integers(0, 90),
    seed=st.integers(0, 10**6),
    method=st.sampled_from(METHODS),
    threshold=st.sampled_from((0.0, 0.25, 0.5, 1.0)) | st.floats(0, 1),
    sigma=st.floats(0.01, 2),
    min_score=st.sampled_from((0.0, 1e-3)) | st.floats(-1, 1),
    most=st.none() | st.integers(0, 100),
    compat=st.sampled_from((None, "mmcv", "paper")),
    batched=st.booleans(),
)
def test_any_call_on_the_cpu(kind, n, seed, method, threshold, sigma, min_score, most, compat, batched):
    boxes, scores = box_set(kind, n, seed)
    kwargs = {"sigma": sigma, "min_score": min_score, "method": method, "max_output": most, "compat": compat}
    args = (boxes, scores, *([some_ids(n, seed)] if batched else []))
    fn = batched_soft_nms if batched else soft_nms
    with fastnets.use_backend("cpu"):
        got = fn(*args, threshold, **kwargs)
    assert_same(got, on_reference(fn, *args, threshold, **kwargs))


def test_exponential_is_the_nearest():
    x = -torch.rand(100000, dtype=torch.float64) * 30
    assert torch.equal(exponential(x).float(), x.exp().float())
    torch.testing.assert_close(exponential(x), x.exp(), rtol=4e-16, atol=0)
    edges = torch.tensor([0.0, -0.0, -1e-300, -708.1, -math.inf, math.nan], dtype=torch.float64)
    assert exponential(edges).tolist()[:5] == [1, 1, 1, 0, 0] and exponential(edges)[5].isnan()


def test_scores_fall_and_boxes_are_taken_once(backend):
    boxes, scores = box_set("random", 12 if INTERPRETED else 200, 3)
    for method in METHODS:
        keep, decayed = soft_nms(boxes, scores, method=method)
        assert (decayed[1:] <= decayed[:-1]).all() and keep.unique().numel() == keep.numel() > 5


def test_many_boxes_and_many_categories():
    """One image of 10 000 boxes; 8 images of 80 classes of 500 boxes in one call, as one call for each."""
    boxes, scores = box_set("random", 10_000, 0)
    keep, _ = soft_nms(boxes, scores)
    assert keep[0] == scores.argmax()
    boxes, scores = box_set("random", 320_000, 1)
    ids = torch.arange(640).repeat(500)[torch.randperm(320_000, generator=torch.Generator().manual_seed(0))]
    keep, decayed = batched_soft_nms(boxes, scores, ids)
    assert (decayed[1:] <= decayed[:-1]).all()
    for category in (0, 79, 639):
        members = (ids == category).nonzero()[:, 0]
        k, d = soft_nms(boxes[members], scores[members])
        mine = ids[keep] == category
        assert torch.equal(keep[mine], members[k]) and torch.equal(decayed[mine], d)


def test_memory_is_as_the_docstring_says(cpu_kernels):
    n, some = 300_000, 20_000
    boxes, scores, ids = torch.rand(n, 4), torch.rand(n), torch.arange(n) // 8
    assert allocated(lambda: batched_soft_nms(boxes, scores, ids, max_output=10)) < 100 * n
    assert allocated(lambda: soft_nms(boxes[:some], scores[:some], method="hard")) < 100 * some


def test_threads_do_not_change_a_bit(cpu_kernels):
    boxes, scores = box_set("pixels", 300, 0)
    ids = torch.arange(300) % 7

    def call(method):
        return soft_nms(boxes, scores, method=method) + batched_soft_nms(boxes, scores, ids, method=method)

    check_at_once([lambda m=m: call(m) for m in METHODS], rounds=40)
    for method in METHODS:
        check_thread_counts(lambda m=method: call(m))


BAD = [
    (RuntimeError, "boxes should be a 2d tensor, got 1D", (BOXES[0], SCORES), {}),
    (RuntimeError, "boxes should have 4 elements in dimension 1, got 3", (BOXES[:, :3], SCORES), {}),
    (RuntimeError, "scores should be a 1d tensor, got 2D", (BOXES, SCORES[None]), {}),
    (RuntimeError, "same number of elements in dimension 0, got 5 and 4", (BOXES, SCORES[:4]), {}),
    (RuntimeError, "same type as scores", (BOXES, SCORES.double()), {}),
    (NotImplementedError, "\"soft_nms_kernel\" not implemented for 'Int'", (BOXES.int(), SCORES.int()), {}),
    (ValueError, "iou_threshold must be 0 or more, but is -0.1", (BOXES, SCORES, -0.1), {}),
    (ValueError, "iou_threshold must be 0 or more, but is nan", (BOXES, SCORES, math.nan), {}),
    (ValueError, "sigma must be more than 0, but is 0.0", (BOXES, SCORES), {"sigma": 0.0}),
    (ValueError, "min_score must be finite", (BOXES, SCORES), {"min_score": -math.inf}),
    (ValueError, "method must be one of .*'soft'", (BOXES, SCORES), {"method": "soft"}),
    (ValueError, "max_output must be None or 0 or more, but is -1", (BOXES, SCORES), {"max_output": -1}),
    (ValueError, "compat must be one of .*'torchvision'", (BOXES, SCORES), {"compat": "torchvision"}),
]


@pytest.mark.parametrize(("error", "message", "args", "kwargs"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_bad_input(backend, error, message, args, kwargs):
    with pytest.raises(error, match=message):
        soft_nms(*args, **kwargs)


@pytest.mark.parametrize("ids", [torch.zeros(4).long(), torch.zeros(5), torch.zeros(5, 1).long()], ids=str)
def test_bad_categories(backend, ids):
    with pytest.raises(RuntimeError, match=r"idxs should be integers of shape \(5,\)"):
        batched_soft_nms(BOXES, SCORES, ids)


def test_gradient_is_refused(backend):
    boxes = BOXES.clone().requires_grad_()
    _, scores = soft_nms(boxes, SCORES)
    with pytest.raises(RuntimeError, match="soft_nms is not differentiable"):
        scores.sum().backward()


@pytest.mark.parametrize("max_output", (None, 3))
def test_tracing(backend, max_output):
    torch.library.opcheck(op.torch_op, (BOXES, SCORES, None, 0.3, 0.5, 1e-3, "linear", max_output, None))
    check_traced(partial(soft_nms, max_output=max_output), Module(max_output))


class Module(torch.nn.Module):
    def __init__(self, max_output, **kwargs):
        super().__init__()
        self.kwargs = {"max_output": max_output, **kwargs}

    def forward(self, boxes, scores, ids=None):
        if ids is None:
            return soft_nms(boxes, scores, **self.kwargs)
        return batched_soft_nms(boxes, scores, ids, **self.kwargs)


@pytest.mark.parametrize("batched", (False, True))
@pytest.mark.parametrize("max_output", (None, 6))
@pytest.mark.parametrize("method", METHODS)
def test_onnx(tmp_path, method, max_output, batched):
    check_onnx(Module(max_output, method=method), batched, (9, 20), tmp_path)


def test_compat_is_not_exported():
    with pytest.raises(Exception, match="soft_nms"):
        torch.onnx.export(Module(3, compat="mmcv").eval(), (BOXES, SCORES), dynamo=True, verbose=False)

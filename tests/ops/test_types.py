"""Arguments of wrong types: PyTorch's own error where it has the function, else one that names op and argument."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from edges import error_of

from fastnets import ops

X, V = torch.ones(1, 4, 4, 4), torch.ones(4)
W, W_GROUPED = torch.ones(4, 1, 3, 3), torch.ones(4, 2, 3, 3)
BOXES, IDS = torch.tensor([[0.0, 0, 1, 1]] * 4), torch.zeros(4, dtype=torch.int64)
GEOMETRY = None, 1, 0, 1

# By name, PyTorch's function and good arguments.
PYTORCH = {
    "channel_shuffle": (F.channel_shuffle, (X, 2)),
    "conv2d": (F.conv2d, (X, W_GROUPED, *GEOMETRY, 2)),
    "depthwise_conv2d": (lambda *args: F.conv2d(*args, 4), (X, W, *GEOMETRY)),
    "grouped_conv2d": (F.conv2d, (X, W_GROUPED, *GEOMETRY, 2)),
    "pixel_shuffle": (F.pixel_shuffle, (X, 2)),
    "pixel_shuffle_to_uint8": (F.pixel_shuffle, (X, 2)),
    "pixel_unshuffle": (F.pixel_unshuffle, (X, 2)),
    "sync_batch_norm": (F.batch_norm, (X, V, V, V, V, True, 0.0, 1e-5)),
}
SOFT = {"sigma": 0.5, "min_score": 0.0}
OURS = {
    "batch_moments": {"input": X},
    "batched_nms": {"boxes": BOXES, "scores": V, "idxs": IDS, "iou_threshold": 0.5},
    "batched_soft_nms": {"boxes": BOXES, "scores": V, "idxs": IDS, "iou_threshold": 0.5, **SOFT},
    "corner_pool": {"input": X, "direction": "top"},
    "corner_pool_sum": {"vertical": X, "horizontal": X, "corner": "top_left"},
    "nms": {"boxes": BOXES, "scores": V, "iou_threshold": 0.5},
    "precision_gate_conv2d": {"input": X, "weight": W, "threshold": V, "groups": 4},
    "shuffle_split": {"a": X, "b": X},
    "soft_nms": {"boxes": BOXES, "scores": V, "iou_threshold": 0.5, **SOFT},
    "strip_pool": {"input": X},
}
NO_TENSORS = (None, [1.5], np.ones((1, 4, 4, 4), np.float32), "text", 1.5)
NO_NUMBERS = (None, "text", [1.5])


def wrong(good):
    """Values that are not of a good one's type; of other strings an op says that they are none of its."""
    if good is None or isinstance(good, torch.Tensor):
        return NO_TENSORS
    if isinstance(good, str):
        return NO_NUMBERS[2:]
    return (*NO_NUMBERS, 1.5) if isinstance(good, int) else NO_NUMBERS


def takes(fn, args):
    """Whether it runs: where a vector may stand, so may None."""
    with suppress(Exception):
        fn(*args)
        return True
    return False


def test_every_op_is_here():
    assert {*PYTORCH, *OURS} == {name for name, op in vars(ops).items() if callable(op) and not name.startswith("_")}


@pytest.mark.parametrize("name", PYTORCH)
def test_errors_are_pytorch_s(backend, name):
    theirs, good = PYTORCH[name]
    for i, value in enumerate(good):
        for bad in wrong(value):
            args = *good[:i], bad, *good[i + 1 :]
            if not isinstance(value, bool) and not takes(theirs, args):
                assert error_of(getattr(ops, name), *args) == error_of(theirs, *args), (i, bad)


@pytest.mark.parametrize("name", OURS)
def test_errors_name_op_and_argument(backend, name):
    good = OURS[name]
    for argument, value in good.items():
        for bad in wrong(value):
            error, text = error_of(getattr(ops, name), **{**good, argument: bad})
            assert error is TypeError and text.startswith((f"{name}(): argument '{argument}' must be", "conv2d()")), bad


@pytest.mark.parametrize(
    ("name", "argument", "bad", "text"),
    [
        ("precision_gate_conv2d", "scale", "1", "Tensor | float | None, not str"),
        ("precision_gate_conv2d", "weight_bits", "8", "int, not str"),
        ("soft_nms", "max_output", 2.0, "int | None, not float"),
    ],
)
def test_options(backend, name, argument, bad, text):
    expected = f"{name}(): argument '{argument}' must be {text}"
    assert error_of(getattr(ops, name), **OURS[name], **{argument: bad}) == (TypeError, expected)

"""Random and degenerate sets of boxes, and what else the tests of nms and soft_nms share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.testing
from check_op import export_to_onnx, flat
from torch import Tensor

KINDS = ("random", "pixels", "identical", "zero area", "negative sizes", "NaN", "equal scores", "hopeless", "huge")


def box_set(kind: str, n: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """n boxes that overlap, and their scores."""
    make = torch.Generator().manual_seed(seed)
    center, size = torch.rand(n, 2, generator=make) * 60, torch.rand(n, 2, generator=make) * 30
    boxes, scores = torch.cat([center - size / 2, center + size / 2], 1), torch.rand(n, generator=make)
    some = torch.rand(n, generator=make) < 0.3
    if kind == "pixels":
        boxes, scores = boxes.round(), (scores * 8).round() / 8
    elif kind == "identical":
        boxes[some] = torch.tensor([3.0, 4.0, 20.0, 25.0])
    elif kind == "zero area":
        boxes[some, 2:] = boxes[some, :2]
    elif kind == "negative sizes":
        boxes[some] = boxes[some].flip(1)
    elif kind == "NaN":
        scores[some] = math.nan
        boxes[torch.rand(n, generator=make) < 0.1, int(seed) % 4] = math.nan
    elif kind == "equal scores":
        scores[some] = 0.5
    elif kind == "hopeless":
        scores *= 1e-4
    elif kind == "huge":
        boxes[some] *= 1e20
    return boxes.to(dtype), scores.to(dtype)


def some_ids(n: int, seed: int) -> Tensor:
    """Categories in no order, far from each other."""
    names = torch.tensor([-(2**62), -1, 0, 7, 2**40])
    return names[torch.randint(5, (n,), generator=torch.Generator().manual_seed(seed))]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, and NaN in the same places."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())


def check_traced(fn: Callable[..., Any], module: torch.nn.Module) -> None:
    """torch.compile, with one graph for any number of boxes, and torch.export; the module computes what fn does."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(fn, backend=counter, fullgraph=True, dynamic=True)
        for n in (6, 7, 9):
            boxes = box_set("random", n, n)
            assert all(map(same_bits, flat(compiled(*boxes)), flat(fn(*boxes))))
    assert counter.frame_count <= 2
    exported = torch.export.export(module, boxes, strict=False).module()
    assert all(map(same_bits, flat(exported(*boxes)), flat(fn(*boxes))))


def check_onnx(module: torch.nn.Module, batched: bool, counts: Sequence[int], tmp_path: Path) -> list[Any]:
    """Exported for any number of boxes it is standard ONNX, and ONNX Runtime gives the same; returns the nodes."""

    def arguments(n: int) -> tuple[Tensor, ...]:
        return (*box_set("random", n, n), *([some_ids(n, 1)] if batched else []))

    first = arguments(counts[0])
    nodes, onnx = export_to_onnx(module, first, tuple({0: torch.export.Dim("n")} for _ in first), tmp_path)
    for n in counts:
        for a, b in zip(onnx(*arguments(n)), flat(module(*arguments(n))), strict=True):
            torch.testing.assert_close(a, b)
    return nodes

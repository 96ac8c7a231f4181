"""What the tests of convolutions share: bad arguments, random geometries, an empty batch, autocast, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from edges import allocated
from torch import Tensor

from fastnets.ops._convolution import output_size

X = torch.ones(1, 4, 5, 5)
BAD_GROUPS = (0, -2, 3, 4)  # for a weight that wants 2


def whole(*size: int) -> Tensor:
    """Small whole numbers, of which float32 takes sums of products exactly."""
    return torch.randint(-2, 3, size).float()


def bad_arguments(w: Tensor) -> dict[str, tuple[Any, ...]]:
    """By name, arguments that F.conv2d refuses, up to dilation; w (o, i, 3, 3) fits X."""
    o, i = w.shape[:2]
    return {
        "two dimensions": (X[0, 0], w),
        "five dimensions": (X[None], w),
        "no channels": (X[:, :0], w),
        "weight of other channels": (X, torch.ones(o, i + 1, 3, 3)),
        "outputs not a multiple of groups": (X, torch.ones(o + 1, i, 3, 3)),
        "weight of three dimensions": (X, w[0]),
        "empty kernel": (X, torch.ones(o, i, 0, 3)),
        "kernel too large": (X, torch.ones(o, i, 9, 9)),
        "other type": (X, w.double()),
        "bias too long": (X, w, torch.ones(o + 1)),
        "bias of other type": (X, w, torch.ones(o).double()),
        "stride 0": (X, w, None, 0),
        "three strides": (X, w, None, (1, 1, 1)),
        "negative padding": (X, w, None, 1, -1),
        "unknown padding": (X, w, None, 1, "equal"),
        "same with stride": (X, w, None, 2, "same"),
        "dilation 0": (X, w, None, 1, 0, 0),
    }


def fits(x: Tensor, w: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether the kernel is anywhere inside the padded input."""
    return min(output_size(x, w, kwargs["stride"], kwargs["padding"], kwargs["dilation"])) > 0


def check_empty_batch(fn: Callable[..., Tensor], i: int, layout: torch.memory_format) -> None:
    """Of fn(x, w, a number for each output channel), of stride 2; w (8, i, 3, 3)."""
    x = torch.zeros(0, 4, 5, 6).contiguous(memory_format=layout).requires_grad_()
    w, vector = torch.randn(8, i, 3, 3, requires_grad=True), torch.randn(8, requires_grad=True)
    y = fn(x, w, vector)
    assert y.shape == (0, 8, 2, 2)
    y.sum().backward()
    assert x.grad.shape == x.shape and not w.grad.any() and not vector.grad.any()


def check_autocast(fn: Callable[..., Tensor], i: int, dtype: torch.dtype) -> None:
    """Of fn(x, w, a number for each output channel); w (4, i, 3, 3)."""
    x, w, vector = torch.randn(1, 4, 5, 5, requires_grad=True), torch.randn(4, i, 3, 3), torch.randn(4)
    with torch.autocast("cpu", dtype=dtype):
        y = fn(x, w, vector)
        assert y.dtype == F.conv2d(x, w, vector, groups=4 // i).dtype == dtype
        assert fn(x.double(), w.double(), vector.double()).dtype == torch.float64
    assert torch.equal(y, fn(x.to(dtype), w.to(dtype), vector.to(dtype)))
    y.sum().backward()
    assert x.grad.dtype == torch.float32


def check_memory(fn: Callable[..., Tensor], i: int, layout: torch.memory_format, beside: int) -> None:
    """fn(x, w, bias) allocates its result, and backward the gradients and less than ``beside`` bytes."""
    x = torch.randn(8, 128, 56, 56).contiguous(memory_format=layout).requires_grad_()
    w, bias = torch.randn(128, i, 3, 3, requires_grad=True), torch.randn(128, requires_grad=True)
    y = fn(x, w, bias)
    with torch.no_grad():
        assert allocated(lambda: fn(x, w, bias)) == y.nbytes
    dy, gradients = torch.randn_like(y), x.nbytes + w.nbytes + bias.nbytes
    backward = allocated(lambda: torch.autograd.grad(y, (x, w, bias), dy, retain_graph=True))
    assert gradients <= backward < gradients + beside

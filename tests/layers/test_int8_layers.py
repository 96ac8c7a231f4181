"""Layers with levels, where the kernels of int8 do not run, and where what they made must be made again."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F

import fastnets
from fastnets.layers import DepthwiseConv2d, PackedConv2d, PackedInvertedResidual, PackedLinear, PooledLinear
from fastnets.layers._int8 import numbers
from fastnets.ops._int8 import Levels

LAST = torch.channels_last
INPUT, HIDDEN, RESIDUAL, RESULTS = Levels(0.02, 128), Levels(0.03, 0), Levels(0.04, 60), Levels(0.05, 100)


def conv(size=3):
    torch.manual_seed(0)
    layer = PackedConv2d(16, 24, size, padding=size // 2, activation="relu").eval().requires_grad_(False)
    layer.levels, layer.residual_levels, layer.result_levels = INPUT, RESIDUAL, RESULTS
    return layer


def block():
    torch.manual_seed(0)
    expand, depthwise = PackedConv2d(16, 48, 1, activation="relu"), DepthwiseConv2d(48, 3, padding=1, activation="relu")
    layer = PackedInvertedResidual(expand, depthwise, PackedConv2d(48, 24, 1, activation="relu")).eval()
    layer.expand.levels, layer.project.levels = INPUT, HIDDEN
    layer.project.residual_levels, layer.project.result_levels = RESIDUAL, RESULTS
    return layer.requires_grad_(False)


def images(seed=0):
    """An input and a residual, in bytes."""
    make = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 256, (2, c, 9, 8), generator=make, dtype=torch.uint8).contiguous(memory_format=LAST)
        for c in (16, 24)
    )


def share(y, exact):
    return ((y - exact).norm() / exact.norm()).item()


LAYERS = pytest.mark.parametrize("make", (conv, lambda: conv(1), block), ids=("direct", "pointwise", "block"))


def check_numbers(layer, x, residual, exact):
    y = layer(x, residual)
    assert y.dtype == exact.dtype and share(y, exact) < 1e-6


@LAYERS
def test_elsewhere_bytes_are_what_they_stand_for(cpu_kernels, make):
    layer, (x, residual) = make(), images()
    plain = make()
    for m in plain.modules():
        if isinstance(m, PackedConv2d):
            m.levels = m.residual_levels = m.result_levels = None
    exact = plain(numbers(x, INPUT), numbers(residual, RESIDUAL))
    stored = layer(x, residual)
    assert stored.dtype == torch.uint8 and 0.001 < share(numbers(stored, RESULTS).clamp(max=exact.max()), exact) < 0.1
    if make is not block:
        check_numbers(layer, x.contiguous(), residual, exact)
    with fastnets.use_backend("reference"):
        check_numbers(layer, x, residual, exact)
    with torch.enable_grad():
        layer.requires_grad_(True)
        check_numbers(layer, x, residual, exact)
        assert layer(x, residual).requires_grad
    layer.requires_grad_(False)
    program = torch.export.export(layer, (x, residual))
    check_numbers(program.module(), x, residual, exact)


@LAYERS
def test_a_residual_of_another_type_is_added_as_a_number(cpu_kernels, make):
    layer, (x, residual) = make(), images()
    stored = numbers(layer(x, residual), RESULTS)
    y = layer(x, numbers(residual, RESIDUAL))
    assert y.dtype == torch.float32 and share(stored, y) < 0.1


@LAYERS
def test_what_was_made_of_weights_is_made_anew(cpu_kernels, make):
    layer, (x, residual) = make(), images()
    before = layer(x, residual)
    last = layer.project if isinstance(layer, PackedInvertedResidual) else layer
    last.weight.neg_()
    after = layer(x, residual)
    assert not torch.equal(before, after)
    last.weight.neg_()
    assert torch.equal(layer(x, residual), before)
    last.result_levels = Levels(0.1, 0)
    assert not torch.equal(layer(x, residual), before)


@LAYERS
def test_copies_and_files_keep_levels(cpu_kernels, make):
    layer, (x, residual) = make(), images()
    y, file = layer(x, residual), io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(other(x, residual), y)
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}


@LAYERS
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64), ids=str)
def test_other_types_are_not_multiplied_in_int8(cpu_kernels, make, dtype):
    layer, plain = make().to(dtype), make()
    for m in plain.modules():
        if isinstance(m, PackedConv2d):
            m.levels = None
    x, residual = (t.to(dtype) for t in (numbers(t, of) for t, of in zip(images(), (INPUT, RESIDUAL), strict=True)))
    y = layer(x, residual.clone())
    assert y.dtype == dtype and share(y.float(), plain(x.float(), residual.float())) < 2e-2


@LAYERS
def test_an_empty_batch(cpu_kernels, make):
    layer, (x, residual) = make(), images()
    assert layer(x[:0], residual[:0]).shape == (0, 24, 9, 8)


@pytest.mark.parametrize("features", (16, 37, 300))
@pytest.mark.parametrize("rows", (1, 5, 40))
def test_linear_layers(walled_cpu_kernels, features, rows):
    """Whole numbers, of which all sums are exact."""
    make = torch.Generator().manual_seed(features)
    x = torch.randint(-100, 156, (rows, features), generator=make).float()
    for kind in (PackedLinear, PooledLinear):
        layer = kind(features, 33).eval().requires_grad_(False)
        layer.weight.copy_(torch.randint(-127, 128, layer.weight.shape, generator=make))
        layer.weight[:, 0] = 127
        layer.bias.copy_(torch.randint(-9, 10, (33,), generator=make))
        layer.levels = Levels(1.0, 100)
        given = x
        if kind is PooledLinear:  # pairs of pixels whose mean is x
            given = torch.stack([x - 3, x + 3], 2)[..., None].contiguous(memory_format=LAST)
        fastnets.backend_report(reset=True)
        y = layer(given)
        assert [entry["calls"] for entry in fastnets.backend_report(reset=True).values()] == [{"cpu": 1}]
        assert torch.equal(y, F.linear(x, layer.weight, layer.bias))

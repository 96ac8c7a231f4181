"""The kernel of squeeze and excitation, which PackedSqueezeExcitation calls, against its formula in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from edges import check_at_once, check_refuses, check_thread_counts

import fastnets
from fastnets.layers import PackedConv2d, PackedSqueezeExcitation

LAST = torch.channels_last
types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def layer(c, few, hard=False, activation=None):
    torch.manual_seed(0)
    excite = PackedConv2d(few, c, 1, activation=None if hard else "sigmoid")
    squeeze = PackedConv2d(c, few, 1, activation="relu")
    return PackedSqueezeExcitation(squeeze, excite, hard, activation).eval().requires_grad_(False)


def image(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=LAST)


def check(gate, x, residual):
    """As exact as the sums and the roundings of the type allow."""
    fastnets.backend_report(reset=True)
    got = gate(x, residual)
    assert fastnets.backend_report(reset=True)["squeeze_excitation"]["calls"] == {"cpu": 1}
    exact = copy.deepcopy(gate).double()(x.double(), None if residual is None else residual.double())
    assert got.is_contiguous(memory_format=LAST) and got.dtype == x.dtype
    if x.dtype == torch.float32:
        assert (got - exact).abs().max() < 1e-6 * exact.abs().max()
    else:  # means, what is between, scales and results are each rounded to 8 bits
        size = x.double().abs() + (0 if residual is None else residual.double().abs())
        assert ((got - exact).abs() <= 2**-6 * size).all()


# Channels around the lanes and the panels, the few in between too; one pixel and more.
@types
@pytest.mark.parametrize("with_residual", (False, True))
@pytest.mark.parametrize("hard", (False, True))
@pytest.mark.parametrize("few", (1, 6, 33))
@pytest.mark.parametrize("c", (1, 15, 16, 17, 33, 70))
@pytest.mark.parametrize("size", ((1, 1, 1), (3, 5, 7)), ids=str)
def test_edges(walled_cpu_kernels, size, c, few, hard, with_residual, dtype):
    n, *hw = size
    gate = layer(c, few, hard, "relu" if with_residual else None).to(dtype)
    x = image(n, c, *hw).to(dtype)
    check(gate, x, image(n, c, *hw).flip(1).to(dtype).contiguous(memory_format=LAST) if with_residual else None)


def test_each_image_has_its_own_scales(cpu_kernels):
    gate, x = layer(40, 5), image(4, 40, 9, 9)
    assert torch.equal(gate(x), torch.cat([gate(one[None].contiguous(memory_format=LAST)) for one in x]))


def test_the_residual_stays_as_it_is(cpu_kernels):
    gate, x, residual = layer(40, 5), image(2, 40, 9, 9), image(2, 40, 9, 9)
    before = residual.clone()
    gate(x, residual)
    assert torch.equal(residual, before)


def test_nan_fills_its_image_alone(cpu_kernels):
    gate, x = layer(20, 4), image(3, 20, 4, 4)
    x[1, 2, 3, 3] = float("nan")
    assert gate(x).isnan().flatten(1).all(1).tolist() == [False, True, False] and not gate(x)[::2].isnan().any()


def test_threads_do_not_change_a_bit(cpu_kernels):
    gate, x = layer(48, 6), image(3, 48, 30, 30)
    check_thread_counts(lambda: [gate(x)])
    check_at_once([lambda: gate(x)])


WRONG = {
    "layout": lambda x, *_: (0, x.contiguous()),
    "type": lambda x, *_: (0, x.double()),
    "channels": lambda x, *_: (0, x[:, :31].contiguous(memory_format=LAST)),
    "none": lambda *_: (1, []),
    "three": lambda x, squeeze, *_: (1, squeeze[:3]),
    "scales": lambda x, squeeze, *_: (1, [*squeeze[:3], squeeze[3][1:]]),
    "residual": lambda x, *_: (4, x[..., :4].contiguous(memory_format=LAST)),
}


@types
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_arguments_raise(cpu_kernels, wrong, dtype):
    gate, x = layer(32, 6).to(dtype), image(2, 32, 5, 5).to(dtype)
    good = x, *gate.packed(), x, "relu"
    check_refuses(torch.ops.fastnets_cpu.squeeze_excitation.default, good, *wrong(*good))

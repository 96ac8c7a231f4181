"""PackedLinear: its kernel, and where that does not run."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import fastnets
from fastnets.layers import PackedLinear

ON_KERNEL = {"pointwise_conv2d": {"cpu": 1}}


def layer(c=40, o=37, bias=True):
    torch.manual_seed(0)
    return PackedLinear(c, o, bias).eval().requires_grad_(False)


def numbers(*size):
    return torch.randint(-3, 4, size, generator=torch.Generator().manual_seed(1)).float()


def calls(linear, x):
    fastnets.backend_report(reset=True)
    y = linear(x)
    report = fastnets.backend_report(reset=True)
    return y, {name: entry["calls"] for name, entry in report.items() if entry["calls"]}


# Features around lanes and panels, in pairs and not; rows around a tile.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize(("c", "o"), ((1, 1), (7, 33), (40, 37), (64, 16), (5, 48)))
@pytest.mark.parametrize("size", ((), (1,), (3,), (15,), (2, 3), (2, 5, 4)), ids=str)
def test_whole_numbers_are_exact(cpu_kernels, size, c, o, bias, dtype):
    linear = layer(c, o, bias)
    for p in linear.parameters():
        p.copy_(numbers(*p.shape))
    x = numbers(*size, c)
    exact = F.linear(x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
    y, report = calls(linear.to(dtype), x.to(dtype))
    assert y.shape == exact.shape and torch.equal(y, exact.to(dtype)) and report == ON_KERNEL


def rows(count, c, o):
    """What runs for so many rows of so many features."""
    linear = torch.nn.utils.skip_init(PackedLinear, c, o).eval().requires_grad_(False)
    linear.weight.zero_()
    return calls(linear, torch.zeros(count, c))[1]


def test_many_rows_of_many_products_are_pytorchs(cpu_kernels):
    assert rows(16, 4096, 4096) == rows(17, 2048, 2048) == ON_KERNEL
    assert rows(17, 4096, 4096) == {}


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (numbers(3, 40).double(), torch.float64),
        (numbers(3, 40).half(), torch.float16),
        (numbers(40, 3).t(), torch.float32),
        (numbers(0, 40), torch.float32),
    ],
    ids=["float64", "float16", "transposed", "no rows"],
)
def test_the_rest_is_pytorchs(x, dtype):
    linear = layer().to(dtype)
    y, report = calls(linear, x)
    assert torch.equal(y, F.linear(x, linear.weight, linear.bias)) and report == {}


@pytest.mark.parametrize("name", ("weight", "bias"))
def test_gradients_are_pytorchs(name):
    linear, x = layer(), numbers(3, 40).requires_grad_()
    getattr(linear, name).requires_grad_()
    linear(x).sum().backward()
    assert getattr(linear, name).grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("size", ((), (39,), (3, 41)), ids=str)
def test_wrong_features_raise_as_pytorch_does(size):
    with pytest.raises(RuntimeError) as theirs:
        F.linear(torch.zeros(size), layer().weight, layer().bias)
    with pytest.raises(RuntimeError) as ours:
        layer()(torch.zeros(size))
    assert str(ours.value) == str(theirs.value)


def test_what_is_packed_follows_the_weights_and_is_in_no_copy():
    linear, x = layer(), numbers(3, 40)
    linear(x)
    for p in linear.parameters():
        p.mul_(0.5)
        torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias))
    assert sorted(linear.state_dict()) == ["bias", "weight"]
    for other in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        assert other._packed is None and torch.equal(other(x), linear(x))


def test_it_compiles_and_exports():
    linear, x = layer(), numbers(2, 3, 40)
    torch.testing.assert_close(torch.compile(linear, fullgraph=True, backend="aot_eager")(x), linear(x))
    torch.testing.assert_close(torch.export.export(linear, (x,)).module()(x), linear(x))

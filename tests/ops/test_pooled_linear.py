"""The kernel of global average pooling and a linear layer, which PooledLinear calls, and the layer without it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from edges import check_refuses, check_thread_counts

from fastnets.layers import PooledLinear

LAST = torch.channels_last


def image(*size):
    """Of whole numbers, so that sums are exact; with a power of two of pixels means are too."""
    make = torch.Generator().manual_seed(1)
    return torch.randint(-4, 5, size, generator=make).float().contiguous(memory_format=LAST)


def layer(c, o, bias=True):
    torch.manual_seed(0)
    linear = PooledLinear(c, o, bias).eval().requires_grad_(False)
    for p in linear.parameters():
        p.copy_(torch.randint(-4, 5, p.shape))
    return linear


# Channels and results around the lanes and panels, images around the rows of a tile.
@pytest.mark.parametrize("n", (1, 3, 15))
@pytest.mark.parametrize("c", (1, 15, 17, 33, 100))
@pytest.mark.parametrize("o", (1, 16, 40))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_cpu_edges(walled_cpu_kernels, dtype, o, c, n):
    linear, x = layer(c, o, bias=n != 3).to(dtype), image(n, c, 4, 2).to(dtype)
    assert linear._has_kernel(x)
    exact = F.linear(x.double().mean((2, 3)), linear.weight.double(), linear.bias.double() if n != 3 else None)
    assert torch.equal(linear(x), exact.to(dtype))


def test_cpu_any_number_of_pixels(walled_cpu_kernels):
    linear = layer(70, 30)
    for size in ((1, 1), (7, 7), (31, 29)):
        x = torch.randn(2, 70, *size).contiguous(memory_format=LAST)
        exact = F.linear(x.double().mean((2, 3)), linear.weight.double(), linear.bias.double())
        torch.testing.assert_close(linear(x).double(), exact, rtol=1e-5, atol=1e-5)


def test_threads_do_not_change_a_bit(cpu_kernels):
    linear, x = PooledLinear(300, 200).eval().requires_grad_(False), torch.randn(1, 300, 9, 9)
    x = x.contiguous(memory_format=LAST)
    check_thread_counts(lambda: [linear(x)])


@pytest.mark.parametrize("wrong", ("layout", "type", "panels", "bias", "pixels"))
def test_cpu_wrong_arguments_raise(cpu_kernels, wrong):
    x, panels = image(2, 8, 3, 3), torch.ones(1, 8, 32)
    good = [x, panels, 32, torch.ones(32), []]
    bad = {
        "layout": (0, x.contiguous()),
        "type": (0, x.double()),
        "panels": (1, panels[:, :7].contiguous()),
        "bias": (3, torch.ones(31)),
        "pixels": (0, image(2, 8, 0, 3)),
    }
    check_refuses(torch.ops.fastnets_cpu.pooled_linear.default, good, *bad[wrong])


def test_what_has_no_kernel_takes_two_steps():
    linear, x = layer(8, 5), image(2, 8, 4, 4)
    exact = linear(x)
    for other in (x.contiguous(), x.double(), x.half()):
        same_type = copy.deepcopy(linear).to(other.dtype)
        assert not same_type._has_kernel(other)
        torch.testing.assert_close(same_type(other), exact.to(other.dtype))
    with_gradient = x.clone().requires_grad_()
    linear(with_gradient).sum().backward()
    assert with_gradient.grad.abs().sum() > 0


def test_what_is_packed_follows_the_weights_and_is_in_no_copy():
    linear, x = layer(8, 5), image(2, 8, 4, 4)
    y = linear(x)
    for other in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        assert other._packed is None and torch.equal(other(x), y)
    linear.weight.mul_(2)
    torch.testing.assert_close(linear(x), F.linear(x.mean((2, 3)), linear.weight, linear.bias))


def test_other_channels_raise():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        layer(8, 5)(image(2, 9, 4, 4))

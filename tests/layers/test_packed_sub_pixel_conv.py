"""PackedSubPixelConv2d on its kernel and without it, against the convolution and the shuffle in float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from convolutions import whole
from edges import check_thread_counts
from torch import nn

import fastnets
from fastnets.layers import PackedConv2d, PackedSubPixelConv2d, PixelShuffle
from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops._packed import pack_winograd, shuffle_results

LAST = torch.channels_last


def exact(conv, x, r):
    y = F.conv2d(x.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), 1, conv.padding)
    return F.pixel_shuffle(ACTIVATIONS[conv.activation](y), r)


def layer(c, o, r, bias=True, **kwargs):
    """Weights are multiples of 4, so that tiles of 2 are exact."""
    torch.manual_seed(0)
    conv = PackedConv2d(c, o * r * r, **{"kernel_size": 3, "padding": 1, "bias": bias, **kwargs})
    with torch.no_grad():
        conv.weight.copy_(4 * whole(*conv.weight.shape))
        if bias:
            conv.bias.copy_(whole(o * r * r))
    return conv, PackedSubPixelConv2d(conv, r).eval().requires_grad_(False)


# Channels of the fine image and factors around the lanes and panels; one image, several, borders of tiles.
@pytest.mark.parametrize(
    ("o", "r"), [(1, 2), (1, 3), (3, 2), (3, 4), (5, 3), (8, 2), (16, 2), (17, 2), (64, 2), (2, 5)]
)
@pytest.mark.parametrize("size", [(1, 7, 7), (2, 4, 9), (1, 28, 29)])
@pytest.mark.parametrize("side", (2, 4))
def test_cpu_pixels(walled_cpu_kernels, side, size, o, r):
    n, *hw = size
    conv, sub = layer(20, o, r, activation="relu")
    x = whole(n, 20, *hw).contiguous(memory_format=LAST)
    got, expected = sub._winograd(x, None, side), exact(conv, x, r)
    assert got.shape == expected.shape and got.is_contiguous(memory_format=LAST)
    if side == 2:
        assert torch.equal(got.double(), expected)
    else:
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("o", "r"), [(1, 3), (3, 4), (17, 2)])
@pytest.mark.parametrize("first", (0, 3, 16))
def test_cpu_pixels_in_slices(walled_cpu_kernels, o, r, first):
    conv, _ = layer(20, o, r)
    x = whole(2, 20, 5, 6).contiguous(memory_format=LAST)
    given = x, pack_winograd(shuffle_results(conv.weight, r), 2), o * r * r, [1, 1], shuffle_results(conv.bias, r), None
    into = torch.full((2, o + 24, 5 * r, 6 * r), torch.nan).contiguous(memory_format=LAST)
    torch.ops.fastnets_cpu.winograd_conv2d(*given, None, r, into=into, channel=first)
    assert torch.equal(into[:, first : first + o].double(), exact(conv, x, r))
    assert into[:, :first].isnan().all() and into[:, first + o :].isnan().all()


@pytest.mark.parametrize("factor", (0, -1, 3, 1 << 20, -(1 << 31)))
def test_cpu_wrong_factors_raise(cpu_kernels, factor):
    x = whole(1, 20, 5, 6).contiguous(memory_format=LAST)
    panels = pack_winograd(whole(8, 20, 3, 3), 2)
    op = torch.ops.fastnets_cpu.winograd_conv2d
    with pytest.raises(RuntimeError, match="expected a multiple of"):
        op(x, panels, 8, [1, 1], None, None, None, factor)
    residual = whole(1, 8, 5, 6).contiguous(memory_format=LAST)
    with pytest.raises(RuntimeError, match="expected no residual"):
        op(x, panels, 8, [1, 1], None, residual, None, 2)


@pytest.mark.parametrize("wrong", (0, -1, 3))
def test_a_factor_that_does_not_fit_raises(wrong):
    with pytest.raises(ValueError, match=f"square divides 8 channels, but got {wrong}"):
        PackedSubPixelConv2d(PackedConv2d(16, 8, 3), wrong)


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
@pytest.mark.parametrize("layout", (torch.contiguous_format, LAST), ids=("nchw", "nhwc"))
@pytest.mark.parametrize(
    "geometry", ({}, {"kernel_size": 5, "padding": 2}, {"kernel_size": 1, "padding": 0}, {"groups": 2}), ids=str
)
def test_values(geometry, layout, dtype, bias):
    conv, sub = layer(16, 3, 2, bias, activation="relu6", **geometry)
    x = torch.randn(2, 16, 14, 15).to(dtype).contiguous(memory_format=layout)
    conv, sub = conv.to(dtype), sub.to(dtype)
    y = F.conv2d(
        x.double(), conv.weight.double(), None if not bias else conv.bias.double(), 1, conv.padding, 1, conv.groups
    )
    expected = F.pixel_shuffle(F.relu6(y), 2)
    got = sub(x)
    assert got.dtype == dtype and got.is_contiguous(memory_format=layout)
    atol = {torch.float32: 1e-3, torch.bfloat16: 6 * 2**-8, torch.float64: 1e-10}[dtype]
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=atol)


def test_the_kernel_is_run(cpu_kernels):
    _, sub = layer(16, 3, 2)
    fastnets.backend_report(reset=True)
    sub(torch.randn(1, 16, 14, 14).contiguous(memory_format=LAST))
    assert {name: row["calls"] for name, row in fastnets.backend_report(reset=True).items()} == {
        "winograd_conv2d": {"cpu": 1}
    }


def test_threads_do_not_change_a_bit(cpu_kernels):
    _, sub = layer(24, 3, 3)
    x = torch.randn(1, 24, 30, 31).contiguous(memory_format=LAST)
    check_thread_counts(lambda: [sub(x)])


def test_gradients_copies_and_changes():
    conv, sub = layer(16, 3, 2)
    x = torch.randn(1, 16, 14, 14).contiguous(memory_format=LAST)
    want = F.pixel_shuffle(F.conv2d(x, conv.weight, conv.bias, 1, 1), 2)
    for one in (sub, copy.deepcopy(sub), pickle.loads(pickle.dumps(sub))):
        torch.testing.assert_close(one(x), want, rtol=0, atol=1e-3)
    sub.weight.mul_(2)
    torch.testing.assert_close(sub(x), F.pixel_shuffle(F.conv2d(x, sub.weight, sub.bias, 1, 1), 2), rtol=0, atol=1e-3)
    sub.requires_grad_()
    sub(x).sum().backward()
    torch.testing.assert_close(sub.bias.grad, torch.full((12,), 14.0 * 14))


class Net(nn.Module):
    def __init__(self, r=2, how="module", between=None, after=None):
        super().__init__()
        self.r, self.how, self.between, self.after = r, how, between, after
        self.first, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3 * r * r, 3, padding=1)
        self.shuffle = (PixelShuffle if how == "ours" else nn.PixelShuffle)(r)

    def forward(self, x):
        y = self.conv(self.first(x).relu())
        y = y if self.between is None else self.between(y)
        if self.how == "function":
            y = F.pixel_shuffle(y, self.r)
        else:
            y = F.pixel_shuffle(y, upscale_factor=self.r) if self.how == "named" else self.shuffle(y)
        return y if self.after is None else self.after(y)


def layers(fast):
    return [
        type(m).__name__ for m in fast.modules() if type(m) in (PackedSubPixelConv2d, nn.PixelShuffle, PixelShuffle)
    ]


@pytest.mark.parametrize("how", ("module", "ours", "function", "named"))
@pytest.mark.parametrize(("between", "after"), [(None, None), (nn.ReLU(), None), (None, nn.ReLU()), (None, nn.SiLU())])
def test_accelerate_fuses(how, between, after):
    torch.manual_seed(0)
    model, x = Net(3, how, between, after).eval(), torch.randn(1, 3, 14, 17)
    fast = fastnets.accelerate(model, x)
    assert layers(fast) == ["PackedSubPixelConv2d"]
    assert not any(type(m) in (nn.ReLU, nn.SiLU) for m in fast.modules())
    for size in ((1, 3, 14, 17), (1, 3, 14, 17), (1, 3, 14, 17), (2, 3, 30, 9)):  # the third runs the plan
        x = torch.randn(size)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ("both activations", "another user", "hooked", "linear after a sum"))
def test_accelerate_keeps_what_it_must(kind):
    torch.manual_seed(0)
    model = Net(2, "module", nn.ReLU(), nn.SiLU()) if kind == "both activations" else Net(2)
    if kind == "another user":
        model = Users(model)
    if kind == "hooked":
        model.shuffle.register_forward_hook(lambda module, args, y: y + 1)
    if kind == "linear after a sum":
        model = Summed(model)
    model, x = model.eval(), torch.randn(1, 3, 14, 16)
    fast = fastnets.accelerate(model, x)
    fused = kind == "both activations"
    assert (layers(fast) == ["PackedSubPixelConv2d"]) == fused
    for _ in range(3):
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


class Users(nn.Module):
    """The convolution's results are used once more."""

    def __init__(self, net):
        super().__init__()
        self.first, self.conv, self.shuffle = net.first, net.conv, net.shuffle

    def forward(self, x):
        y = self.conv(self.first(x))
        return self.shuffle(y), y


class Summed(nn.Module):
    """What is shuffled is a sum."""

    def __init__(self, net):
        super().__init__()
        self.first, self.conv, self.shuffle, self.skip = net.first, net.conv, net.shuffle, nn.Conv2d(3, 12, 1)

    def forward(self, x):
        return self.shuffle(self.conv(self.first(x)) + self.skip(x))

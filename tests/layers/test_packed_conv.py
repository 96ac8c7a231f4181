"""PackedConv2d on oneDNN's kernels and without them: the convolution in float64, the residual and the activation."""

from __future__ import annotations

import copy
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from edges import threads

import fastnets
from fastnets.layers import (
    DepthwiseConv2d,
    PackedConv2d,
    PackedDenseBlock,
    PackedInvertedResidual,
    PackedPreactConv2d,
    PooledLinear,
    packed_conv,
)
from fastnets.ops._activation import ACTIVATIONS

GEOMETRIES = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": (3, 4), "padding": "same", "stride": 2},
    {"kernel_size": 3, "padding": (0, 1, 2, 0)},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "groups": 2},
]


def layer(**kwargs):
    torch.manual_seed(0)
    return PackedConv2d(8, 6, **kwargs).eval().requires_grad_(False)


def expected(conv, x, residual, sizes=False):
    """The result in float64; or the sums of the magnitudes of its terms."""
    exact = copy.deepcopy(conv).double()
    exact.activation = None
    if sizes:
        x, residual = x.abs(), None if residual is None else residual.abs()
        exact.weight.abs_(), exact.bias.abs_()
    y = exact(x.double())
    y = y if residual is None else y + residual.double()
    return y if sizes else ACTIVATIONS[conv.activation](y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_values(geometry, activation, layout, dtype, with_residual):
    conv = layer(**geometry, activation=activation).to(dtype)
    x = torch.randn(2, 8, 9, 11).to(dtype).contiguous(memory_format=layout)
    residual = torch.randn(conv(x).shape).to(dtype).contiguous(memory_format=layout) if with_residual else None
    exact, size = expected(conv, x, residual), expected(conv, x, residual, sizes=True)
    got = conv(x, None if residual is None else residual.clone(memory_format=torch.preserve_format))
    assert got.dtype == dtype and got.is_contiguous(memory_format=layout)
    # Where there are three steps the type rounds each of their results; sums are taken in float32.
    rounding = torch.finfo(dtype).eps * (1 if layout == torch.channels_last else 3) * size.clamp(max=8)
    assert ((got.double() - exact).abs() <= rounding + torch.finfo(torch.float32).eps * (2 * 128**0.5 + 6) * size).all()


def test_a_residual_of_another_shape_is_broadcast_and_left_alone():
    conv, x, residual = layer(kernel_size=1), torch.randn(2, 8, 5, 5), torch.randn(1, 6, 1, 1)
    before = residual.clone()
    torch.testing.assert_close(conv(x, residual), conv(x) + residual)
    assert torch.equal(residual, before)


def test_a_residual_with_a_gradient_is_left_alone():
    conv, x = layer(kernel_size=1), torch.randn(2, 8, 5, 5)
    residual = torch.randn(2, 6, 5, 5, requires_grad=True)
    before = residual.detach().clone()
    conv(x, residual).sum().backward()
    assert torch.equal(residual, before) and torch.equal(residual.grad, torch.ones_like(before))


def test_a_gradient_of_the_bias_alone_is_computed():
    conv = layer(kernel_size=1)
    conv.bias.requires_grad_()
    conv(torch.randn(1, 8, 5, 5).contiguous(memory_format=torch.channels_last)).sum().backward()
    assert torch.equal(conv.bias.grad, torch.full((6,), 25.0))


def test_it_packs_once_and_again_after_the_weights_changed():
    conv, x = layer(kernel_size=3), torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    conv(x)
    packed = conv._packed
    conv(x)
    assert packed is not None and conv._packed is packed
    conv.weight.mul_(2)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias))
    conv.train().weight.data.mul_(2)  # which PyTorch does not count
    torch.testing.assert_close(conv.eval()(x), F.conv2d(x, conv.weight, conv.bias))
    packed = conv._packed
    assert conv.eval()._packed is packed
    conv.load_state_dict(layer(kernel_size=3).state_dict())
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias))
    conv.weight = torch.nn.Parameter(torch.zeros_like(conv.weight), requires_grad=False)
    torch.testing.assert_close(conv(x), conv.bias.view(1, -1, 1, 1).expand(1, 6, 4, 4))


def preact(out=32):
    return PackedPreactConv2d(torch.nn.BatchNorm2d(32), PackedConv2d(32, out, 1))


def fused_steps(layer, x):
    optimizer = torch.optim.AdamW(layer.parameters(), 0.1, fused=True)
    for _ in range(2):
        with torch.enable_grad():
            layer(x).square().mean().backward()
        optimizer.step()


def statistics(layer, x):
    norms = [module for module in layer.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
    layer(x * 5 + 3)
    for norm in norms:
        norm.eval()


def write_data(layer, x):
    for parameter in layer.parameters():
        parameter.data.mul_(2)
    layer.train().eval()


@torch.no_grad()
@pytest.mark.parametrize("train", [fused_steps, statistics, write_data])
@pytest.mark.parametrize(
    "make",
    [
        lambda: PackedConv2d(32, 32, 3, padding=1),
        lambda: PooledLinear(32, 5),
        preact,
        lambda: PackedDenseBlock(
            [(preact(), PackedConv2d(32, 32, 3, padding=1))],
            PackedPreactConv2d(torch.nn.BatchNorm2d(64), PackedConv2d(64, 8, 1)),
        ),
        lambda: PackedInvertedResidual(
            PackedConv2d(32, 64, 1), DepthwiseConv2d(64, 3, padding=1), PackedConv2d(64, 8, 1)
        ),
    ],
    ids=["conv", "pooled linear", "preact", "dense block", "inverted residual"],
)
def test_what_training_changes_is_packed_anew(make, train):
    layer, x = make().eval(), torch.randn(2, 32, 9, 9).contiguous(memory_format=torch.channels_last)
    layer(x)
    train(layer, x)
    layer.eval()
    assert torch.equal(layer(x), copy.deepcopy(layer)(x))


@torch.inference_mode()
def test_weights_that_count_no_changes_are_not_kept_in_packs():
    conv, x = PackedConv2d(32, 32, 1).eval(), torch.randn(1, 32, 9, 9).contiguous(memory_format=torch.channels_last)
    conv(x)
    conv.weight.mul_(2)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias))


def test_new_weights_where_old_ones_lay_are_packed():
    conv = PackedConv2d(64, 64, 1, bias=False).eval().requires_grad_(False)
    x = torch.randn(1, 64, 4, 4).contiguous(memory_format=torch.channels_last)
    for _ in range(200):
        conv(x)
        for _ in range(2):  # the second may get the memory that the first gives back
            conv.weight.data = torch.randn_like(conv.weight)
        torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight), rtol=1e-4, atol=1e-4)


def test_packs_for_several_sizes_are_kept():
    conv = PackedConv2d(16, 16, 3, padding=1).eval().requires_grad_(False)
    small, large = (torch.randn(n, 16, 14, 14).contiguous(memory_format=torch.channels_last) for n in (1, 4))
    conv(small), conv(large)
    packs = dict(conv._packed[-1])
    conv(small), conv(large)
    assert packs.keys() == conv._packed[-1].keys() and all(conv._packed[-1][how] is pack for how, pack in packs.items())


@torch.inference_mode()
def test_weights_lie_as_onednn_wants_them_for_each_size_and_number_of_threads(monkeypatch):
    conv = PackedConv2d(1024, 256, 1, stride=2, bias=False).eval().requires_grad_(False)  # no kernel of ours takes it
    orders: set[bytes] = set()
    kept: set[int] = set()
    convolve = torch.ops.mkldnn._convolution_pointwise.default

    def check(input, weight, *rest):
        plain = conv.weight.to_mkldnn()
        fresh = torch._C._nn.mkldnn_reorder_conv2d_weight(plain, (0, 0), (2, 2), (1, 1), 1, input.shape)
        assert packed_conv._order(weight) == packed_conv._order(fresh)
        orders.add(packed_conv._order(weight)), kept.add(id(weight))
        return convolve(input, weight, *rest)

    monkeypatch.setattr(torch.ops.mkldnn._convolution_pointwise, "default", check)
    monkeypatch.setattr(packed_conv, "_SIZES", 6)
    for n, size, count in [*itertools.product((1, 4), (4, 7, 14), (1, 2, 3))] * 2:
        x = torch.ones(n, 1024, size, size).contiguous(memory_format=torch.channels_last)
        with threads(count):
            side = (size + 1) // 2
            torch.testing.assert_close(conv(x), conv.weight.sum((1, 2, 3)).view(1, -1, 1, 1).expand(n, 256, side, side))
    assert orders and len(orders) == len(kept)


@torch.no_grad()
def test_zeros_that_inputs_differ_in_are_those_of_each(cpu_kernels):
    """Of 8x8 a copy is padded to 9x9, which takes other weights than 9x9 between even zeros may."""
    conv = PackedConv2d(64, 64, 3, 2, "same").eval().requires_grad_(False)
    for size in (8, 9, 8, 9, 7):
        x = torch.randn(1, 64, size, size).contiguous(memory_format=torch.channels_last)
        before, after = (0, 1) if size % 2 == 0 else (1, 1)
        exact = F.conv2d(F.pad(x, (before, after) * 2).double(), conv.weight.double(), conv.bias.double(), 2)
        assert (conv(x) - exact).abs().max() < 1e-5
    assert len(conv._packed[2]["onednn"][0]) == 3


def test_packed_weights_are_in_no_state_and_no_copy():
    conv, x = layer(kernel_size=3), torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    y = conv(x)
    assert list(conv.state_dict()) == ["weight", "bias"]
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert other._packed is None
        assert torch.equal(other(x), y)


@torch.inference_mode()
def test_eight_threads_at_once():
    conv = layer(kernel_size=3, activation="relu")
    x = torch.randn(2, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    y = copy.deepcopy(conv)(x)
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(other, y) for other in pool.map(lambda _: conv(x), range(64)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("make", "op"),
    (
        (lambda: PackedConv2d(32, 8, 1), "pointwise_conv2d"),
        (lambda: PackedConv2d(3, 8, 3), "direct_conv2d"),
        (lambda: PackedPreactConv2d(torch.nn.BatchNorm2d(32), PackedConv2d(32, 8, 1)), "preact_conv2d"),
    ),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_both_types_run_on_our_kernels(cpu_kernels, make, op, dtype):
    conv = make().eval().requires_grad_(False).to(dtype)
    x = torch.randn(1, 3 if op == "direct_conv2d" else 32, 7, 7).to(dtype).contiguous(memory_format=torch.channels_last)
    fastnets.backend_report(reset=True)
    conv(x)
    assert fastnets.backend_report(reset=True)[op]["calls"] == {"cpu": 1}

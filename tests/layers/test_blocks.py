"""The blocks of networks, on what can be said of them alone; test_networks.py compares whole networks."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fastnets.layers import ConvNormActivation, DepthwiseSeparable, InvertedResidual
from fastnets.layers.blocks import init_weights, make_divisible


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(0.1, 8), (8, 8), (11.9, 16), (12, 16), (16.8, 16), (17.7, 16), (17.8, 24), (20, 24), (44.8, 48), (1280, 1280)],
)
def test_make_divisible(channels, expected):
    assert make_divisible(channels) == expected


@pytest.mark.parametrize("kernel_size", [1, 3, (1, 7), (5, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_conv_norm_activation_keeps_the_size_and_normalises(kernel_size, dilation):
    x = torch.randn(4, 8, 16, 15) + 3
    y = ConvNormActivation(8, 6, kernel_size, dilation=dilation, activation=torch.nn.Identity)(x)
    assert y.shape == (4, 6, 16, 15)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(6), rtol=1e-2, atol=0)


def test_conv_norm_activation_ends_with_the_activation():
    x = torch.tensor([-8.0, 8]).reshape(1, 1, 2, 1)
    for activation, least in ((None, 0), (torch.nn.Identity, -8), (partial(torch.nn.LeakyReLU, 0.1), -0.8)):
        block = ConvNormActivation(1, 1, 1, eps=0, **({"activation": activation} if activation else {})).eval()
        torch.nn.init.ones_(block.conv.weight)
        torch.testing.assert_close(block(x).flatten(), torch.tensor([least, 8], dtype=torch.float))


@pytest.mark.parametrize(
    ("block", "residual"),
    [
        (DepthwiseSeparable(8, 8), False),
        (DepthwiseSeparable(8, 8, last_activation=False), True),
        (DepthwiseSeparable(8, 8, stride=2, last_activation=False), False),
        (DepthwiseSeparable(8, 16, last_activation=False), False),
        (InvertedResidual(8, 8), True),
        (InvertedResidual(8, 8, stride=2), False),
        (InvertedResidual(8, 16), False),
    ],
)
def test_the_input_is_added_where_shapes_allow_and_no_activation_follows(block, residual):
    block.eval()
    last = block.bn3 if isinstance(block, InvertedResidual) else block.bn2
    torch.nn.init.zeros_(last.weight)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block(x), x) if residual else not block(x).any()


def test_new_convolutions_keep_the_variance_of_gradients():
    torch.manual_seed(0)
    block = InvertedResidual(64, 64, kernel_size=5).apply(init_weights)
    for conv, reached in ((block.conv_pw, 384), (block.conv_dw, 25), (block.conv_pwl, 64)):
        assert conv.weight.std().item() == pytest.approx((2 / reached) ** 0.5, rel=0.05)

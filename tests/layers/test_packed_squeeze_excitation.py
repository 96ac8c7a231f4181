"""PackedSqueezeExcitation, alone; within PackedInvertedResidual tests/ops has it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastnets
from fastnets.layers import PackedConv2d, PackedSqueezeExcitation


def convolutions(activation="sigmoid"):
    return PackedConv2d(12, 3, 1, activation="relu"), PackedConv2d(3, 12, 1, activation=activation)


def test_literal_values():
    squeeze, excite = convolutions()
    for layer, weight, bias in ((squeeze, 1 / 12, 1.0), (excite, 1.0, -4.0)):
        layer.weight.data.fill_(weight)
        layer.bias.data.fill_(bias)
    x = torch.arange(4.0).view(1, 1, 2, 2).expand(2, 12, 2, 2).contiguous()
    x[1] -= 3  # the mean is 1.5, of the other image -1.5, which relu(1 - 1.5) takes
    scale = torch.tensor([3 * 2.5 - 4, -4.0]).view(2, 1, 1, 1)
    layer = PackedSqueezeExcitation(squeeze, excite)
    torch.testing.assert_close(layer(x), x * scale.sigmoid())
    excite.activation = None
    torch.testing.assert_close(
        PackedSqueezeExcitation(squeeze, excite, hard=True)(x), x * ((scale + 3) / 6).clamp(0, 1)
    )


@pytest.mark.parametrize(
    ("layers", "hard"),
    [
        (convolutions("relu"), False),
        (convolutions(None), False),
        (convolutions("sigmoid"), True),
        (convolutions()[::-1][:1] * 2, False),
        ((convolutions()[0], PackedConv2d(3, 11, 1, activation="sigmoid")), False),
        ((convolutions()[0], PackedConv2d(3, 12, 3, padding=1, activation="sigmoid")), False),
    ],
    ids=["relu", "no gate", "two gates", "twice the same", "other channels", "3x3"],
)
def test_other_layers_are_refused(layers, hard):
    with pytest.raises(ValueError, match="expected a pointwise convolution and one of its results back"):
        PackedSqueezeExcitation(*layers, hard)


def image(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("x", "residual"),
    [
        (image(2, 12, 4, 5).double(), None),
        (image(2, 12, 4, 5).contiguous(), None),
        (image(0, 12, 4, 5), None),
        (image(2, 12, 4, 5), image(2, 12, 4, 5).contiguous()),
        (image(2, 12, 4, 5), image(2, 12, 1, 1)),
    ],
    ids=["float64", "contiguous", "no images", "residual of another layout", "broadcast"],
)
def test_the_rest_runs_in_turn(x, residual):
    layer = PackedSqueezeExcitation(*convolutions(), activation="relu").eval().requires_grad_(False).to(x.dtype)
    fastnets.backend_report(reset=True)
    y = layer(x, residual)
    assert "squeeze_excitation" not in fastnets.backend_report(reset=True)
    scaled = x * layer.excite(layer.squeeze(x.mean((2, 3), keepdim=True)))
    torch.testing.assert_close(y, F.relu(scaled if residual is None else scaled + residual))


def test_what_is_packed_follows_the_weights():
    layer, x = PackedSqueezeExcitation(*convolutions()).eval().requires_grad_(False), image(2, 12, 4, 5)
    layer(x)
    for p in layer.parameters():
        p.add_(0.5)
        torch.testing.assert_close(layer(x), x * layer.excite(layer.squeeze(x.mean((2, 3), keepdim=True))))


def test_gradients_and_tracing():
    layer, x = PackedSqueezeExcitation(*convolutions()).eval(), image(2, 12, 4, 5)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    layer.requires_grad_(False)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))

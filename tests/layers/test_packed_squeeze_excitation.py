"""PackedSqueezeExcitation, alone; within PackedInvertedResidual tests/ops has it."""

from __future__ import annotations

import pytest
import torch

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

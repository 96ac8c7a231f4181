"""SE-ResNet: what the notes say of the block, and the sizes of the paper."""

from __future__ import annotations

import pytest
import torch
from peers import build_meta
from torch import nn

from fastnets.layers import SqueezeExcitation
from fastnets.models.count import count
from fastnets.models.senet import LegacySEBottleneck, SEBottleneck


def test_channels_are_multiplied_by_the_sigmoid_of_two_layers_of_their_means():
    torch.manual_seed(0)
    layer = SqueezeExcitation(32, reduction=8)
    x = torch.randn(2, 32, 5, 3)
    hidden = (layer.fc1.weight[:, :, 0, 0] @ x.mean((2, 3)).T + layer.fc1.bias[:, None]).relu()
    weights = torch.sigmoid(layer.fc2.weight[:, :, 0, 0] @ hidden + layer.fc2.bias[:, None]).T
    assert hidden.shape == (4, 2)
    torch.testing.assert_close(layer(x), x * weights[:, :, None, None])


@pytest.mark.parametrize("block", [SEBottleneck, LegacySEBottleneck])
def test_the_weights_come_before_the_sum_so_the_shortcut_keeps_its_scale(block):
    block = block(64, 16).eval()
    excitation = block.get_submodule(block.se_name)
    nn.init.zeros_(excitation.fc2.weight)
    nn.init.constant_(excitation.fc2.bias, -1e4)  # a sigmoid of 0
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(block(x), x.relu())


# The paper's table 2: billions of multiply-accumulates of ResNet-50 and SE-ResNet-50, and of the others with SE.
@pytest.mark.parametrize(
    ("name", "printed"),
    [("seresnet50", 3.87), ("seresnet101", 7.60), ("seresnet152", 11.32), ("seresnext50_32x4d", 4.25)],
)
def test_operations_are_the_papers(name, printed):
    macs = count(build_meta(f"legacy_{name}"), 224)[1] / 1e9
    # The paper counts pooling and BatchNorm too, which are less than a hundredth of it.
    assert 0.99 * printed < macs < printed

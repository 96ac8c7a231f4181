"""Dilated residual networks: the figures of the paper."""

from __future__ import annotations

import pytest
import torch
from peers import build_meta
from torch import nn

from fastnets.models.count import measure
from fastnets.models.drn import PlainBlock

NAMES = ["drn_a_18", "drn_a_34", "drn_a_50", "drn_b_26", "drn_c_26", "drn_c_42", "drn_c_58"]


@pytest.mark.parametrize("name", NAMES)
def test_the_last_maps_are_an_eighth_of_the_photo(name):
    layers = measure(build_meta(name), 224).layers
    sides = [layer.shapes[0][1] for layer in layers if layer.kind == "Conv2d" and layer.name != "fc"]
    assert sides[-1] == min(sides) == 28


@pytest.mark.parametrize("name", ["drn_b_26", "drn_c_26", "drn_c_42", "drn_c_58"])
def test_the_name_counts_the_layers(name):
    layers = measure(build_meta(name), 64).layers
    convolutions = [layer for layer in layers if layer.kind == "Conv2d" and "downsample" not in layer.name]
    assert len(convolutions) == int(name[-2:])


def test_dilation_makes_up_for_the_strides_left_out():
    """Figure 1: of levels 4 and 5 every layer but the first dilates by 2 and by 4, the first by what came before."""
    network = build_meta("drn_a_18")
    found = [
        [c.dilation[0] for n, c in stage.named_modules() if isinstance(c, nn.Conv2d) and "downsample" not in n]
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4)
    ]
    assert found == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 2, 2, 2], [2, 4, 4, 4]]


def test_the_added_levels_dilate_less_and_less_and_c_drops_their_shortcuts():
    for name, shortcuts in (("drn_b_26", True), ("drn_c_26", False)):
        network = build_meta(name)
        levels = [getattr(network, f"layer{i}") for i in range(1, 9)]
        assert [level[0].conv1.dilation[0] for level in levels] == [1, 1, 1, 1, 2, 4, 2, 1]
        assert [isinstance(block, PlainBlock) for level in levels[6:] for block in level] == [not shortcuts] * 2
    block = PlainBlock(4, 4).eval()
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(block(x), torch.relu(block.residual(x)))


def test_drn_a_takes_the_weights_of_resnet():
    for drn, resnet in (("drn_a_18", "resnet18"), ("drn_a_34", "resnet34"), ("drn_a_50", "resnet50")):
        ours, theirs = build_meta(drn).state_dict(), build_meta(resnet).state_dict()
        assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]

"""DenseNet against the table of the notes."""

from __future__ import annotations

import re

import pytest
import torch
from peers import build_meta
from torch import nn

from fastnets.models import load_weights
from fastnets.models.count import measure
from fastnets.models.densenet import DenseBlock, DenseNet

# The table of the notes: growth k, and layers (a 1×1 and a 3×3 convolution) of the four dense blocks.
TABLE = {
    "densenet121": (32, (6, 12, 24, 16)),
    "densenet169": (32, (6, 12, 32, 32)),
    "densenet201": (32, (6, 12, 48, 32)),
    "densenet161": (48, (6, 12, 36, 24)),
}
SIZES = {  # of outputs, in pixels
    "conv0": 112,
    "pool0": 56,
    "denseblock1": 56,
    "transition1.conv": 56,
    "transition1.pool": 28,
    "denseblock2": 28,
    "transition2.conv": 28,
    "transition2.pool": 14,
    "denseblock3": 14,
    "transition3.conv": 14,
    "transition3.pool": 7,
    "denseblock4": 7,
}


@pytest.mark.parametrize("name", TABLE)
def test_layers_are_those_of_the_table(name):
    model = build_meta(name)
    layers = measure(model, 224).layers
    for part, size in SIZES.items():
        found = [layer for layer in layers if layer.name.startswith(f"features.{part}")]
        assert {layer.shapes[0][1:] for layer in found} == {(size, size)}

    growth, blocks = TABLE[name]
    convolutions = {layer.name: layer for layer in layers if layer.kind == "Conv2d"}
    assert model.features.conv0.kernel_size == (7, 7) and model.features.conv0.stride == (2, 2)
    for i, number in enumerate(blocks, 1):
        inside = [name for name in convolutions if name.startswith(f"features.denseblock{i}.")]
        kernels = [model.get_submodule(name).kernel_size for name in inside]
        assert kernels == [(1, 1), (3, 3)] * number
        assert [convolutions[name].shapes[0][0] for name in inside] == [4 * growth, growth] * number
    assert len(convolutions) + 1 == int(re.findall(r"\d+", name)[0])  # with the fully connected layer


@torch.inference_mode()
def test_a_layer_reads_all_that_were_before_it():
    block = DenseBlock(8, 3, 4).eval()
    x = torch.randn(2, 8, 5, 5)
    states = [x]
    for layer in block.children():
        states.append(layer(torch.cat(states, 1)))
    assert [state.shape[1] for state in states] == [8, 4, 4, 4]
    assert torch.equal(block(x), torch.cat(states, 1))


def test_each_convolution_follows_its_norm_and_relu():
    layer = next(DenseBlock(8, 1, 4).children())
    kinds = [type(module) for module in layer]
    assert kinds[:2] == kinds[3:5] == [nn.BatchNorm2d, nn.ReLU]
    assert [module.kernel_size for module in (layer.conv1, layer.conv2)] == [(1, 1), (3, 3)]


def test_torchvisions_checkpoints_load_under_the_names_they_were_saved_with(tmp_path):
    """They are of 2017 and say norm.1 where the network says norm1; they have no num_batches_tracked."""
    source, target = (DenseNet((2, 1, 1, 1), 8, num_classes=3) for _ in range(2))
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): tensor
        for name, tensor in source.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer2.norm.1.running_mean" in old
    torch.save(old, tmp_path / "weights.pth")
    load_weights(target, tmp_path / "weights.pth")
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name

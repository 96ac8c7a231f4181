"""ResNet against the table of the notes, and the options of its blocks: dilation, EraseReLU, the place of the stride."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from peers import difference, import_peer, settle
from torch import nn

from fastnets.layers import BasicBlock, Bottleneck
from fastnets.models import create_model
from fastnets.models.count import count, measure
from fastnets.models.res2net import Res2Bottleneck
from fastnets.models.resnet import ResNet

# The table of the notes: convolutions (kernel, channels) of a block of conv2_x, and blocks from conv2_x to conv5_x.
# The channels double from each stage to the next.
BASIC = ((3, 64), (3, 64))
DEEP = ((1, 64), (3, 64), (1, 256))
TABLE = {
    18: (BASIC, (2, 2, 2, 2)),
    34: (BASIC, (3, 4, 6, 3)),
    50: (DEEP, (3, 4, 6, 3)),
    101: (DEEP, (3, 4, 23, 3)),
    152: (DEEP, (3, 8, 36, 3)),
}
OUTPUT_SIZES = {"conv1": 112, "layer1": 56, "layer2": 28, "layer3": 14, "layer4": 7}
# Billions of multiply-accumulates as printed, and as they are: 3.66 and 3.86 were cut off, not rounded.
PRINTED = {18: 1.8, 34: 3.6, 50: 3.8, 101: 7.6, 152: 11.3}
TRUE = PRINTED | {34: 3.7, 50: 3.9}


def build(depth: int, **options: Any) -> ResNet:
    block, blocks = TABLE[depth]
    with torch.device("meta"):
        return ResNet(BasicBlock if block is BASIC else partial(Bottleneck, **options), blocks)


@pytest.mark.parametrize("depth", TABLE)
def test_layers_are_those_of_the_table(depth):
    with torch.device("meta"):
        model = create_model(f"resnet{depth}")
    convolutions = {
        layer.name: (model.get_submodule(layer.name).kernel_size[0], layer.shapes[0])
        for layer in measure(model, 224).layers
        if layer.kind == "Conv2d" and "downsample" not in layer.name
    }
    assert convolutions["conv1"] == (7, (64, 112, 112))
    block, blocks = TABLE[depth]
    for i, number in enumerate(blocks):
        stage = [entry for name, entry in convolutions.items() if name.startswith(f"layer{i + 1}.")]
        assert [(kernel, shape[0]) for kernel, shape in stage] == [(k, c * 2**i) for k, c in block] * number
        assert stage[-1][1][1:] == (OUTPUT_SIZES[f"layer{i + 1}"],) * 2
    assert len(convolutions) + 1 == depth  # with the fully connected layer


@pytest.mark.parametrize("depth", TABLE)
def test_operations_are_those_of_the_table_with_the_stride_where_the_paper_has_it(depth):
    macs = count(build(depth, stride_first=True), 224)[1] / 1e9
    assert round(macs, 1) == TRUE[depth] and int(macs * 10) / 10 <= PRINTED[depth] <= TRUE[depth]
    # torchvision's bottlenecks have it in the 3×3 convolution, where more pixels pass the first 1×1 one.
    extra = count(build(depth), 224)[1] - count(build(depth, stride_first=True), 224)[1]
    pixels = 3 * 56**2 * 256 * 128  # as many in each of the three stages: half the size, twice the channels
    assert extra == (pixels * 3 // 4 if depth >= 50 else 0)


# ---- dilation --------------------------------------------------------------------------------


def features(model: ResNet, x: torch.Tensor) -> list[torch.Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    return [x := stage(x) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)]


@pytest.fixture(
    scope="module",
    params=[BasicBlock, Bottleneck, partial(Bottleneck, stride_first=True)],
    ids=["basic", "bottleneck", "stride_first"],
)
def strided(request) -> tuple[Any, ResNet]:
    """A kind of block, and a network of it."""
    torch.manual_seed(0)
    return request.param, settle(ResNet(request.param, (1, 2, 2, 2), 5)).double().eval()


@pytest.mark.parametrize("dilate", [(False, False, True), (False, True, True), (True, False, True)])
@torch.inference_mode()
def test_a_dilated_network_computes_the_same_at_the_pixels_that_a_stride_keeps(strided, dilate):
    block, network = strided
    with torch.device("meta"):
        dilated = ResNet(block, (1, 2, 2, 2), 5, replace_stride_with_dilation=dilate).eval()
    dilated.load_state_dict(network.state_dict(), assign=True)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    step = 1
    for wide, expected, larger in zip(features(dilated, x), features(network, x), (False, *dilate), strict=True):
        step *= 1 + larger
        assert wide.shape[2:] == tuple(step * size for size in expected.shape[2:])
        assert difference(wide[:, :, ::step, ::step], expected) < 1e-12


@torch.inference_mode()
def test_dilation_is_torchvisions():
    dilate = (False, True, True)
    peer = import_peer("torchvision").models.resnet50(replace_stride_with_dilation=dilate)
    model = create_model("resnet50", replace_stride_with_dilation=dilate).eval()
    model.load_state_dict(settle(peer).eval().state_dict())
    x = torch.randn(1, 3, 96, 64)
    assert difference(model(x), peer(x)) < 1e-5


def test_dilation_wants_a_choice_for_each_of_three_stages():
    with pytest.raises(ValueError, match="three values, but got \\(True, False\\)"):
        create_model("resnet18", replace_stride_with_dilation=(True, False))


# ---- EraseReLU -------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, Res2Bottleneck])
def test_an_erased_relu_is_the_last_of_the_block(block):
    torch.manual_seed(0)
    plain, erased = block(64, 64).eval(), block(64, 64, erase_relu=True).eval()
    erased.load_state_dict(plain.state_dict())
    x = torch.randn(2, 64, 6, 6)
    y = erased(x)
    assert (y < 0).any() and torch.equal(y.relu(), plain(x))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_every_block_loses_one_relu(name):
    def relus(**options: Any) -> int:
        with torch.device("meta"):
            model = create_model(name, **options)
        return sum(layer.kind == "ReLU" for layer in measure(model, 64).layers)

    blocks = 8 if name == "resnet18" else 16
    assert relus() - relus(erase_relu=True) == blocks
    assert relus(erase_relu=True) == 1 + blocks * (1 if name == "resnet18" else 2)


@pytest.mark.parametrize("block", [BasicBlock(8, 8), Bottleneck(32, 8)], ids=["basic", "bottleneck"])
def test_the_shortcut_is_the_input_itself_where_shapes_allow(block):
    norms = [module for module in block.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    nn.init.zeros_(norms[-1].weight)
    x = torch.randn(2, block.out_channels, 5, 5)
    assert torch.equal(block(x), x.relu())

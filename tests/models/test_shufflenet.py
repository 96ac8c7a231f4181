"""ShuffleNet, both versions: the tables of their papers, and what their shuffles do."""

from __future__ import annotations

import pytest
import torch
from peers import build_meta, settle
from torch import nn

from fastnets.layers import ShuffleSplit
from fastnets.models.count import measure
from fastnets.models.shufflenetv1 import ShuffleUnit
from fastnets.models.shufflenetv2 import Stage

# Table 1 of the first paper: output channels of the stages, and millions of multiply-accumulates.
FIRST = {
    1: ((144, 288, 576), 143),
    2: ((200, 400, 800), 140),
    3: ((240, 480, 960), 137),
    4: ((272, 544, 1088), 133),
    8: ((384, 768, 1536), 137),
}
# Table 5 of the second: output channels of the stages and of the last convolution, millions of parameters.
SECOND = {
    "x0_5": ((48, 96, 192, 1024), 1.4),
    "x1_0": ((116, 232, 464, 1024), 2.3),
    "x1_5": ((176, 352, 704, 1024), 3.5),
    "x2_0": ((244, 488, 976, 2048), 7.4),
}
SIZES = (28, 14, 7)


def stage_outputs(model: nn.Module, stages: list[nn.Module]) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    for stage in stages:
        stage.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[1:])))
    model.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    return shapes


@pytest.mark.parametrize("groups", FIRST)
def test_the_first_version_is_that_of_its_table(groups):
    model = build_meta(f"shufflenet_v1_g{groups}")
    channels, printed = FIRST[groups]
    ends = [model.features[i] for i in (3, 11, 15)]  # stages of 4, 8 and 4 units
    assert stage_outputs(model, ends) == [(c, size, size) for c, size in zip(channels, SIZES, strict=True)]
    # The paper leaves the fully connected layer out.
    macs = sum(layer.macs for layer in measure(model, 224).layers if layer.kind == "Conv2d")
    assert round(macs / 1e6) == printed


@pytest.mark.parametrize("version", SECOND)
def test_the_second_version_is_that_of_its_table(version):
    model = build_meta(f"shufflenet_v2_{version}")
    channels, parameters = SECOND[version]
    stages = [model.stage2, model.stage3, model.stage4, model.conv5]
    expected = [(c, size, size) for c, size in zip(channels, (*SIZES, 7), strict=True)]
    assert stage_outputs(model, stages) == expected
    assert round(measure(model, 224).parameters / 1e6, 1) == parameters


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_after_the_shuffle_each_group_reads_every_group(groups):
    torch.manual_seed(0)
    unit = settle(ShuffleUnit(256, 256, groups, groups, 1)).double().eval()
    x = torch.randn(1, 256, 3, 3, dtype=torch.float64, requires_grad=True)
    y = unit.branch_main_2(unit.shuffle(unit.branch_main_1(x)))
    for part in y.chunk(groups, 1):
        (gradient,) = torch.autograd.grad(part.sum(), x, retain_graph=True)
        assert all(group.any() for group in gradient.chunk(groups, 1))


def test_the_first_version_shuffles_as_the_release_does():
    """Its checkpoints would classify nothing with the shuffle of the paper, which is the other way round."""
    shuffle = ShuffleUnit(48, 48, 3, 3, 1).shuffle
    order = shuffle(torch.arange(12.0).view(1, 12, 1, 1)).flatten().tolist()
    assert order == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]


def test_the_shuffle_of_halves_is_that_of_their_concatenation():
    a, b = torch.randn(2, 2, 6, 3, 3)
    whole = nn.functional.channel_shuffle(torch.cat((a, b), 1), 2)
    assert torch.equal(torch.cat(ShuffleSplit()(a, b), 1), whole)


def test_half_of_the_channels_pass_a_unit_unchanged():
    stage = Stage(8, 16, 3).eval()
    first, second, third, shuffle = stage
    x = torch.randn(2, 8, 8, 8)
    with torch.inference_mode():
        joined = shuffle(torch.cat(first(x), 1))
        after = shuffle(torch.cat((joined[:, :8], second.branch2(joined[:, 8:])), 1))
        expected = shuffle(torch.cat((after[:, :8], third.branch2(after[:, 8:])), 1))
        torch.testing.assert_close(stage(x), expected)

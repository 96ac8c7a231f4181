"""Sizes of networks, against the published figures."""

from __future__ import annotations

import pytest
import torch
from peers import build_meta
from torch import nn

import fastnets
from fastnets.models import create_model, list_models, model_info
from fastnets.models.count import count

# Parameters as torchvision and timm say; billions of multiply-accumulates as the papers do: 300 million for
# MobileNetV2 and 569 million for MobileNetV1. For EfficientNet-Lite0 (timm: 0.40 with BatchNorm and
# activations) the sum over its layers, written down below.
PUBLISHED = {
    "efficientnet_lite0": (4_652_008, 0.385),
    "mobilenet_v2": (3_504_872, 0.301),
    "mobilenetv1_100": (4_231_976, 0.569),
}


@pytest.mark.parametrize("name", list_models())
def test_parameters_and_multiply_accumulates_are_the_published_ones(name):
    parameters, macs = count(build_meta(name), model_info(name).input_size)
    assert (parameters, round(macs / 1e9, 3)) == PUBLISHED[name]


def test_layers_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 8 × 4 × 4 outputs of 27
        fastnets.layers.DepthwiseConv2d(8, 3, padding=1),  # 8 × 4 × 4 outputs of 9
        nn.Flatten(),
        nn.Linear(128, 10),  # 10 outputs of 128
    )
    assert count(model, 8) == (216 + 80 + 1290, 128 * 27 + 128 * 9 + 1280)


def test_efficientnet_lite0_by_hand():
    macs, size = 112**2 * 32 * (27 + 9 + 16), 112
    channels = 16
    for out, blocks, kernel, stride in (
        (24, 2, 3, 2),
        (40, 2, 5, 2),
        (80, 3, 3, 2),
        (112, 3, 5, 1),
        (192, 4, 5, 2),
        (320, 1, 3, 1),
    ):
        for block in range(blocks):
            inside, before = 6 * channels, size
            size //= stride if block == 0 else 1
            macs += before**2 * channels * inside + size**2 * inside * (kernel**2 + out)
            channels = out
    macs += 49 * 320 * 1280 + 1280 * 1000
    assert count(create_model("efficientnet_lite0"), 224)[1] == macs


def test_the_model_is_left_alone():
    model = create_model("mobilenetv1_100", width=0.25)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count(model, 32)
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

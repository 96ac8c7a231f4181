"""Sizes of networks, against the published figures."""

from __future__ import annotations

import pytest
import torch
from peers import build_meta
from torch import nn

import fastnets
from fastnets.models import create_model, list_models, model_info
from fastnets.models.count import Layer, count, measure

# Parameters and billions of multiply-accumulates as torchvision says; where it has no such network, parameters as timm
# or the authors' release do. The rest are our own counts, which only guard against change.
PUBLISHED = {
    "alexnet": (61_100_840, 0.714),
    "alexnet_lrn": (62_378_344, 1.135),
    "alexnet_two_towers": (60_965_224, 0.724),
    "darknet19": (20_842_376, 3.645),
    "darknet53": (41_609_928, 9.285),
    "densenet121": (7_978_856, 2.834),
    "densenet161": (28_681_000, 7.728),
    "densenet169": (14_149_480, 3.36),
    "densenet201": (20_013_928, 4.291),
    "drn_a_18": (11_689_512, 9.213),
    "drn_a_34": (21_797_672, 17.305),
    "drn_a_50": (25_557_032, 19.079),
    "drn_b_26": (21_126_584, 16.971),
    "drn_c_26": (21_126_584, 16.971),
    "drn_c_42": (31_234_744, 25.064),
    "drn_c_58": (41_591_608, 32.424),
    "efficientnet_lite0": (4_652_008, 0.385),
    "efficientnet_lite1": (5_416_680, 0.6),
    "efficientnet_lite2": (6_092_072, 0.86),
    "googlenet": (13_004_888, 1.498),
    "highway_19": (2_342_406, 0.352),
    "inception_resnet_v1": (22_756_328, 6.206),
    "inception_resnet_v2": (55_843_464, 13.156),
    "inception_v2": (11_188_288, 1.935),
    "inception_v3": (27_161_264, 5.713),
    "inception_v4": (42_679_816, 12.254),
    "legacy_seresnet101": (49_326_872, 7.575),
    "legacy_seresnet152": (66_821_848, 11.289),
    "legacy_seresnet50": (28_088_024, 3.86),
    "legacy_seresnext101_32x4d": (48_955_416, 7.975),
    "legacy_seresnext50_32x4d": (27_559_896, 4.233),
    "mobilenet_v2": (3_504_872, 0.301),
    "mobilenetv1_100": (4_231_976, 0.569),
    "nasnetalarge": (88_753_150, 23.783),
    "nasnetamobile": (5_289_978, 0.564),
    "nin": (7_595_176, 1.100),
    "res2net101_26w_4s": (45_206_688, 8.067),
    "res2net50_14w_8s": (25_059_816, 4.179),
    "res2net50_26w_4s": (25_699_120, 4.255),
    "resnet101": (44_549_160, 7.801),
    "resnet152": (60_192_808, 11.514),
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 4.089),
    "resnext101_32x4d": (44_177_704, 7.97),
    "resnext101_32x8d": (88_791_336, 16.414),
    "resnext101_64x4d": (83_455_272, 15.46),
    "resnext50_32x4d": (25_028_904, 4.23),
    "scnet101": (44_565_416, 7.169),
    "scnet50": (25_564_584, 3.925),
    "seresnet101": (49_326_872, 7.806),
    "seresnet152": (66_821_848, 11.52),
    "seresnet50": (28_088_024, 4.092),
    "seresnext101_32x4d": (48_955_416, 7.975),
    "seresnext50_32x4d": (27_559_896, 4.233),
    "shufflenet_v1_g1": (1_530_936, 0.143),
    "shufflenet_v1_g2": (1_732_848, 0.141),
    "shufflenet_v1_g3": (1_864_728, 0.137),
    "shufflenet_v1_g4": (1_967_344, 0.134),
    "shufflenet_v1_g8": (2_433_768, 0.138),
    "shufflenet_v2_x0_5": (1_366_792, 0.04),
    "shufflenet_v2_x1_0": (2_278_604, 0.145),
    "shufflenet_v2_x1_5": (3_503_624, 0.296),
    "shufflenet_v2_x2_0": (7_393_996, 0.583),
    "squeezenet1_0": (1_248_424, 0.819),
    "squeezenet1_1": (1_235_496, 0.349),
    "vgg11": (132_863_336, 7.609),
    "vgg11_bn": (132_868_840, 7.609),
    "vgg13": (133_047_848, 11.308),
    "vgg13_bn": (133_053_736, 11.308),
    "vgg16": (138_357_544, 15.470),
    "vgg16_bn": (138_365_992, 15.470),
    "vgg19": (143_667_240, 19.632),
    "vgg19_bn": (143_678_248, 19.632),
    "vgg_a_lrn": (132_863_336, 7.609),
    "vgg_c": (133_638_952, 11.771),
    "vgg_c_bn": (133_647_400, 11.771),
    "zfnet": (62_357_608, 1.198),
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


def test_layers_tell_their_shapes_parameters_and_operations():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Identity(), nn.ReLU(inplace=True), fastnets.layers.ChannelShuffle(2))
    model.append(model[2])  # called twice
    assert measure(model, 5).layers == (
        Layer("0", "Conv2d", ((8, 3, 3),), 224, 8 * 9 * 27),
        Layer("2", "ReLU", ((8, 3, 3),), 0, 0),
        Layer("3", "ChannelShuffle", ((8, 3, 3),), 0, 0),
        Layer("2", "ReLU", ((8, 3, 3),), 0, 0),
    )


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        (nn.Conv2d(3, 8, 3), 300),  # its input, the photo
        (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), 300 + 800),  # and the result of the ReLU
        (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)), 300 + 2 * (800 + 8)),
        (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 4, 1)), 300 + 800),  # one tensor
        (nn.Sequential(nn.Flatten(), nn.Linear(300, 2)), 300),  # a view of the photo
        (fastnets.layers.DepthwiseConv2d(3, 3), 300),
        (nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2)), 0),  # without parameters nothing is kept
    ],
    ids=["conv", "relu", "norm", "shared", "view", "depthwise", "none"],
)
def test_what_the_backward_pass_needs_is_counted_once(model, kept):
    with torch.inference_mode():
        assert measure(model.requires_grad_(False), 10).activation_bytes == 4 * kept


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

"""The tables and figures of the notes about plain networks, Inception and Darknet. Where a printed figure is a slip,
the test has the true one beside it. ResNet's are in test_resnet.py."""

from __future__ import annotations

import pytest
import torch
from peers import build_meta
from torch import Tensor, nn

from fastnets.layers.plain import local_response_norm
from fastnets.models.count import Layer, Size, measure


def size_of(name: str, input_size: int) -> Size:
    return measure(build_meta(name), input_size)


def weighted(layers: tuple[Layer, ...]) -> list[Layer]:
    """The layers with weights, without the batch normalisations."""
    return [layer for layer in layers if layer.kind in ("Conv2d", "Linear")]


def sides(layers: tuple[Layer, ...], *kinds: str) -> list[int]:
    """Height and width that the layers of some kinds give, where they have them."""
    return [layer.shapes[0][1] for layer in layers if layer.kind in kinds and len(layer.shapes[0]) == 3]


def printed_as(true: float, unit: float, printed: float) -> bool:
    """Whether the figure was printed for the true one, rounded up or down in its last digit."""
    return abs(true / unit - printed) < 10 ** -(len(str(printed).partition(".")[2]))


# ---- AlexNet ---------------------------------------------------------------------------------

# Figure 6-5, from the input: weights and operations.
ALEXNET = [
    ("35K", "105M"),
    ("307K", "223M"),
    ("884K", "149M"),
    ("1.3M", "112M"),
    ("442K", "74M"),
    ("37M", "37M"),
    ("16M", "16M"),
    ("4M", "4M"),
]
UNITS = {"K": 1e3, "M": 1e6}


def matches(true: float, printed: str) -> bool:
    number = printed[:-1]
    return printed_as(true, UNITS[printed[-1]], float(number) if "." in number else int(number))


def test_alexnet_layer_by_layer():
    network = build_meta("alexnet_two_towers")
    layers = weighted(measure(network, 227).layers)
    weights = [network.get_submodule(layer.name).weight.numel() for layer in layers]
    assert [matches(layer.macs, printed) for layer, (_, printed) in zip(layers, ALEXNET, strict=True)] == [True] * 8
    # Slip: the fourth convolution has two towers, as its 112M operations say; 1.3M is what one tower would have.
    assert [matches(w, printed) for w, (printed, _) in zip(weights, ALEXNET, strict=True)] == [True] * 3 + [False] + [
        True
    ] * 4
    assert weights[3] == 663_552 and matches(2 * weights[3], "1.3M")


def test_alexnet_in_words():
    size = size_of("alexnet_two_towers", 227)
    assert printed_as(size.parameters, 1e6, 60)  # 60 million parameters
    neurons = sum(torch.Size(layer.shapes[0]).numel() for layer in weighted(size.layers))
    assert neurons == 659_272 and round(neurons, -5) == 700_000  # printed: 650 thousand
    # Slip: 630 million connections are printed; there is one for each multiplication.
    assert round(size.macs / 1e6) == 724
    assert [layer.kind for layer in weighted(size.layers)] == ["Conv2d"] * 5 + ["Linear"] * 3


def test_alexnet_sizes():
    layers = size_of("alexnet_lrn", 227).layers
    assert [layer.shapes[0] for layer in layers if layer.kind == "MaxPool2d"] == [
        (96, (55 - 3) // 2 + 1, 27),
        (256, 13, 13),
        (256, 6, 6),
    ]
    assert sides(layers, "Conv2d") == [55, 27, 13, 13, 13]


def test_alexnet_of_the_keras_listing():
    convolutions = 3 * 96 * 11**2 + 96 * 256 * 5**2 + (256 * 384 + 384 * 384 + 384 * 256) * 3**2
    fully_connected = 256 * 6 * 6 * 4096 + 4096 * 4096 + 4096 * 1000
    biases = 96 + 256 + 384 + 384 + 256 + 4096 + 4096 + 1000
    assert size_of("alexnet_lrn", 227).parameters == convolutions + fully_connected + biases


def test_towers_are_what_two_devices_compute():
    grouped = build_meta("alexnet_two_towers").features[4].to_empty(device="cpu")
    nn.init.normal_(grouped.weight), nn.init.normal_(grouped.bias)
    x = torch.randn(1, 96, 9, 9)
    towers = [
        nn.functional.conv2d(part, w, b, padding=2)
        for part, w, b in zip(x.chunk(2, 1), grouped.weight.chunk(2), grouped.bias.chunk(2), strict=True)
    ]
    torch.testing.assert_close(grouped(x), torch.cat(towers, 1), rtol=1e-4, atol=1e-4)


def test_response_normalisation():
    x = torch.randn(2, 7, 3, 3, dtype=torch.float64) * 50
    squares = [x[:, max(0, i - 2) : i + 3].square().sum(1) for i in range(7)]
    base = 2 + 1e-4 * torch.stack(squares, 1)
    torch.testing.assert_close(local_response_norm()(x), x / base**0.75)
    # Slip: the printed formula lacks the exponent of the paper.
    assert not torch.allclose(local_response_norm()(x), x / base)


# ---- ZFNet, VGG, Network in Network ----------------------------------------------------------


def test_zfnet_of_the_keras_listing():
    size = size_of("zfnet", 224)
    assert sides(size.layers, "Conv2d", "MaxPool2d") == [109, 54, 27, 13, 13, 13, 13, 6]
    convolutions = 3 * 96 * 7**2 + 96 * 256 * 5**2 + (256 * 384 + 384 * 384 + 384 * 256) * 3**2
    fully_connected = 256 * 6 * 6 * 4096 + 4096 * 4096 + 4096 * 1000
    biases = 96 + 256 + 384 + 384 + 256 + 4096 + 4096 + 1000
    assert size.parameters == convolutions + fully_connected + biases


# The columns of the table: weight layers, and the kernels between the poolings.
VGG = {
    "vgg11": (11, "3 3 33 33 33"),
    "vgg_a_lrn": (11, "3 3 33 33 33"),
    "vgg13": (13, "33 33 33 33 33"),
    "vgg_c": (16, "33 33 331 331 331"),
    "vgg16": (16, "33 33 333 333 333"),
    "vgg19": (19, "33 33 3333 3333 3333"),
}


@pytest.mark.parametrize("name", VGG)
def test_vgg_by_the_table(name):
    network = build_meta(name)
    layers = measure(network, 224).layers
    modules = [network.get_submodule(layer.name) for layer in layers]
    stages, channels, kernels = [], [], ""
    for module in modules:
        if isinstance(module, nn.Conv2d):
            assert module.kernel_size in ((1, 1), (3, 3)) and module.stride == (1, 1)
            kernels += str(module.kernel_size[0])
            channels.append(module.out_channels)
        elif isinstance(module, nn.MaxPool2d):
            stages.append(kernels)
            kernels = ""
    number, table = VGG[name]
    assert len(weighted(layers)) == number and " ".join(stages) == table
    assert channels == [c for c, stage in zip((64, 128, 256, 512, 512), stages, strict=True) for _ in stage]
    assert sides(layers, "MaxPool2d") == [112, 56, 28, 14, 7]
    assert [m.out_features for m in modules if isinstance(m, nn.Linear)] == [4096, 4096, 1000]
    # Column A-LRN: the normalisation is between the first convolution and the first pooling.
    normalised = [i for i, m in enumerate(modules) if isinstance(m, nn.LocalResponseNorm)]
    assert normalised == ([2] if name == "vgg_a_lrn" else [])


def test_vgg16_of_the_keras_listing():
    # Slip: the listing's third convolution is 3 by 2; the table's and everybody's is 3 by 3.
    third = build_meta("vgg16").features[5]
    assert third.weight.shape == (128, 64, 3, 3)
    assert size_of("vgg16", 224).parameters == 138_357_544


def test_network_in_network_is_an_eighth_of_alexnet():
    def megabytes(name: str) -> float:
        return 4 * size_of(name, 227).parameters / 2**20

    assert round(megabytes("alexnet_two_towers"), -1) == 230 and round(megabytes("nin")) == 29


def test_a_fully_connected_layer_from_16_to_16():
    # Slip: 4·4·4·4 = 216 is printed.
    assert nn.Linear(4 * 4, 4 * 4).weight.numel() == 256


# ---- GoogLeNet, Inception-ResNet --------------------------------------------------------------


def test_googlenet_has_nine_modules_and_22_layers():
    network = build_meta("googlenet")
    modules = [name for name, _ in network.named_children() if name.startswith("inception")]
    assert len(modules) == 9
    branches = [network.get_submodule(name).children() for name in modules]
    deepest = [max(sum(isinstance(m, nn.Conv2d) for m in b.modules()) for b in module) for module in branches]
    layers = 3 + sum(deepest) + 1  # the convolutions before them, the classifier after
    poolings = 4 + 1  # the mean over all pixels
    names = [layer.name for layer in measure(network, 224).layers]
    assert sum("maxpool" in name for name in names) + 2 == 4  # two are no modules of the network
    assert (layers, layers + poolings) == (22, 27)


def test_googlenet_trains_with_two_auxiliary_classifiers():
    network = build_meta("googlenet")
    outputs = network(torch.empty(2, 3, 224, 224, device="meta"))
    assert [y.shape for y in outputs] == [(2, 1000)] * 3 and isinstance(network.eval()(outputs_input()), Tensor)


def outputs_input() -> Tensor:
    return torch.empty(2, 3, 224, 224, device="meta")


# Table 1: the filters of the reduction from 35 by 35 to 17 by 17.
KLMN = {
    "inception_v4": (192, 224, 256, 384),
    "inception_resnet_v1": (192, 192, 256, 384),
    "inception_resnet_v2": (256, 256, 384, 384),
}


@pytest.mark.parametrize("name", KLMN)
def test_inception_reduction(name):
    network = build_meta(name)
    reduction = network.features[10] if name == "inception_v4" else network.mixed_6a
    k, l, m, n = (c.out_channels for c in (*_convolutions(reduction.branch1), *_convolutions(reduction.branch0)))
    assert (k, l, m, n) == KLMN[name]


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(("version", "blocks"), [(1, (5, 10, 5)), (2, (10, 20, 10))])
def test_inception_resnet_grids(version, blocks):
    """Figures 16 to 19: 35 by 35, 17 by 17 and 8 by 8. (Slip: the caption of figure 18 says v1 for v2.)"""
    layers = size_of(f"inception_resnet_v{version}", 299).layers
    grids = [layer.shapes[0][1] for layer in layers if layer.name.endswith(".conv2d")]
    assert grids == [35] * blocks[0] + [17] * blocks[1] + [8] * blocks[2]


def test_inception_resnet_v2_blocks():
    network = build_meta("inception_resnet_v2")
    for block, kernels in (
        (network.repeat[0], [(1, 1), (1, 1), (3, 3), (1, 1), (3, 3), (3, 3), (1, 1)]),
        (network.repeat_1[0], [(1, 1), (1, 1), (1, 7), (7, 1), (1, 1)]),
        (network.repeat_2[0], [(1, 1), (1, 1), (1, 3), (3, 1), (1, 1)]),
    ):
        assert [c.kernel_size for c in _convolutions(block)] == kernels


# ---- Darknet ---------------------------------------------------------------------------------

# The printed table: filters and sizes of what each stage gives.
DARKNET53 = [(64, 128), (128, 64), (256, 32), (512, 16), (1024, 8)]


def test_darknet53_by_the_table():
    network = build_meta("darknet53")
    shapes = {layer.name: layer.shapes[0] for layer in measure(network, 256).layers}
    assert shapes["stem.conv1.conv"] == (32, 256, 256)
    for i, (filters, side) in enumerate(DARKNET53):
        assert shapes[f"stages.{i}.conv_down.conv"] == (filters, side, side)
        assert shapes[f"stages.{i}.blocks.0.conv1.conv"] == (filters // 2, side, side)
        assert shapes[f"stages.{i}.blocks.0.conv2.conv"] == (filters, side, side)
    # Slip: 1x, 2x, 4x, 8x, 16x, 4x are printed, six for five. The paper's sum to 53 layers with the classifier.
    assert [len(stage.blocks) for stage in network.stages] == [1, 2, 8, 8, 4]
    assert 1 + 5 + 2 * (1 + 2 + 8 + 8 + 4) + 1 == len(weighted(measure(network, 256).layers)) == 53


def test_darknet_operations():
    """Billions of operations for 256 by 256 pixels; a multiplication and an addition are two."""

    def billions(name: str) -> float:
        return 2 * size_of(name, 256).macs / 1e9

    assert billions("darknet19") == pytest.approx(7.29, abs=0.005)
    assert len(weighted(size_of("darknet19", 256).layers)) == 19
    # Slip: 18.7 is printed; the page of its author, https://pjreddie.com/darknet/imagenet, has 18.57.
    assert billions("darknet53") == pytest.approx(18.57, abs=0.005)


@pytest.mark.parametrize(("name", "layers"), [("alexnet_lrn", 8), ("zfnet", 8)])
def test_champions_have_as_many_layers_as_the_table_says(name, layers):
    assert len(weighted(size_of(name, 224).layers)) == layers

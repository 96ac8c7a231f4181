"""MobileNet against the table and the formulas of the notes, and the sizes of both papers at every width."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastnets.layers import DepthwiseSeparable
from fastnets.models import create_model
from fastnets.models.count import Layer, count, measure

# The table of the notes: type, stride as printed, filter shape as printed, input size.
TABLE = [
    ("Conv", 2, (3, 3, 3, 32), (224, 3)),
    ("Conv dw", 1, (3, 3, 32), (112, 32)),
    ("Conv", 1, (1, 1, 32, 64), (112, 32)),
    ("Conv dw", 2, (3, 3, 64), (112, 64)),
    ("Conv", 1, (1, 1, 64, 128), (56, 64)),
    ("Conv dw", 1, (3, 3, 128), (56, 128)),
    ("Conv", 1, (1, 1, 128, 128), (56, 128)),
    ("Conv dw", 2, (3, 3, 128), (56, 128)),
    ("Conv", 1, (1, 1, 128, 256), (28, 128)),
    ("Conv dw", 1, (3, 3, 256), (28, 256)),
    ("Conv", 1, (1, 1, 256, 256), (28, 256)),
    ("Conv dw", 2, (3, 3, 256), (28, 256)),
    ("Conv", 1, (1, 1, 256, 512), (14, 256)),
    *[("Conv dw", 1, (3, 3, 512), (14, 512)), ("Conv", 1, (1, 1, 512, 512), (14, 512))] * 5,
    ("Conv dw", 2, (3, 3, 512), (14, 512)),
    ("Conv", 1, (1, 1, 512, 1024), (7, 512)),
    ("Conv dw", 2, (3, 3, 1024), (7, 1024)),
    ("Conv", 1, (1, 1, 1024, 1024), (7, 1024)),
    ("FC", 1, (1024, 1000), (1, 1024)),
]
# A slip: with a stride of 2 the last 1×1 convolution and the 7×7 pooling of the table could not have 7×7 pixels.
SLIP = 25


def meta(name: str, width: float = 1.0) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, width=width)


def as_printed(module: nn.Module) -> tuple[str, int, tuple[int, ...]]:
    if isinstance(module, nn.Linear):
        return "FC", 1, (module.in_features, module.out_features)
    o, c, kh, kw = module.weight.shape
    shape = (kh, kw, o) if module.groups > 1 else (kh, kw, c, o)
    return "Conv dw" if module.groups > 1 else "Conv", module.stride[0], shape


def test_layers_are_those_of_the_table():
    model = meta("mobilenetv1_100")
    layers = [layer for layer in measure(model, 224).layers if layer.macs]
    assert len(layers) == len(TABLE)
    previous = Layer("input", "", ((3, 224, 224),), 0, 0)
    for i, (layer, (kind, stride, filter, (size, channels))) in enumerate(zip(layers, TABLE, strict=True)):
        true_stride = 1 if i == SLIP else stride
        assert as_printed(model.get_submodule(layer.name)) == (kind, true_stride, filter)
        if kind != "FC":
            assert previous.shapes == ((channels, size, size),)
        previous = layer
    assert TABLE[SLIP][1] == 2


def test_a_separable_convolution_costs_what_the_notes_say():
    k, m, n, size = 3, 32, 64, 28
    whole = nn.Conv2d(m, n, k, padding=1, bias=False)
    parts = DepthwiseSeparable(m, n)
    first = nn.Conv2d(3, m, 1, bias=False)
    _, before = count(first, size)
    standard = count(nn.Sequential(first, whole), size)[1] - before
    separable = count(nn.Sequential(first, parts), size)[1] - before
    assert standard == k * k * m * n * size * size
    assert separable == k * k * m * size * size + m * n * size * size
    assert separable / standard == pytest.approx(1 / n + 1 / k**2)


# The papers' figures, and for the second those of its authors' release: millions of multiply-accumulates and of
# parameters, the release's without those of BatchNorm.
@pytest.mark.parametrize(
    ("name", "width", "macs", "parameters"),
    [
        ("mobilenetv1_100", 1.0, 569, 4.2),
        ("mobilenetv1_100", 0.75, 325, 2.6),
        ("mobilenetv1_100", 0.5, 149, 1.3),
        ("mobilenetv1_100", 0.25, 41, 0.5),
        ("mobilenet_v2", 1.4, 582, 6.06),
        ("mobilenet_v2", 1.3, 509, 5.34),
        ("mobilenet_v2", 1.0, 300, 3.47),
        ("mobilenet_v2", 0.75, 209, 2.61),
        ("mobilenet_v2", 0.5, 97, 1.95),
        ("mobilenet_v2", 0.35, 59, 1.66),
    ],
)
def test_every_width_has_the_published_size(name, width, macs, parameters):
    model = meta(name, width)
    norms = 2 * sum(module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    got_parameters, got_macs = count(model, 224)
    assert abs(got_macs / 1e6 - macs) < 1  # some are rounded, some cut off
    if name == "mobilenet_v2":
        assert round((got_parameters - norms) / 1e6, 2) == parameters
    else:
        assert round(got_parameters / 1e6, 1) == parameters

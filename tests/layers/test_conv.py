"""The convolution layers: drop-in for torch.nn.Conv2d, in numbers and in every other respect."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from edges import error_of
from torch import nn

import fastnets
from fastnets.layers import Conv2d, DepthwiseConv2d, GroupedConv2d, PackedConv2d

CASES = {
    "dense": {"in_channels": 4, "out_channels": 6, "kernel_size": 3},
    "grouped": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2, "padding": 1},
    "depthwise": {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "groups": 4, "stride": 2, "padding": 1},
    "multiplier": {
        "in_channels": 4,
        "out_channels": 12,
        "kernel_size": (1, 5),
        "groups": 4,
        "padding": (0, 2),
        "bias": False,
    },
    "dilated": {
        "in_channels": 4,
        "out_channels": 4,
        "kernel_size": 3,
        "groups": 4,
        "dilation": (2, 1),
        "padding": "valid",
    },
    "same": {"in_channels": 4, "out_channels": 4, "kernel_size": (2, 4), "groups": 4, "padding": "same"},
}
MODES = ["zeros", "reflect", "replicate", "circular"]


def assert_same(ours: nn.Module, torchs: nn.Module, x: torch.Tensor) -> None:
    """Outputs and all gradients agree to twelve digits."""
    results = []
    for layer in (ours, torchs):
        layer.zero_grad()
        input = x.clone(memory_format=torch.preserve_format).requires_grad_()
        output = layer(input)
        output.square().sum().backward()
        results.append([output, input.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_conv2d_is_torchs(case, mode, layout):
    torchs = nn.Conv2d(**CASES[case], padding_mode=mode, dtype=torch.float64)
    ours = Conv2d(**CASES[case], padding_mode=mode, dtype=torch.float64)
    assert list(ours.state_dict()) == list(torchs.state_dict()) and repr(ours) == repr(torchs)
    ours.load_state_dict(torchs.state_dict())
    assert_same(ours, torchs, torch.randn(2, 4, 9, 8, dtype=torch.float64).contiguous(memory_format=layout))
    assert torch.equal(ours(x := torch.randn(4, 9, 8, dtype=torch.float64)), ours(x[None])[0])


ACTIVATIONS = {
    None: nn.Identity(),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky_relu": nn.LeakyReLU(0.1),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "sigmoid": nn.Sigmoid(),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_depthwise_conv2d_is_a_grouped_convolution_and_an_activation(activation, multiplier, mode):
    geometry = {
        "kernel_size": (3, 5),
        "stride": (1, 2),
        "padding": (1, 2),
        "padding_mode": mode,
        "dtype": torch.float64,
    }
    ours = DepthwiseConv2d(4, **geometry, multiplier=multiplier, activation=activation)
    torchs = nn.Conv2d(4, 4 * multiplier, **geometry, groups=4)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in torchs.state_dict().items()}
    ours.load_state_dict(torchs.state_dict())
    function = ACTIVATIONS[activation]
    assert_same(ours, nn.Sequential(torchs, function), 4 * torch.randn(2, 4, 9, 8, dtype=torch.float64))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_grouped_conv2d_is_a_convolution_and_an_activation(activation, mode):
    geometry = {"kernel_size": (3, 5), "stride": (1, 2), "padding": (1, 2), "groups": 2, "padding_mode": mode}
    ours = GroupedConv2d(4, 6, **geometry, activation=activation, dtype=torch.float64)
    torchs = nn.Conv2d(4, 6, **geometry, dtype=torch.float64)
    ours.load_state_dict(torchs.state_dict())
    x = 4 * torch.randn(2, 4, 9, 8, dtype=torch.float64)
    assert_same(ours, nn.Sequential(torchs, ACTIVATIONS[activation]), x)
    assert (f"activation={activation}" in repr(ours)) == (activation is not None)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("kind", [GroupedConv2d, DepthwiseConv2d, PackedConv2d])
@pytest.mark.parametrize(("padding", "stride"), [((0, 1, 2, 3), 2), ([0, 0, 1, 1], 1), ((1, 2, 1, 2), 1)])
def test_padding_by_four_numbers_is_zeros_laid_around_before(kind, padding, stride, layout):
    channels = (4,) if kind is DepthwiseConv2d else (4, 6)
    ours = kind(*channels, 3, stride, padding, dtype=torch.float64)
    torchs = nn.Conv2d(4, ours.out_channels, 3, stride, groups=ours.groups, dtype=torch.float64)
    torchs.load_state_dict(ours.state_dict())
    top, left, bottom, right = padding
    laid = nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), torchs)
    assert_same(ours, laid, torch.randn(2, 4, 9, 8, dtype=torch.float64).contiguous(memory_format=layout))
    assert f"padding={tuple(padding)}" in repr(ours)


# Of 3 columns a pair of strides of 2 needs a zero on both sides, of 4 only the one after the last.
@pytest.mark.parametrize("kind", [GroupedConv2d, DepthwiseConv2d, PackedConv2d])
@pytest.mark.parametrize(("columns", "expected"), [(3, [3, 5]), (4, [6, 7]), (1, [1])])
def test_same_padding_of_strides_by_hand(kind, columns, expected):
    ours = kind(*([1] if kind is DepthwiseConv2d else [1, 1]), (1, 3), 2, "same", bias=False)
    nn.init.ones_(ours.weight)
    assert ours(torch.arange(1.0, columns + 1).view(1, 1, 1, -1)).flatten().tolist() == expected


def test_depthwise_conv2d_by_hand():
    layer = DepthwiseConv2d(2, 2, multiplier=2, activation="relu")
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -1.0, 2.0, 0.5]).view(4, 1, 1, 1))
        layer.bias.copy_(torch.tensor([0.0, 1.0, 0.0, -1.0]))
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 2, 2, 2) * torch.tensor([1.0, 0.1]).view(2, 1, 1)
    assert layer(x).flatten().tolist() == [10.0, 0.0, 2.0, 0.0]
    assert "activation=relu" in repr(layer)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(1, 4, 5, 7), (2, 4, 5, 7), (1, 4, 1, 1), (4, 5, 7), (0, 4, 5, 7)], ids=str)
def test_pointwise_conv2d_is_torchs(shape, layout):
    ours, torchs = PackedConv2d(4, 6, 1, dtype=torch.float64), nn.Conv2d(4, 6, 1, dtype=torch.float64)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    x = x.contiguous(memory_format=layout) if x.dim() == 4 else x
    assert_same(ours, torchs, x)
    if x.dim() == 4:
        assert ours(x).is_contiguous(memory_format=layout) == torchs(x).is_contiguous(memory_format=layout)


LAYERS = [
    lambda: Conv2d(4, 4, 3, groups=4, padding=1),
    lambda: DepthwiseConv2d(4, 3, padding=1, multiplier=2, activation="silu"),
    lambda: GroupedConv2d(4, 6, 3, padding=1, groups=2, activation="relu6"),
    lambda: PackedConv2d(4, 6, 1),
]


@pytest.mark.parametrize("build", LAYERS, ids=["Conv2d", "DepthwiseConv2d", "GroupedConv2d", "PackedConv2d"])
def test_layers_copy_pickle_compile_and_export(build):
    layer, x = build(), torch.randn(1, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    expected = layer(x)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.compile(layer, fullgraph=True, backend="aot_eager"),
        torch.export.export(layer, (x,)).module(),
    ):
        torch.testing.assert_close(other(x), expected)


@pytest.mark.parametrize(
    "wrong",
    [torch.ones(1, 3, 6, 6), torch.ones(1, 2, 6, 6), torch.ones(6, 6), torch.ones(1, 4, 6, 6).double()],
    ids=["channels", "half", "dimensions", "type"],
)
def test_a_wrong_input_gets_torchs_error(wrong):
    wrong = wrong.contiguous(memory_format=torch.channels_last) if wrong.dim() == 4 else wrong
    for ours, torchs in (
        (Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4)),
        (GroupedConv2d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 3, groups=2)),
        (PackedConv2d(4, 6, 1), nn.Conv2d(4, 6, 1)),
    ):
        assert error_of(ours, wrong) == error_of(torchs, wrong)
    with pytest.raises(RuntimeError):
        DepthwiseConv2d(4, 3)(wrong)


def test_wrong_arguments_are_refused_when_the_layer_is_made():
    with pytest.raises(ValueError, match="activation must be one of"):
        DepthwiseConv2d(4, 3, activation="gelu")
    with pytest.raises(ValueError, match="activation must be one of"):
        GroupedConv2d(4, 6, 3, groups=2, activation="gelu")
    with pytest.raises(ValueError, match="expected a padding that is not negative"):
        PackedConv2d(4, 6, 3, padding=(1, 1, -1, 1))
    with pytest.raises(ValueError, match="padding='same' is not supported for strided"):
        GroupedConv2d(4, 6, 3, 2, "same", padding_mode="reflect")
    with pytest.raises(ValueError, match="padding_mode"):
        DepthwiseConv2d(4, 3, padding_mode="mirror")
    with pytest.raises(ValueError, match="groups"):
        Conv2d(4, 6, 3, groups=4)


def test_layers_run_the_op():
    x = torch.ones(1, 4, 5, 5)
    fastnets.backend_report(reset=True)
    with torch.inference_mode():
        Conv2d(4, 4, 3, groups=4)(x)
        DepthwiseConv2d(4, 3)(x)
        Conv2d(4, 4, 3, groups=2)(x)
        GroupedConv2d(4, 4, 3, groups=2)(x)
        Conv2d(4, 4, 3)(x)
    assert sum(fastnets.backend_report()["grouped_conv2d"]["calls"].values()) == 2
    assert sum(fastnets.backend_report()["depthwise_conv2d"]["calls"].values()) == 2


def test_autocast_as_torchs():
    ours = Conv2d(4, 4, 3, groups=4)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(torch.ones(1, 4, 5, 5))
        assert y.dtype == F.conv2d(torch.ones(1, 4, 5, 5), ours.weight, groups=4).dtype == torch.bfloat16

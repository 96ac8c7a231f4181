"""The shuffle layers: drop-in for torch.nn's, in numbers and in every other respect."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from edges import error_of
from torch import nn

from fastnets.layers import ChannelShuffle, PixelShuffle, PixelUnshuffle

PAIRS = [(ChannelShuffle, nn.ChannelShuffle), (PixelShuffle, nn.PixelShuffle), (PixelUnshuffle, nn.PixelUnshuffle)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("ours, theirs", PAIRS)
def test_is_torchs(ours, theirs, layout):
    results = []
    for layer in (ours(2), theirs(2)):
        x = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
        y = layer(x.requires_grad_())
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
        assert y.stride() == theirs(2)(x).stride() and x.grad.stride() == x.stride()
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("ours, theirs", PAIRS)
def test_copies_and_prints_like_torchs(ours, theirs):
    layer = ours(2)
    assert isinstance(layer, theirs) and repr(layer) == repr(theirs(2)) and not layer.state_dict()
    x = torch.randn(1, 8, 4, 4)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), theirs(2)(x))


@pytest.mark.parametrize("ours, theirs", PAIRS)
def test_raises_what_torchs_raises(ours, theirs):
    x = torch.ones(1, 8, 4, 4)
    assert error_of(ours(3), x) == error_of(theirs(3), x)


@pytest.mark.parametrize("ours, theirs", PAIRS)
def test_compiles_and_exports(ours, theirs):
    layer, x = ours(2), torch.randn(1, 8, 4, 4)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), theirs(2)(x))
    assert torch.equal(torch.export.export(layer, (x,), strict=False).module()(x), theirs(2)(x))


def test_the_exporter_that_traces_gets_standard_operators():
    onnx = pytest.importorskip("onnx")
    file, x = io.BytesIO(), torch.randn(1, 8, 3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(nn.Sequential(ChannelShuffle(2), PixelShuffle(2)).eval(), (x,), file, dynamo=False)
    assert {node.domain for node in onnx.load_from_string(file.getvalue()).graph.node} == {""}

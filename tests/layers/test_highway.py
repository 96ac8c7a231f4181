"""The highway layer against the equations of the paper."""

from __future__ import annotations

import torch

from fastnets.layers import HighwayConv2d


def test_the_gate_mixes_what_is_computed_with_the_input():
    torch.manual_seed(0)
    layer = HighwayConv2d(4, 1).double()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    pixels = x.movedim(1, -1)
    y = (pixels @ layer.conv.weight[:, :, 0, 0].T + layer.conv.bias).clamp(min=0)
    g = 1 / (1 + torch.exp(-(pixels @ layer.gate.weight[:, :, 0, 0].T + layer.gate.bias)))
    torch.testing.assert_close(layer(x), (g * y + (1 - g) * pixels).movedim(-1, 1))


def test_a_closed_gate_passes_the_input_on_and_an_open_one_the_layer():
    x = torch.randn(1, 4, 5, 5)
    closed, opened = HighwayConv2d(4, 3, gate_bias=-1000), HighwayConv2d(4, 3, gate_bias=1000)
    assert torch.equal(closed(x), x)
    assert torch.equal(opened(x), torch.relu(opened.conv(x)))


def test_new_gates_are_mostly_closed():
    assert (HighwayConv2d(4, 3).gate.bias < 0).all()

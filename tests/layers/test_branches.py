"""Branches side by side: what is joined, in which order, under which names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastnets.layers import Branches, ConvNormActivation, Mixed
from fastnets.layers.branches import chain, numbered


def test_outputs_are_joined_in_the_order_of_the_branches():
    x = torch.randn(2, 3, 5, 4)
    y = Branches(same=nn.Identity(), negative=nn.Threshold(9, -1), pool=nn.MaxPool2d(3, 1, 1))(x)
    assert torch.equal(y, torch.cat([x, torch.full_like(x, -1), nn.functional.max_pool2d(x, 3, 1, 1)], 1))


def test_chains_become_layers_or_rows_of_layers():
    pool = nn.AvgPool2d(3, 1, 1)
    named = numbered(8, [(4, 1)], [(4, 1), (6, 3, 2, 0)], [pool, (5, 1)], first=1)
    assert [*named] == ["branch1", "branch2", "branch3"]
    assert isinstance(named["branch1"], ConvNormActivation) and named["branch3"][0] is pool
    assert named["branch2"](torch.zeros(1, 8, 7, 7)).shape == (1, 6, 3, 3)
    assert named["branch3"](torch.zeros(1, 8, 7, 7)).shape == (1, 5, 7, 7)


@pytest.mark.parametrize("last", [nn.ReLU, nn.Identity])
def test_only_the_last_activation_can_be_erased(last):
    layers = chain(3, (4, 1), (4, 1), last_activation=last)
    assert [type(layer.act) for layer in layers] == [nn.ReLU, last]


def test_forks_see_the_same_input():
    block = Mixed(3, first=0, a=[(4, 1), [(2, 1), (2, 1)]], b=[nn.Identity()]).eval()
    assert [name for name, _ in block.named_children()] == ["a_0", "a_1a", "a_1b", "b"]
    x = torch.randn(2, 3, 4, 4)
    a = block.a_0(x)
    assert torch.equal(block(x), torch.cat([block.a_1a(a), block.a_1b(a), x], 1))

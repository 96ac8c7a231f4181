"""Res2Net: the cascade of its block, and dilation as in timm."""

from __future__ import annotations

import pytest
import torch
from peers import difference, import_peer, settle

from fastnets.models import create_model
from fastnets.models.res2net import Res2Bottleneck


@pytest.mark.parametrize(("in_channels", "cascade"), [(256, True), (64, False)], ids=["cascade", "first"])
def test_each_part_reads_those_before_it_but_in_the_first_block_of_a_stage(in_channels, cascade):
    block = settle(Res2Bottleneck(in_channels, 64, base_width=26, scale=4)).eval()
    parts: list[torch.Tensor] = []
    block.relu.register_forward_hook(lambda module, args, output: parts.append(output))
    block(torch.randn(1, in_channels, 6, 6, requires_grad=True))
    split, *results = parts[:4]  # of the first convolution, then of the three that are a cascade
    split.retain_grad()
    for i, result in enumerate(results):
        (gradient,) = torch.autograd.grad(result.sum(), split, retain_graph=True)
        read = [part.any().item() for part in gradient.split(26, 1)]
        assert read == [j <= i if cascade else j == i for j in range(4)]


def test_the_last_part_passes_unconvolved():
    block = settle(Res2Bottleneck(256, 64)).eval()
    seen: list[torch.Tensor] = []
    block.relu.register_forward_hook(lambda module, args, output: seen.append(output))
    block.conv3.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    block(torch.randn(1, 256, 5, 5))
    first, joined = seen[0], seen[4]
    assert torch.equal(joined[:, -26:], first[:, -26:])


@torch.inference_mode()
def test_dilation_is_timms():
    peer = settle(import_peer("timm").create_model("res2net50_26w_4s", output_stride=8)).eval()
    model = create_model("res2net50_26w_4s", replace_stride_with_dilation=(False, True, True)).eval()
    model.load_state_dict(peer.state_dict())
    x = torch.randn(1, 3, 96, 64)
    assert difference(model(x), peer(x)) < 1e-5

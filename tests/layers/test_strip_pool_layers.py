"""SPNet's modules: the authors' parameter names, the published computation, training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fastnets.layers import SPBlock, StripPooling

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# name, output and input channels of a module for 1024 channels, kernel (models/customize.py of SPNet)
CONVOLUTIONS = [
    ("conv1_1", 256, 1024, (1, 1)), ("conv1_2", 256, 1024, (1, 1)), ("conv2_0", 256, 256, (3, 3)),
    ("conv2_1", 256, 256, (3, 3)), ("conv2_2", 256, 256, (3, 3)), ("conv2_3", 256, 256, (1, 3)),
    ("conv2_4", 256, 256, (3, 1)), ("conv2_5", 256, 256, (3, 3)), ("conv2_6", 256, 256, (3, 3)),
    ("conv3", 1024, 512, (1, 1)),
]  # fmt: skip


def test_parameters_are_those_of_the_authors():
    expected = {}
    for name, out, c, kernel in CONVOLUTIONS:
        expected[f"{name}.0.weight"] = (out, c, *kernel)
        expected |= {f"{name}.1.{n}": () if n.endswith("tracked") else (out,) for n in NORM}
    assert {k: tuple(v.shape) for k, v in StripPooling(1024).state_dict().items()} == expected


def published(m, x):
    """The module in PyTorch's ops, every average spread over the map by interpolation."""
    h, w = x.shape[2:]

    def spread(conv, x, size):
        return F.interpolate(conv(F.adaptive_avg_pool2d(x, size)), (h, w), mode="bilinear", align_corners=True)

    x1, x2 = m.conv1_1(x), m.conv1_2(x)
    squares = m.conv2_0(x1) + spread(m.conv2_1, x1, m.pool_size[0]) + spread(m.conv2_2, x1, m.pool_size[1])
    strips = spread(m.conv2_3, x2, (1, None)) + spread(m.conv2_4, x2, (None, 1))
    both = torch.cat([m.conv2_5(F.relu(squares)), m.conv2_6(F.relu(strips))], 1)
    return F.relu(x + m.conv3(both))


def test_computes_what_was_published():
    torch.manual_seed(0)
    m = StripPooling(16, (5, 3))
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 16, 13, 18).contiguous(memory_format=layout)
        torch.testing.assert_close(m(x), published(m, x), rtol=1e-4, atol=1e-4)
    assert "pool_size=(5, 3)" in repr(m)


def test_another_norm_and_training():
    torch.manual_seed(0)
    m = StripPooling(16, (5, 3), lambda c: nn.GroupNorm(1, c)).double()
    x = torch.randn(1, 16, 9, 11, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad(f(x).square().sum(), list(m.parameters())) for f in (m, lambda x: published(m, x))
    )
    torch.testing.assert_close(ours, theirs)


def test_parameters_of_the_block_are_those_of_the_authors():
    """models/resnet.py of SPNet."""
    convs = {"conv1": (6, 8, 3, 1), "conv2": (6, 8, 1, 3), "conv3": (6, 6, 1, 1)}
    expected = {f"{name}.weight": size for name, size in convs.items()} | {"conv3.bias": (6,)}
    expected |= {f"{bn}.{n}": () if n.endswith("tracked") else (6,) for bn in ("bn1", "bn2") for n in NORM}
    assert {k: tuple(v.shape) for k, v in SPBlock(8, 6).state_dict().items()} == expected


def published_block(m, x):
    h, w = x.shape[2:]
    rows = m.bn1(m.conv1(F.adaptive_avg_pool2d(x, (None, 1)))).expand(-1, -1, h, w)
    columns = m.bn2(m.conv2(F.adaptive_avg_pool2d(x, (1, None)))).expand(-1, -1, h, w)
    return m.conv3(F.relu(rows + columns)).sigmoid()


def test_block_computes_what_was_published():
    torch.manual_seed(0)
    m = SPBlock(8, 6)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 8, 13, 18).contiguous(memory_format=layout)
        torch.testing.assert_close(m(x), published_block(m, x), rtol=1e-4, atol=1e-5)


def test_block_with_another_norm_and_training():
    torch.manual_seed(0)
    m = SPBlock(4, 6, lambda c: nn.GroupNorm(1, c)).double()
    x = torch.randn(1, 4, 9, 11, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad(f(x).square().sum(), list(m.parameters())) for f in (m, lambda x: published_block(m, x))
    )
    torch.testing.assert_close(ours, theirs)

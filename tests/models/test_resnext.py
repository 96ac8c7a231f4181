"""ResNeXt: the three forms of its block that the notes call equivalent are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from peers import settle
from torch import Tensor, nn

from fastnets.layers import Bottleneck

GROUPS, WIDTH = 8, 4


def normalise(x: Tensor, norm: nn.BatchNorm2d, part: slice = slice(None)) -> Tensor:
    mean, variance = (None, None) if norm.training else (norm.running_mean[part], norm.running_var[part])
    return F.batch_norm(x, mean, variance, norm.weight[part], norm.bias[part], norm.training, eps=norm.eps)


def path(block: Bottleneck, x: Tensor, part: slice) -> Tensor:
    """What one group makes of the input: a bottleneck of ``WIDTH`` channels of its own, up to its 3×3 convolution."""
    y = normalise(F.conv2d(x, block.conv1.weight[part]), block.bn1, part).relu()
    y = F.conv2d(y, block.conv2.weight[part], stride=block.conv2.stride, padding=1)
    return normalise(y, block.bn2, part).relu()


def aggregated(block: Bottleneck, x: Tensor) -> Tensor:
    """The first form: the paths are whole bottlenecks, and their outputs are added."""
    outputs = [F.conv2d(path(block, x, part), block.conv3.weight[:, part]) for part in PARTS]
    return normalise(torch.stack(outputs).sum(0), block.bn3)


def concatenated(block: Bottleneck, x: Tensor) -> Tensor:
    """The second form: the paths end before the last convolution, which is one for all."""
    return normalise(F.conv2d(torch.cat([path(block, x, part) for part in PARTS], 1), block.conv3.weight), block.bn3)


PARTS = [slice(i * WIDTH, (i + 1) * WIDTH) for i in range(GROUPS)]


@pytest.mark.parametrize("form", [aggregated, concatenated])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_three_forms_of_the_notes_are_one(form, training, stride):
    torch.manual_seed(0)
    block = settle(Bottleneck(48, 64, stride, groups=GROUPS, base_width=WIDTH)).double().train(training)
    assert block.conv2.weight.shape == (GROUPS * WIDTH, WIDTH, 3, 3)
    results = []
    for residual in (block.residual, lambda x: form(block, x)):
        x = torch.randn(2, 48, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = residual(x)
        parameters = [p for name, p in block.named_parameters() if not name.startswith("downsample")]
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *parameters])])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())

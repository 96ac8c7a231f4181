"""NASNet-A beyond the numbers of timm: scheduled drop path, and pooling at the border."""

from __future__ import annotations

import pytest
import torch

from fastnets.layers import DropPath, schedule_drop_path
from fastnets.models import create_model
from fastnets.models.nasnet import HalvingAvgPool, HalvingMaxPool, NASNet


def probabilities(network: torch.nn.Module) -> list[float]:
    return [module.probability for module in network.modules() if isinstance(module, DropPath)]


def test_paths_are_dropped_in_proportion_to_depth():
    with torch.device("meta"):
        network = create_model("nasnetalarge", drop_path=0.3)
    cells = 2 + 18 + 2  # of the stem, normal, reduction
    assert probabilities(network) == pytest.approx([0.3 * depth / cells for depth in range(1, cells + 1)])
    with torch.device("meta"):
        assert probabilities(create_model("nasnetalarge")) == []


def test_at_the_start_of_the_schedule_nothing_is_dropped():
    torch.manual_seed(0)
    network = NASNet(cells=1, channels=8, stem=8, num_classes=3, drop_path=0.9)
    x = torch.randn(4, 3, 64, 64)
    outputs = []
    for progress in (0, 0, 1, 1):
        schedule_drop_path(network, progress)
        outputs.append(network(x))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[2], outputs[3])


@pytest.mark.parametrize("size", [6, 7])
def test_pooling_at_stride_2_as_tensorflow_pads(size):
    x = torch.arange(1.0, size + 1).expand(1, 1, size, size)  # every row counts from 1
    # The windows over columns: from the first pixel if the size is even, from one before it if it is odd.
    windows = [(1, 2, 3), (3, 4, 5), (5, 6)] if size == 6 else [(1, 2), (2, 3, 4), (4, 5, 6), (6, 7)]
    assert HalvingMaxPool()(x)[0, 0, 0].tolist() == [max(w) for w in windows]
    means = [sum(w) / len(w) for w in windows]
    torch.testing.assert_close(HalvingAvgPool(count_padding=False)(x)[0, 0], torch.tensor([means] * len(windows)))
    counted = HalvingAvgPool(count_padding=True)(x)[0, 0, 1]  # a row away from the upper border
    torch.testing.assert_close(counted, torch.tensor([sum(w) / 3 for w in windows]))

"""PrecisionGateConv2d: it learns, calibrates its scale, and reports its density."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastnets.layers import PrecisionGateConv2d
from fastnets.ops import precision_gate_conv2d


def photographs(size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of three photographs, and which of them each is from."""
    skimage = pytest.importorskip("skimage")
    image = pytest.importorskip("PIL.Image")
    data, patches, labels = Path(skimage.__file__).parent / "data", [], []
    for label, name in enumerate(("chelsea.png", "coffee.png", "rocket.jpg")):
        pixels = torch.frombuffer(
            bytearray(image.open(data / name).convert("RGB").resize((160, 96)).tobytes()), dtype=torch.uint8
        )
        whole = pixels.view(96, 160, 3).permute(2, 0, 1).float() / 255
        tiles = whole.unfold(1, size, size).unfold(2, size, size).permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size)
        patches.append(tiles)
        labels += [label] * len(tiles)
    return torch.cat(patches), torch.tensor(labels)


@pytest.mark.parametrize("sparse", (False, True))
def test_a_network_learns_from_photographs(sparse):
    torch.manual_seed(0)
    x, labels = photographs()
    network = nn.Sequential(
        PrecisionGateConv2d(3, 16, 3, 2, 1, target=0.5, sparse_backward=sparse), nn.BatchNorm2d(16), nn.ReLU(),
        PrecisionGateConv2d(16, 32, 3, 2, 1, groups=2, target=0.5, sparse_backward=sparse), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    layers = [m for m in network if isinstance(m, PrecisionGateConv2d)]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(network(x), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss + sum(layer.penalty(1e-3) for layer in layers)).backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    for layer in layers:
        assert layer.threshold.abs().min() > 0  # every threshold has moved
        assert 0 < layer.density < 1
    with torch.no_grad():
        assert network.eval()(x).isfinite().all()


def test_penalty_pulls_thresholds_to_the_target():
    layer = PrecisionGateConv2d(2, 4, 1, target=3.0)
    layer.penalty(0.5).backward()
    assert layer.penalty(0.5) == 18 and layer.threshold.grad.tolist() == [-3.0] * 4


def test_scale_is_the_largest_in_training_and_frozen_in_evaluation():
    layer = PrecisionGateConv2d(2, 4, 1)
    assert layer.eval()(torch.ones(1, 2, 3, 3)).isnan().all()  # not calibrated
    layer.train()
    for largest, scale in ((2.0, 2.0), (5.0, 5.0), (3.0, 5.0)):
        layer(torch.full((1, 2, 3, 3), -largest))
        assert layer.scale == scale
    layer.eval()
    x = torch.randn(3, 2, 3, 3)
    x[2] = 100
    together = layer(x)
    assert layer.scale == 5
    for i in range(3):
        assert torch.equal(together[i : i + 1], layer(x[i : i + 1]))
    copy = PrecisionGateConv2d(2, 4, 1)
    copy.load_state_dict(layer.state_dict())
    assert torch.equal(copy.eval()(x), together)


def test_two_calls_before_one_backward():
    layer = PrecisionGateConv2d(2, 4, 1)
    (layer(torch.ones(1, 2, 3, 3)) + layer(2 * torch.ones(1, 2, 3, 3))).sum().backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("mode", ("zeros", "reflect"))
def test_passes_its_arguments_on(mode):
    kwargs = {"activation_bits": 6, "high_bits": 2, "weight_bits": 5}
    layer = PrecisionGateConv2d(4, 6, 3, 2, 1, 1, 2, padding_mode=mode, **kwargs)
    nn.init.normal_(layer.threshold)
    x = torch.randn(2, 4, 7, 7)
    y = layer(x)
    padded = F.pad(x, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    expected, density = precision_gate_conv2d(
        padded, layer.weight, layer.threshold, layer.bias, 2, 0, 1, 2, **kwargs, return_density=True
    )
    assert torch.equal(y, expected) and layer.density == density
    assert "high_bits=2" in repr(layer)


def test_compiles():
    torch._dynamo.reset()
    layer = PrecisionGateConv2d(4, 6, 3)
    x = torch.randn(2, 4, 7, 7)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x)) and layer.scale == x.abs().max()

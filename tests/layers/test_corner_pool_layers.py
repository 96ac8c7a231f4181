"""CornerPool, TopLeftCornerPool and BottomRightCornerPool: their op, the authors' parameter names, training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastnets.layers import BottomRightCornerPool, CornerPool, TopLeftCornerPool
from fastnets.ops import corner_pool

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# The parameters in the authors' code, of a module for 256 channels (models/py_utils/kp_utils.py of CornerNet).
SHAPES = {
    "p1_conv1.conv.weight": (128, 256, 3, 3),
    "p2_conv1.conv.weight": (128, 256, 3, 3),
    "p_conv1.weight": (256, 128, 3, 3),
    "conv1.weight": (256, 256, 1, 1),
    "conv2.conv.weight": (256, 256, 3, 3),
    **{f"p1_conv1.bn.{n}": (128,) for n in NORM},
    **{f"p2_conv1.bn.{n}": (128,) for n in NORM},
    **{f"{norm}.{n}": (256,) for norm in ("p_bn1", "bn1", "conv2.bn") for n in NORM},
}


@pytest.mark.parametrize("layer", [TopLeftCornerPool, BottomRightCornerPool])
def test_parameters_are_those_of_the_authors(layer):
    state = {k: tuple(v.shape) for k, v in layer(256).state_dict().items()}
    assert state == {k: () if k.endswith("tracked") else s for k, s in SHAPES.items()}


@pytest.mark.parametrize("direction", ["top", "bottom", "left", "right"])
def test_corner_pool_is_its_op(direction):
    x = torch.randn(1, 2, 5, 6)
    assert torch.equal(CornerPool(direction)(x), corner_pool(x, direction))
    assert direction in repr(CornerPool(direction))


def test_unknown_direction():
    with pytest.raises(ValueError, match="direction must be one of"):
        CornerPool("up")


@pytest.mark.parametrize(
    ("layer", "directions"), [(TopLeftCornerPool, ("top", "left")), (BottomRightCornerPool, ("bottom", "right"))]
)
def test_what_the_paper_draws(layer, directions):
    torch.manual_seed(0)
    m = layer(6, 4).eval()
    for norm in m.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm.running_mean)
            torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 9, 8)

    def block(name, x):
        return F.relu(getattr(m, name).bn(F.conv2d(x, getattr(m, name).conv.weight, padding=1)))

    vertical, horizontal = (
        corner_pool(block(n, x), d) for n, d in zip(("p1_conv1", "p2_conv1"), directions, strict=True)
    )
    y = m.p_bn1(F.conv2d(vertical + horizontal, m.p_conv1.weight, padding=1))
    expected = block("conv2", F.relu(y + m.bn1(F.conv2d(x, m.conv1.weight))))
    torch.testing.assert_close(m(x), expected)


def test_trains_in_both_layouts():
    torch.manual_seed(0)
    m, x = TopLeftCornerPool(6, 4), torch.randn(2, 6, 9, 8)
    grads = []
    for layout in (torch.contiguous_format, torch.channels_last):
        m.zero_grad()
        m(x.contiguous(memory_format=layout)).square().sum().backward()
        grads.append([p.grad.clone() for p in m.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)
    assert all(g.any() for g in grads[0])

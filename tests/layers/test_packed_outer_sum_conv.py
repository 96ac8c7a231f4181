"""PackedOuterSumConv2d: when the kernel runs, and that it computes what its steps do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastnets
from fastnets.layers import PackedConv2d, PackedOuterSumConv2d


def image(*size, seed=1):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).contiguous(
        memory_format=torch.channels_last
    )


def layer(activation="sigmoid"):
    torch.manual_seed(0)
    return PackedOuterSumConv2d(PackedConv2d(12, 10, 1, activation=activation)).eval().requires_grad_(False)


def in_steps(m, rows, columns, factor=None):
    y = m.conv(F.relu(rows + columns))
    return y if factor is None else y * factor


STRIPS = image(2, 12, 4, 1), image(2, 12, 1, 5, seed=2)


@pytest.mark.parametrize("conv", [PackedConv2d(4, 4, 3), PackedConv2d(4, 4, 1, stride=2), torch.nn.Conv2d(4, 4, 1)])
def test_other_convolutions_are_refused(conv):
    with pytest.raises(ValueError, match="expected a pointwise convolution"):
        PackedOuterSumConv2d(conv)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("factor", (None, image(2, 10, 4, 5)), ids=("gate", "gated"))
def test_runs_on_the_kernel(cpu_kernels, dtype, factor):
    m = layer().to(dtype)
    given = [None if t is None else t.to(dtype) for t in (*STRIPS, factor)]
    fastnets.backend_report(reset=True)
    y = m(*given)
    assert fastnets.backend_report(reset=True)["outer_sum_conv2d"]["calls"] == {"cpu": 1}
    assert y.dtype == dtype
    torch.testing.assert_close(y, in_steps(m, *given))


@pytest.mark.parametrize(
    "given",
    [
        [t.double() for t in STRIPS],
        [image(2, 12, 4, 5).contiguous(), image(2, 12, 1, 5)],
        [image(2, 12, 4, 1), image(2, 12, 4, 5)],
        [image(1, 12, 4, 1), image(2, 12, 1, 5)],
        [image(2, 12, 4, 1), image(2, 1, 1, 5)],
        [image(0, 12, 4, 1), image(0, 12, 1, 5)],
        [*STRIPS, image(2, 10, 4, 5).contiguous()],
        [*STRIPS, image(2, 10, 1, 1)],
        [*STRIPS, image(2, 10, 4, 5).double()],
    ],
    ids=["float64", "no strip", "an image", "one image", "one channel", "no images",
         "factor of another layout", "factor for each channel", "factor of another type"],
)  # fmt: skip
def test_the_rest_runs_in_turn(given):
    m = layer().to(given[0].dtype)
    fastnets.backend_report(reset=True)
    y = m(*given)
    assert "outer_sum_conv2d" not in fastnets.backend_report(reset=True)
    torch.testing.assert_close(y, in_steps(m, *given))


def test_what_is_packed_follows_the_weights():
    m = layer()
    m(*STRIPS)
    for p in m.parameters():
        p.add_(0.5)
        torch.testing.assert_close(m(*STRIPS), in_steps(m, *STRIPS))


def test_gradients_and_tracing():
    m = layer().requires_grad_(True)
    m(*STRIPS).sum().backward()
    assert all(p.grad is not None for p in m.parameters())
    m.requires_grad_(False)
    torch.testing.assert_close(torch.compile(m, fullgraph=True, backend="aot_eager")(*STRIPS), m(*STRIPS))
    torch.testing.assert_close(torch.export.export(m, STRIPS).module()(*STRIPS), m(*STRIPS))

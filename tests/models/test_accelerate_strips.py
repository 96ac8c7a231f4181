"""Strips of images in accelerate, as SPNet's authors and fastnets spell them, and where they must stay as they are."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from peers import Branch, check_plan, difference, settle
from torch import nn

import fastnets
from fastnets import accelerate
from fastnets.layers import PackedOuterSumConv2d, SPBlock, StripPooling
from fastnets.ops import strip_pool


def strips(**more):
    norm = lambda *kernel: nn.Sequential(
        nn.Conv2d(8, 8, kernel, padding=[k // 2 for k in kernel], bias=False), nn.BatchNorm2d(8)
    )
    return {
        "rows": nn.AdaptiveAvgPool2d((None, 1)),
        "columns": nn.AdaptiveAvgPool2d((1, None)),
        "down": norm(3, 1),
        "along": norm(1, 3),
        "last": nn.Conv2d(8, 8, 1),
        **more,
    }


def published(m, x, spread):
    """SPBlock of the authors, with one way or the other to spread strips over the map."""
    _, _, h, w = x.size()
    return m.last(F.relu(spread(m.down(m.rows(x)), h, w) + spread(m.along(m.columns(x)), h, w))).sigmoid()


def expand(strip, h, w):
    return strip.expand(-1, -1, h, w)


def interpolate(strip, h, w):
    return F.interpolate(strip, (h, w), mode="bilinear", align_corners=True)


@torch.inference_mode()
def check(does, pools, sums, **more):
    """Accelerates a model, in which so many strip poolings and fused sums shall be; returns it."""
    for dtype, digits in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model = settle(Branch(does, **strips(**more))).to(dtype).eval()
        fast = accelerate(model)
        assert len(fast.graph.find_nodes(op="call_function", target=strip_pool)) == pools
        assert sum(isinstance(m, PackedOuterSumConv2d) for m in fast.modules()) == sums
        for n, h, w in ((1, 9, 9), (2, 7, 12), (1, 1, 5)):
            x = torch.randn(n, 8, h, w, dtype=dtype, generator=torch.Generator().manual_seed(n))
            check_plan(fast, model, x, digits)
    return fast


@pytest.mark.parametrize("spread", (expand, interpolate))
@pytest.mark.parametrize(
    "does",
    [
        lambda m, x, spread: published(m, x, spread),
        lambda m, x, spread: x * published(m, x, spread),
        lambda m, x, spread: (y := F.relu(x)) * published(m, y, spread),
        lambda m, x, spread: torch.mul(published(m, x, spread), x),
    ],
    ids=["gate", "gated", "of a ReLU", "the other way round"],
)
def test_what_the_authors_wrote_is_one_pooling_and_one_kernel(does, spread):
    fast = check(lambda m, x: does(m, x, spread), 1, 1)
    targets = [str(getattr(node.target, "__name__", node.target)) for node in fast.graph.nodes]
    assert not {"expand", "interpolate", "add"} & {*targets}


def test_means_that_convolutions_read():
    both = lambda m, x: (m.down(x.mean(3, keepdim=True)), m.along(torch.mean(x, dim=2, keepdim=True)))
    check(lambda m, x: x * m.last(F.relu(operator.add(*both(m, x)))), 1, 1)
    check(lambda m, x: m.last(F.relu(x.mean(3, True) + m.along(x.mean(2, True)))), 0, 0)  # are they of an image?
    check(lambda m, x: m.last(F.relu(m.down(x.mean(3)[..., None]) + m.along(x.mean(2, True)))), 0, 0)


def test_ours():
    check(lambda m, x: x * m.block(x), 1, 1, block=SPBlock(8, 8))
    check(lambda m, x: x * m.block(m.down(x)), 1, 1, block=SPBlock(8, 8))  # of another image: the product stays
    check(lambda m, x: m.module(x), 1, 0, module=StripPooling(8, (3, 2)))


def test_strips_that_no_pointwise_convolution_reads_are_added_without_being_spread():
    fast = check(lambda m, x: m.wide(F.relu(spread_of(m, x))), 1, 0, wide=nn.Conv2d(8, 8, 3, padding=1))
    assert not fast.graph.find_nodes(op="call_function", target=F.interpolate)


def spread_of(m, x):
    """The sum in the authors' other module, of an image that a convolution makes."""
    y, size = m.last(x), x.shape[2:]
    return F.interpolate(m.along(m.columns(y)), size) + F.interpolate(m.down(m.rows(y)), size=size)


STRIDES = nn.Conv2d(8, 8, (3, 1), (2, 1), (1, 0))


@pytest.mark.parametrize(
    ("pools", "does"),
    [
        (0, lambda m, x: m.last(F.relu(expand(m.down(m.rows(x)), x.size(2), x.size(3))))),
        (0, lambda m, x: m.last(F.relu(m.rows(x) + m.columns(F.relu(x))))),
        (0, lambda m, x: m.last(F.relu(m.rows(x) + x.mean(2, keepdim=True)))),
        (0, lambda m, x: m.last(F.relu(m.rows(x) + m.columns(F.relu(x) + 1)))),
        (0, lambda m, x: m.last(F.relu(F.interpolate(m.rows(x), (9, 12)) + F.interpolate(x, (9, 12))))),
        (0, lambda m, x: m.last(F.relu(input=m.rows(x) + x))),
        (1, lambda m, x: m.last(F.relu(m.rows(x) + m.columns(x) + 1))),
        (1, lambda m, x: m.last(F.silu(m.rows(x) + m.columns(x)))),
        (1, lambda m, x: m.last(F.relu(torch.add(m.rows(x), m.columns(x), alpha=2)))),
        (1, lambda m, x: m.last(F.relu(m.rows(x) - m.columns(x)))),
        (1, lambda m, x: m.last(F.relu(s := m.rows(x) + m.columns(x))) + s),
        (1, lambda m, x: m.last(F.relu(interpolate(m.rows(x), 20, 30) + interpolate(m.columns(x), 20, 30)))),
        (1, lambda m, x: m.last(F.relu(F.interpolate(m.thin(m.rows(x)), x.shape[2:]) + m.columns(x)))),
    ],
)
def test_other_sums_stay(pools, does):
    check(does, pools, 0, thin=STRIDES)


def test_more_that_reads_the_sums_or_the_gate_gets_them():
    check(lambda m, x: F.silu(m.last(s := F.relu(m.rows(x) + m.columns(x)))) + s, 1, 0)
    check(lambda m, x: x * (g := published(m, x, expand)) + g, 1, 1)
    check(lambda m, x: 2 * published(m, x, expand), 1, 1)
    check(lambda m, x: published(m, x, expand) * x.size(2), 1, 1)


class Strips(nn.Module):
    def forward(self, x):
        return fastnets.ops.strip_pool(x)


def written_between_the_poolings(m, x):
    y = m.last(x)
    rows = m.rows(y)
    y += 1
    return m.last(F.relu(rows + m.columns(y)))


def written_before_the_sum_is_read(m, x):
    rows, columns = m.pool(m.last(x))
    rows, columns = m.down(rows), m.along(columns)
    total = rows + columns
    rows += 1
    return m.last(F.relu(total)) + rows


def test_images_and_strips_that_are_written_over_stay():
    check(written_between_the_poolings, 0, 0)
    check(written_before_the_sum_is_read, 1, 0, pool=Strips())


def test_hooks_are_called():
    model = settle(Branch(lambda m, x: published(m, x, expand), **strips())).eval()
    seen = []
    model.rows.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(1, 8, 5, 6)
    assert difference(accelerate(model)(x), model(x)) < 1e-5 and len(seen) == 2


def test_the_table_names_the_kernels(cpu_kernels, capsys):
    accelerate(settle(Branch(lambda m, x: x * published(m, x, expand), **strips())).eval(), verbose=True)
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "AdaptiveAvgPool2d  fastnets strip_pool" in rows["rows"] and "fastnets strip_pool" in rows["columns"]
    assert "fastnets outer_sum_conv2d  with sigmoid" in rows["last"]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.int8), ids=str)
def test_other_types(cpu_kernels, dtype):
    """In int8 the sums are in memory, as bytes: their products are four times as fast."""
    model = settle(Branch(lambda m, x: x * published(m, x, expand), **strips())).eval()
    x = torch.randn(2, 8, 9, 7)
    fast = accelerate(model, *[x] * (dtype == torch.int8), dtype=dtype)
    assert any(isinstance(m, PackedOuterSumConv2d) for m in fast.modules())
    for _ in range(3):
        assert difference(fast(x).float(), model(x)) < 0.02

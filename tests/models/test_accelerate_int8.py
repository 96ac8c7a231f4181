"""accelerate in int8: results near those in float32, bytes between layers that take them, and nowhere else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from peers import Branch, settle
from torch import nn

import fastnets
from fastnets.accelerate import accelerate
from fastnets.accelerate._int8 import _levels
from fastnets.layers import PackedConv2d, PackedInvertedResidual

LAST = torch.channels_last
# Of the results' size: 256 levels cost 1 % in these networks; where who stores bytes and who reads them are a quarter of a
# step, or 25 levels of zero, apart, it was 6 % and more in each layer.
NEAR = 0.03


def photos(n, size=33, seed=0):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def conv(c, o, size=3, act=None, **more):
    layers = nn.Conv2d(c, o, size, padding=size // 2, bias=False, **more), nn.BatchNorm2d(o)
    return nn.Sequential(*layers, act) if act else nn.Sequential(*layers)


def residuals(m, x):
    x = m.pool(m.stem(x))
    x = F.relu(m.b(m.a(x)) + x)
    x = F.relu(m.d(m.c(x)) + m.down(x))
    return m.fc(x.mean((2, 3)))


def inverted(m, x):
    x = m.first(m.stem(x))
    x = x + m.block(x)
    return m.fc(m.last(x).mean((2, 3)))


RESIDUALS = {
    "stem": conv(3, 16, 7, nn.ReLU(), stride=2), "pool": nn.MaxPool2d(3, 2, 1), "a": conv(16, 16, 3, nn.ReLU()),
    "b": conv(16, 16), "c": conv(16, 32, 3, nn.ReLU(), stride=2), "d": conv(32, 32), "down": conv(16, 32, 1, stride=2),
    "fc": nn.Linear(32, 10),
}  # fmt: skip
INVERTED = {
    "stem": conv(3, 16, 3, nn.ReLU6(), stride=2),
    "first": nn.Sequential(conv(16, 16, 3, nn.ReLU6(), groups=16), conv(16, 24, 1)),
    "block": nn.Sequential(conv(24, 96, 1, nn.ReLU6()), conv(96, 96, 3, nn.ReLU6(), groups=96), conv(96, 24, 1)),
    "last": conv(24, 64, 1, nn.ReLU6()), "fc": nn.Linear(64, 10),
}  # fmt: skip


def built(does, layers):
    return settle(Branch(does, **copy.deepcopy(layers))).eval().requires_grad_(False)


def share(y, exact):
    return ((y - exact).norm() / exact.norm()).item()


def check(model, example=None):
    """Of an accelerated copy that has seen one batch, results on another, in both layouts, planned and not."""
    fast = accelerate(model, photos(8) if example is None else example, dtype=torch.int8)
    for x in (photos(2, seed=1), photos(3, 41, seed=2)):
        exact = model(x)
        first = fast(x)
        assert 1e-4 < share(first, exact) < NEAR
        for layout in (torch.contiguous_format, LAST, LAST):
            assert torch.equal(fast(x.contiguous(memory_format=layout)), first)
    return fast


def stored(fast):
    """The convolutions that store bytes, by the name of the layer."""
    layers = {name: m for name, m in fast.named_modules() if isinstance(m, PackedConv2d)}
    return {name.split(".")[1] for name, layer in layers.items() if layer.result_levels is not None}


def test_residuals_and_maxima(cpu_kernels):
    fast = check(built(residuals, RESIDUALS))
    assert stored(fast) == {"stem_0", "a_0", "b_0", "c_0"}  # the last is averaged, and what it adds is of its type
    assert all(m.levels for m in fast.modules() if isinstance(m, PackedConv2d))


def test_inverted_residuals(cpu_kernels):
    fast = check(built(inverted, INVERTED))
    blocks = [m for m in fast.modules() if isinstance(m, PackedInvertedResidual)]
    assert len(blocks) == 2 and all(block.project.result_levels for block in blocks)
    assert blocks[0].levels and blocks[1].project.residual_levels == blocks[0].project.result_levels


def test_who_reads_a_number_is_given_numbers(cpu_kernels):
    """The second result is the first block's, which the next block adds: neither may be bytes."""

    def both(m, x):
        x = m.first(m.stem(x))
        y = x + m.block(x)
        return m.fc(m.last(y).mean((2, 3))), x.clone()

    model = built(both, INVERTED)
    fast, x = accelerate(model, photos(8), dtype=torch.int8), photos(2, seed=1)
    for y, exact in zip(fast(x), model(x), strict=True):
        assert y.dtype == torch.float32 and share(y, exact) < NEAR
    assert len(stored(fast)) == 1  # of the stem


def test_concatenations_squeezes_and_groups(cpu_kernels):
    def does(m, x):
        x = m.stem(x)
        x = torch.cat([m.one(x), m.three(x)], 1)
        x = m.last(m.grouped(x) * m.squeeze(x.mean((2, 3), keepdim=True)))
        return m.fc(x.mean((2, 3)))

    layers = {"stem": INVERTED["stem"], "one": conv(16, 24, 1, nn.ReLU()), "three": conv(16, 8, 3, nn.ReLU())}
    layers |= {"grouped": conv(32, 32, 3, nn.SiLU(), groups=4), "last": conv(32, 64, 1, nn.Hardswish())}
    squeeze = nn.Sequential(nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 1), nn.Sigmoid())
    check(built(does, {**layers, "squeeze": squeeze, "fc": nn.Linear(64, 10)}))


def test_a_part_that_cannot_be_traced(cpu_kernels):
    class Asks(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x) if x.sum() < torch.inf else x

    model = Asks(built(residuals, RESIDUALS)).eval()
    fast, x = accelerate(model, photos(8), dtype=torch.int8), photos(2, seed=1)
    assert 1e-4 < share(fast(x), model(x)) < NEAR


def test_copies_and_files(cpu_kernels):
    fast, x = accelerate(built(inverted, INVERTED), photos(4), dtype=torch.int8), photos(2, seed=1)
    y = fast(x)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        for _ in range(3):
            assert torch.equal(other(x), y)


@pytest.mark.parametrize(
    ("does", "layers"), ((residuals, RESIDUALS), (inverted, INVERTED)), ids=("residuals", "inverted")
)
def test_a_copy_in_int8_is_accelerated_again(cpu_kernels, does, layers):
    """Convolutions keep their levels, as the next one reads what a layer stores; asked for a type, they get others."""
    model, x = built(does, layers), photos(2, seed=1)
    fast = accelerate(model, photos(4), dtype=torch.int8)
    assert torch.equal(accelerate(fast)(x), fast(x))
    assert share(accelerate(fast, photos(4), dtype=torch.int8)(x), model(x)) < NEAR
    assert share(accelerate(fast, dtype=torch.float32)(x), model(x)) < 1e-5
    assert share(accelerate(fast, dtype=torch.bfloat16)(x).float(), model(x)) < NEAR


def test_without_kernels_it_is_float32():
    model = built(inverted, INVERTED)
    with fastnets.use_backend("reference"):
        fast = accelerate(model, photos(4), dtype=torch.int8)
        assert share(fast(photos(2)), model(photos(2))) < 1e-5


def test_what_it_loses_is_told(cpu_kernels, capsys):
    model, x = built(residuals, RESIDUALS), photos(8)
    fast = accelerate(model, x, dtype=torch.int8, verbose=True)
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if line.startswith("a.0 ") and "direct_conv2d in int8" in line]
    assert [line for line in told if line.startswith("fc ") and "pooled_linear in int8" in line]
    assert told[-1] == f"On the example int8 changes results by {share(fast(x), model(x)):.1%} (root mean square)."


def test_an_example_that_says_nothing(cpu_kernels):
    """Of zeros alone all levels but one are of no use; what is not finite, and what never ran, has none."""
    zeros = torch.zeros(1, 3, 33, 33)
    assert accelerate(built(residuals, RESIDUALS), zeros, dtype=torch.int8)(zeros).isfinite().all()
    assert _levels([]) is _levels([0.0, torch.nan]) is _levels([-torch.inf, 1.0]) is None


def test_wrong_types():
    model = built(inverted, INVERTED)
    with pytest.raises(ValueError, match="expects an example for int8"):
        accelerate(model, dtype=torch.int8)
    with pytest.raises(TypeError, match="floating dtype or int8, but got torch.int16"):
        accelerate(model, photos(1), dtype=torch.int16)

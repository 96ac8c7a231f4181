"""Accelerated copies of networks that write into memory, look at it in several ways, or spell calls otherwise."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from peers import Branch, difference, settle
from torch import nn

from fastnets.accelerate import accelerate
from fastnets.accelerate._proof import prove
from fastnets.layers import ChannelShuffle, PooledLinear


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (2, 8, 9, 9)), dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def check(does, *inputs, **layers) -> nn.Module:
    layers = layers or {"stem": nn.Conv2d(8, 8, 1), "conv": nn.Conv2d(8, 8, 1), "narrow": nn.Conv2d(4, 8, 1)}
    model = settle(Branch(does, **layers)).double().eval().requires_grad_(False)
    fast = accelerate(model)
    for x in inputs or (image(),):
        expected = model(x.clone())
        for _ in range(3):  # packs weights, is recorded, runs the plan
            assert difference(fast(x.clone()), expected) < 1e-12
    return fast


# ---- writing in place ------------------------------------------------------------------------


def after(write):
    """Adds two convolutions, the first of which reads what is written over before the second can be added."""

    def does(m, x):
        a = m.stem(x)
        b, d = m.conv(x), m.conv(a)
        write(a)
        return torch.cat((d + b, a))

    return does


WRITES = {
    "method": lambda a: a.mul_(2),
    "torch": lambda a: torch.relu_(a),
    "functional": lambda a: F.relu_(a),
    "inplace": lambda a: F.relu(a, inplace=True),
    "inplace by place": lambda a: F.hardtanh(a, -0.1, 0.1, True),
    "operator": lambda a: operator.imul(a, 2),
    "item": lambda a: operator.setitem(a, 0, 1.0),
    "out": lambda a: torch.mul(a, 2, out=a),
    "view": lambda a: a[:, :4].mul_(2),
    "view of a view": lambda a: torch.relu_(a.chunk(2, 1)[0].flatten(2)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_convolutions_stay_before_what_writes_over_their_input(write):
    check(after(write))


def sum_is_kept(m, x):
    (y := m.stem(x)).add_(m.conv(y))
    return y


def written_by_a_part(m, x):
    a = m.stem(x)
    b, d = m.conv(x), m.conv(a)
    m.part(a)
    return d + b


def source_is_a_view(m, x):
    other, y = m.conv(x), m.stem(x)
    d = m.narrow(y[:, :4])
    y.mul_(2)
    return d + other


def pooled_before(m, x):
    p = (y := m.stem(x)).mean((2, 3))
    y.mul_(2)
    return m.end(p)


def shuffled_before(m, x):
    n, c, h, w = (y := m.stem(x)).size()
    z = y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous()
    y.mul_(2)
    return z.view(n, c, h, w)


def concatenated_before(m, x):
    y = torch.cat((a := m.stem(x), m.conv(x)), 1)
    a.mul_(2)
    a, b = m.shuffle(y).chunk(2, 1)
    return a - b


PLACES = [sum_is_kept, written_by_a_part, source_is_a_view, pooled_before, shuffled_before, concatenated_before]


@pytest.mark.parametrize("does", PLACES)
def test_what_is_read_and_written_is_the_models(does):
    convs = {"stem": nn.Conv2d(8, 8, 1), "conv": nn.Conv2d(8, 8, 1), "narrow": nn.Conv2d(4, 8, 1)}
    hooked = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1))
    hooked.register_forward_hook(lambda module, args, output: None)
    check(does, **convs, end=nn.Linear(8, 3), shuffle=ChannelShuffle(2), part=hooked)


VIEWS = {
    "view": lambda y: y.view(y.shape[0], -1),
    "view of a part": lambda y: y[:1].view(-1),
    "reshape": lambda y: y.reshape(shape=(y.size(0), -1)),
    "flatten": lambda y: torch.flatten(y, 1),
    "contiguous": lambda y: y.contiguous(),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("made", [lambda m, x: m.stem(x), lambda m, x: F.interpolate(m.stem(x), scale_factor=2)])
def test_what_is_written_into_a_view_is_seen(view, made):
    check(lambda m, x: [y := made(m, x), view(y).mul_(2), y][2])


def test_a_sum_that_is_written_over_a_view_of_it():
    check(lambda m, x: [y := m.stem(x), v := y.view(y.shape[0], -1), y.add_(m.conv(x)), v][3])


GRADIENTS = {
    "relu": lambda m, x: F.relu(m.stem(x)) + x,
    "relu6": lambda m, x: F.relu6(m.stem(x)) + x,
    "sigmoid": lambda m, x: torch.sigmoid(m.stem(x)) + x,
    "max_pool2d": lambda m, x: F.silu(F.max_pool2d(m.stem(x), 1) + x),
    "relu of the sum": lambda m, x: F.relu(F.relu(m.stem(x)) + x),
    "silu of the sum": lambda m, x: F.silu(F.silu(m.stem(x)) + x),
}


@pytest.mark.parametrize("does", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("groups", [1, 8], ids=["pointwise", "depthwise"])
def test_gradients_reach_the_input_through_sums(does, groups):
    model = Branch(does, stem=nn.Conv2d(8, 8, 1, groups=groups)).double().eval()
    gradients = []
    for network in (model, accelerate(model)):
        x = image().requires_grad_()
        network(x).square().sum().backward()
        gradients.append(x.grad)
    assert difference(*reversed(gradients)) < 1e-12


# ---- other spellings -------------------------------------------------------------------------

LAYERS = {
    "stem": nn.Conv2d(8, 8, 1),
    "norm": nn.BatchNorm2d(8),
    "conv": nn.Conv2d(8, 8, 1),
    "pool": nn.AdaptiveAvgPool2d(1),
    "flat": nn.Flatten(),
    "end": nn.Linear(8, 3),
}
SPELLINGS = {
    "a size is added": lambda m, x: m.stem(x) + x.size(0),
    "reshape": lambda m, x: torch.reshape(input=m.stem(x), shape=(x.shape[0], -1)),
    "chunk": lambda m, x: (y := torch.chunk(input=m.stem(x), chunks=2, dim=1))[0] + y[1],
    "pool": lambda m, x: m.end(torch.flatten(m.pool(input=m.stem(x)), 1)),
    "flatten": lambda m, x: m.end(m.flat(input=m.pool(m.stem(x)))),
    "norm": lambda m, x: m.conv(F.relu(m.norm(input=x))),
    "size of a view": lambda m, x: m.stem(x).view(size=(x.shape[0], -1)),
    "view_as": lambda m, x: m.stem(x).view_as(x.flatten(1)),
    "as_strided": lambda m, x: m.stem(x).as_strided((2, 5), (3, 2), 1),
}


@pytest.mark.parametrize("does", SPELLINGS.values(), ids=SPELLINGS)
def test_other_spellings(does):
    check(does, **LAYERS)


@pytest.mark.parametrize(
    ("does", "shape", "features"),
    [
        (lambda m, x: m.end(x.mean((-2, -1))), (4, 8, 9), 4),
        (lambda m, x: m.end(x.mean((-2, -1))), (2, 4, 3, 8, 9), 3),
        (lambda m, x: m.end(x.mean((2, 3))), (2, 4, 8, 9, 5), 5),
        (lambda m, x: m.end(x.mean((2, 3), keepdim=True).flatten(1)), (2, 3, 8, 9, 2), 6),
        (lambda m, x: m.end(F.adaptive_avg_pool2d(x, 1).flatten(1)), (8, 9, 9), 1),
    ],
)
def test_ends_of_what_is_no_batch_of_images(does, shape, features):
    fast = check(does, image(*shape), end=nn.Linear(features, 3))
    assert any(isinstance(module, PooledLinear) for module in fast.modules())


def test_a_shuffle_of_rows():
    does = lambda m, x: operator.sub(*[m.shuffle(torch.cat((x, x + 1), 1)).chunk(2, 1)[i] for i in (0, 1)])
    check(does, image(2, 4, 7), shuffle=ChannelShuffle(2))


@pytest.mark.parametrize(("conv", "channels"), [(nn.Conv2d(1, 16, 3), 2), (nn.Conv2d(8, 8, 3, groups=8), 4)])
def test_other_numbers_of_channels_are_refused_as_by_the_model(conv, channels):
    for network in (conv, accelerate(nn.Sequential(conv).eval())):
        with pytest.raises(RuntimeError, match=rf"to have {conv.in_channels} channels, but got {channels} channels"):
            network(image(1, channels, 9, 9).float())


# ---- proof -----------------------------------------------------------------------------------


def test_results_that_are_not_finite_are_compared_too():
    masked = lambda m, x: m.conv(x).masked_fill(x < 0, -torch.inf).masked_fill(x > 2, torch.nan)
    model = Branch(masked, conv=nn.Conv2d(8, 8, 1)).double().eval()
    fast = accelerate(model, image())
    fast.get_submodule("convolutions.conv").bias[0] = torch.nan
    with pytest.raises(RuntimeError, match="result 0 differs from the model's by nan"):
        prove(model, fast, (image(),))

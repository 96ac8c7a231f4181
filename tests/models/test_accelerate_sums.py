"""Convolutions that accelerate adds up to one, BatchNorms behind concatenations, and where both must stay apart."""

from __future__ import annotations

import operator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from peers import Branch, build_peer, build_settled, check_plan, difference, import_peer, settle
from torch import nn

from fastnets.accelerate import accelerate

ADDS = (operator.add, operator.iadd, operator.sub, torch.add, "add", "add_")


def check(does, convs, adds, size=9, **layers):
    """Accelerates a model, in which so many convolutions and additions shall be left; returns it in float32.

    To 1e-12 in float64, where sums are of some hundred terms; to 1e-5 in float32, which rounds to 6e-8.
    """
    for dtype, digits in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model = settle(Branch(does, **layers)).to(dtype).eval().requires_grad_(False)
        fast = accelerate(model)
        assert (count_convolutions(fast), count_additions(fast)) == (convs, adds)
        for n in (1, 2):
            x = torch.randn(n, 8, size, size, dtype=dtype, generator=torch.Generator().manual_seed(n))
            check_plan(fast, model, x, digits)
    return fast


def count_convolutions(fast):
    return sum(isinstance(module, nn.Conv2d) for module in fast.modules())


def count_additions(fast):
    """Those that are left, be it in the store of a convolution."""
    residuals = sum(len(node.args) == 2 for node in fast.graph.nodes if node.op == "call_module")
    return residuals + sum(node.target in ADDS for node in fast.graph.nodes)


def branches(**more):
    norm = lambda conv: nn.Sequential(conv, nn.BatchNorm2d(8))
    layers = {"big": norm(nn.Conv2d(8, 8, 3, padding=1, bias=False)), "small": norm(nn.Conv2d(8, 8, 1))}
    return {**layers, "same": nn.BatchNorm2d(8), "gamma": nn.Parameter(torch.linspace(0.5, 1, 8).view(8, 1, 1)), **more}


def by_statements(m, x):
    y = m.small(x)
    y += m.big(x)
    y += m.same(x)
    return F.relu(y)


def from_zero(m, x):
    y = 0
    for branch in (m.small, m.big, m.same):
        y += branch(x)
    y += 0
    return y


SUMS = {
    "norm": lambda m, x: F.relu(m.small(x) + m.big(x) + m.same(x)),
    "order": lambda m, x: m.same(x) + (m.small(x) + m.big(x)),
    "statements": by_statements,
    "from zero": from_zero,
    "sum": lambda m, x: sum([m.small(x), x, m.big(x)]),
    "methods": lambda m, x: m.small(x).add(m.big(x)).add_(x),
    "torch.add": lambda m, x: torch.add(m.small(x), torch.add(x, m.big(x))),
    "itself": lambda m, x: x + m.big(x),
    "difference": lambda m, x: m.big(x) - m.small(x) - x,
    "factor": lambda m, x: m.big(x) + 0.5 * m.small(x),
    "scaled": lambda m, x: x + m.gamma * (m.big(x) - m.same(x)),
    "norm of the sum": lambda m, x: m.same(m.big(x) + m.small(x) + x),
    "norm of norm": lambda m, x: m.same(m.same(m.big(x) + x)),
    "one layer twice": lambda m, x: m.big(x) + m.big(x),
}


@pytest.mark.parametrize("does", SUMS.values(), ids=SUMS)
def test_branches_become_one_convolution(does):
    check(does, 1, 0, **branches())


def test_only_branches_of_the_same_value():
    def does(m, x):
        y = F.relu(m.big(x) + m.small(x))
        return m.big(y) + x + m.small(y) + y

    check(does, 2, 1, **branches())  # x is not added to branches of y


GEOMETRIES = {
    "asymmetric": [nn.Conv2d(8, 8, (1, 3), padding=(0, 1)), nn.Conv2d(8, 8, (3, 1), padding=(1, 0)),
                   nn.Conv2d(8, 8, 3, padding=1)],
    "large": [nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 7, padding=3, groups=8)],
    "groups": [nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 3, padding=1)],
    "wide groups": [nn.Conv2d(8, 16, 1, groups=4, bias=False), nn.Conv2d(8, 16, 3, padding=1, groups=2, bias=False)],
    "multiplier": [nn.Conv2d(8, 16, 1, groups=8), nn.Conv2d(8, 16, 3, padding=1, groups=8)],
    "strides": [nn.Conv2d(8, 6, 1, 2), nn.Conv2d(8, 6, 3, 2, padding=1)],
    "rows and columns": [nn.Conv2d(8, 6, (1, 3), (2, 1)), nn.Conv2d(8, 6, (5, 3), (2, 1), padding=(2, 0))],
    "dilated": [nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=2, dilation=2)],
    "dilated both": [nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Conv2d(8, 8, 5, padding=4, dilation=2)],
    "by name": [nn.Conv2d(8, 8, 1, padding="valid"), nn.Conv2d(8, 8, 3, padding="same")],
    "even": [nn.Conv2d(8, 8, 2, padding=1), nn.Conv2d(8, 8, 4, padding=2)],
    "padded": [nn.Conv2d(8, 8, 1, padding=1), nn.Conv2d(8, 8, 3, padding=2)],
}  # fmt: skip


@pytest.mark.parametrize("convs", GEOMETRIES.values(), ids=GEOMETRIES)
def test_kernels_go_into_one_that_covers_them(convs):
    layers = {f"conv{i}": conv for i, conv in enumerate(convs)}
    does = lambda m, x: sum(getattr(m, name)(x) for name in layers)
    check(does, 1, 0, **layers)


APART = {
    "crossed": (9, nn.Conv2d(8, 8, (1, 3), padding=(0, 1)), nn.Conv2d(8, 8, (3, 1), padding=(1, 0))),
    "depthwise and dense": (9, nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)),
    "dilation": (9, nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Conv2d(8, 8, 3, padding=1)),
    "between dilated": (9, nn.Conv2d(8, 8, 4, padding=3, dilation=2), nn.Conv2d(8, 8, 1)),
    "shifted": (8, nn.Conv2d(8, 8, 3, 2, padding=1), nn.Conv2d(8, 8, 2, 2)),
    "reflected": (9, nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 8, 1)),
    "uneven padding": (9, nn.Conv2d(8, 8, 4, padding="same"), nn.Conv2d(8, 8, 2, padding="same")),
    "one channel": (9, nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 1)),
    "one pixel": (3, nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)),
}


@pytest.mark.parametrize(("size", "one", "two"), APART.values(), ids=APART)
def test_other_kernels_stay_apart(size, one, two):
    check(lambda m, x: m.one(x) + m.two(x), 2, 1, size, one=one, two=two)


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, padding=4, dilation=3)], ids=["cropped", "grown"]
)
def test_an_image_of_another_size_is_not_a_branch(conv):
    does = lambda m, x: m.conv(x)[:, :, :1, :1] + m.conv(x) + x[:, :, :1, :1]
    check(does, 2, 2, conv=conv)


def source_is_written(m, x):
    a = m.big(y := m.stem(x))
    y.mul_(2)
    return a + m.small(y)


def a_view_of_the_source_is_written(m, x):
    a = m.big(y := m.stem(x))
    y[:, 1:].mul_(2)
    return a + m.small(y)


def a_summand_is_written(m, x):
    a = m.big(x) + (y := m.stem(x))
    y.mul_(2)
    return a + m.small(x)


def a_summand_takes_the_sum(m, x):
    y = m.stem(x)
    z = y[:, :]
    y += m.big(x)
    y += m.small(x)
    return y - 2 * z


def a_result_is_written(m, x):
    a = m.big(x)
    a.mul_(2)
    return a + m.small(x)


STAY = {
    "used twice": (2, 2, lambda m, x: (y := m.big(x)) + m.small(x) + y.mean()),
    "view": (2, 2, lambda m, x: (y := m.big(x)) + m.small(x) + y[:1, :, :1, :1]),
    "activation": (2, 1, lambda m, x: F.relu(m.big(x)) + m.small(x)),
    "added twice": (1, 1, lambda m, x: (y := m.big(x)) + y),
    "alpha": (2, 1, lambda m, x: torch.add(m.big(x), m.small(x), alpha=2)),
    "a number": (2, 2, lambda m, x: m.big(x) + 1.5 + m.small(x)),
    "of another type": (1, 1, lambda m, x: (m.big(x) + x.double() + m.small(x)).float().to(x.dtype)),
    "source is written": (3, 1, source_is_written),
    "a view of the source is written": (3, 1, a_view_of_the_source_is_written),
    "a summand is written": (3, 2, a_summand_is_written),
    "a summand takes the sum": (3, 3, a_summand_takes_the_sum),
    "a result is written": (2, 1, a_result_is_written),
}


@pytest.mark.parametrize(("convs", "adds", "does"), STAY.values(), ids=STAY)
def test_what_is_used_or_written_elsewhere_stays(convs, adds, does):
    check(does, convs, adds, **branches(stem=nn.Conv2d(8, 8, 1)))


@pytest.mark.parametrize("hooked", ["big.0", "big.1", "big", "same"])
def test_hooks_keep_branches_apart(hooked):
    layers = branches()
    model = Branch(lambda m, x: m.big(x) + m.same(x), **layers)
    model.get_submodule(hooked).register_forward_hook(lambda module, args, y: y * 2)
    model, x = settle(model).double().eval(), torch.randn(2, 8, 9, 9, dtype=torch.float64)
    fast = accelerate(model)
    assert count_additions(fast) == 1
    assert difference(fast(x), model(x)) < 1e-12


def test_a_norm_by_the_batch_is_no_branch():
    check(lambda m, x: m.big(x) + m.same(x), 1, 1, **branches(same=nn.BatchNorm2d(8, track_running_stats=False)))


def test_a_norm_without_a_convolution_stays():
    check(lambda m, x: m.same(x) + x, 0, 1, **branches())


@pytest.mark.parametrize(
    "does",
    [
        lambda m, x: m.one(x) * m.gamma,
        lambda m, x: m.big(x) * m.gamma[:4].repeat(2, 1, 1),
        lambda m, x: (m.gamma.fill_(2.0), m.big(x) * m.gamma)[1],
        lambda m, x: m.big(x) * x.mean((2, 3), keepdim=True),
    ],
    ids=["one channel", "computed", "written", "of the input"],
)
def test_other_factors_stay(does):
    fast = check(does, 1, 0, **branches(one=nn.Conv2d(8, 1, 1)))
    assert any(node.target in (operator.mul, torch.mul) for node in fast.graph.nodes)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_example_proves_sums(dtype):
    model = settle(Branch(lambda m, x: m.big(y := SUMS["norm"](m, x)) + m.small(y) + y, **branches())).eval()
    fast = accelerate(model, torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0)), dtype=dtype)
    assert (count_convolutions(fast), count_additions(fast)) == (2, 0)


def test_the_table_names_each_branch(capsys):
    accelerate(settle(Branch(SUMS["norm"], **branches())).eval(), verbose=True)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[0][:2] == ["big.0", "Conv2d"] and rows[0][-2:] == ["with", "relu"]
    parts = [["small.0", "Conv2d", "part", "of", "big.0"], ["same", "BatchNorm2d", "part", "of", "big.0"]]
    assert rows[1:] == parts


# ---- concatenations --------------------------------------------------------------------------


def parts(**more):
    deep = {f"deep{k}": nn.Conv2d(4, 4, k, padding=k // 2, groups=4) for k in (3, 5)}
    after = {"norm": nn.BatchNorm2d(8), "bare": nn.BatchNorm2d(8, affine=False)}
    between = {"behind": nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))}
    return {**deep, **after, **between, "wide": nn.Conv2d(8, 5, 1), "odd": nn.Conv2d(8, 3, 1), **more}


def split(m, x):
    a, b = x.split([4, 4], 1)
    return torch.cat((m.deep3(a), m.deep5(b)), 1)


def left(fast):
    """What is left of BatchNorms and activations."""
    modules = [fast.get_submodule(n.target) for n in fast.graph.nodes if n.op == "call_module"]
    called = sum(node.target in (F.relu, F.silu, "relu_") for node in fast.graph.nodes)
    return called + sum(isinstance(module, nn.BatchNorm2d | nn.ReLU | nn.SiLU) for module in modules)


@pytest.mark.parametrize(
    "does",
    [
        lambda m, x: F.silu(m.norm(split(m, x))),
        lambda m, x: m.bare(split(m, x)).relu_(),
        lambda m, x: F.relu(split(m, x), inplace=True) + x,
        lambda m, x: m.norm(split(m, x)) + x,
        lambda m, x: F.relu(torch.cat([m.behind(x[:, :4]), m.deep3(x[:, 4:])], dim=1)),
        lambda m, x: m.norm(torch.cat([m.odd(x), m.wide(x)], 1)).mean((2, 3)),
    ],
    ids=["both", "not affine", "activation", "norm", "norms before", "uneven"],
)
def test_what_is_behind_a_concatenation_goes_into_its_convolutions(does):
    fast = run(does)
    assert left(fast) == 0


def joined_with(part):
    return lambda m, x: F.relu(m.norm(torch.cat([m.deep3(x[:, :4]), part(m, x[:, 4:])], 1)))


def written_into(m, x):
    y = torch.zeros_like(x)
    return F.relu(torch.cat([m.deep3(x[:, :4]), m.deep5(x[:, 4:])], 1, out=y)) - y


@pytest.mark.parametrize(
    ("expected", "does"),
    [
        (2, joined_with(lambda m, x: x)),
        (2, joined_with(lambda m, x: F.max_pool2d(x, 1))),
        (2, joined_with(lambda m, x: F.relu(m.deep5(x)))),
        (1, lambda m, x: F.relu(torch.cat([y := m.deep3(x[:, :4]), y], 1))),
        (1, lambda m, x: F.relu(y := split(m, x)) + y),
        (1, lambda m, x: m.norm(y := split(m, x)) + y),
        (1, lambda m, x: F.relu(torch.cat([y := m.deep3(x[:, :4]), m.deep5(x[:, 4:])], 1)) + y.mean()),
        (1, lambda m, x: F.relu(torch.cat([m.deep3(x[:, :4]), m.deep5(x[:, 4:])], 2))),
        (1, written_into),
    ],
    ids=["input", "pooled", "activation", "twice", "both used", "norm and it", "part used", "rows", "out"],
)
def test_other_concatenations_stay(expected, does):
    assert left(run(does)) == expected


def run(does):
    for dtype, digits in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model = settle(Branch(does, **parts())).to(dtype).eval().requires_grad_(False)
        fast = accelerate(model)
        x = torch.randn(2, 8, 9, 9, dtype=dtype, generator=torch.Generator().manual_seed(1))
        expected = model(x.clone())
        for _ in range(3):
            assert difference(fast(x.clone()), expected) < digits
    return fast


# ---- networks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more"),
    [("mobileone_s0", 0), ("repvgg_a0", 0), ("repvit_m0_9", 1), ("fastvit_t8", 0), ("mixnet_s", 0)],
)
@torch.inference_mode()
def test_networks_of_timm_are_as_small_as_timm_makes_them(name, more):
    """But for the sum of two classifiers, of which timm makes one."""
    model = build_settled(partial(build_peer, name, "timm")).eval()
    for module in model.modules():
        if isinstance(gamma := getattr(module, "gamma", None), nn.Parameter):
            nn.init.constant_(gamma, 0.5)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    fast, expected = accelerate(model, x), model(x)
    for _ in range(3):  # packs weights, is recorded, runs the plan
        assert difference(fast(x), expected) < 1e-4
    assert nn.BatchNorm2d not in [type(module) for module in fast.modules()]
    theirs = accelerate(import_peer("timm").utils.model.reparameterize_model(model).eval())
    assert count_convolutions(fast) == count_convolutions(theirs)
    assert count_additions(fast) == count_additions(theirs) + more

"""Blocks and ends of networks that run as one op, and where they must not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from peers import Branch, difference, settle
from torch import nn

from fastnets.accelerate import accelerate
from fastnets.layers import (
    PackedAvgPool2d,
    PackedConv2d,
    PackedDenseBlock,
    PackedInvertedResidual,
    PackedLinear,
    PackedMaxPool2d,
    PackedPreactConv2d,
    PackedSqueezeExcitation,
    PooledLinear,
)


def block(**more):
    """The layers of an inverted residual."""
    return {
        "expand": nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6()),
        "deep": nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.BatchNorm2d(24), nn.ReLU6()),
        "project": nn.Conv2d(24, 8, 1),
        **more,
    }


@torch.inference_mode()
def check(model, of, expected):
    model = settle(model).eval()
    fast = accelerate(model)
    assert sum(isinstance(m, of) for m in fast.modules()) == expected
    for n in (1, 2):
        x = torch.randn(n, 8, 9, 9, generator=torch.Generator().manual_seed(n))
        for layout in (torch.contiguous_format, torch.channels_last):
            given = x.clone(memory_format=layout)
            assert difference(fast(given), model(x.clone())) < 1e-5
            assert torch.equal(given, x), "the input was changed"
    return fast


@pytest.mark.parametrize(
    ("blocks", "does"),
    [
        (1, lambda m, x: m.project(m.deep(m.expand(x)))),
        (1, lambda m, x: x + m.project(m.deep(m.expand(x)))),
        (1, lambda m, x: F.relu(m.project(m.deep(m.expand(x))))),
        (1, lambda m, x: F.relu(m.project(m.deep(m.expand(y := F.relu(x)))) + y)),
        (2, lambda m, x: m.project(m.deep(m.expand(y := m.project(m.deep(m.expand(x)))))) + y),
    ],
)
def test_blocks_become_one_layer(blocks, does):
    check(Branch(does, **block()), PackedInvertedResidual, blocks)


def test_a_block_that_expands_nothing():
    layers = block(deep=nn.Conv2d(8, 8, 3, padding=1, groups=8), project=nn.Conv2d(8, 16, 1))
    check(Branch(lambda m, x: m.project(m.deep(x)), **layers), PackedInvertedResidual, 1)


@pytest.mark.parametrize(
    "does",
    [
        lambda m, x: m.project(y := m.deep(m.expand(x))) + y.mean(),
        lambda m, x: m.project(F.max_pool2d(m.deep(m.expand(x)), 1)),
        lambda m, x: m.project(m.deep(m.expand(x)) + 1),
    ],
    ids=["used twice", "pooled", "added to"],
)
def test_blocks_with_something_between_stay(does):
    check(Branch(does, **block()), PackedInvertedResidual, 0)


def test_what_the_first_layer_gives_may_be_used_elsewhere():
    def does(m, x):
        y = m.expand(x)
        return m.project(m.deep(y)) + y.mean((1, 2, 3), keepdim=True)

    fast = check(Branch(does, **block()), PackedInvertedResidual, 1)
    assert next(m for m in fast.modules() if isinstance(m, PackedInvertedResidual)).expand is None


@pytest.mark.parametrize(
    "deep",
    [
        nn.Conv2d(24, 24, 3, groups=24, padding="same"),
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(24, 24, 3, stride=2, groups=24)),
    ],
    ids=["same", "zeros before"],
)
def test_zeros_are_part_of_a_block_however_they_are_said(deep):
    check(Branch(lambda m, x: m.project(m.deep(m.expand(x))), **block(deep=deep)), PackedInvertedResidual, 1)


@pytest.mark.parametrize(
    "deep",
    [
        nn.Conv2d(24, 24, 3, groups=24, padding=1, padding_mode="reflect"),
        nn.Conv2d(24, 24, 3, groups=12, padding=1),
        nn.Conv2d(24, 24, 3, padding=1),
    ],
    ids=["reflect", "grouped", "dense"],
)
def test_other_convolutions_between_stay(deep):
    check(Branch(lambda m, x: m.project(m.deep(m.expand(x))), **block(deep=deep)), PackedInvertedResidual, 0)


def test_the_source_of_a_block_is_not_written_over_before_it_is_read():
    """The second sum could take the memory of y, which the block, now where its last layer was, still reads."""

    def does(m, x):
        y = m.one(x)
        wide = m.expand(y)
        z = m.two(x) + y
        return m.project(m.deep(wide)) + z

    check(Branch(does, **block(one=nn.Conv2d(8, 8, 1), two=nn.Conv2d(8, 8, 1))), PackedInvertedResidual, 1)


def gated(m, x, scale):
    return m.project((y := m.deep(m.expand(x))) * scale(m, y))


def mean(m, y):
    return m.excite(m.squeeze(y.mean((2, 3), keepdim=True)))


SCALES = {
    "mean": lambda m, x: gated(m, x, lambda m, y: mean(m, y).sigmoid()),
    "module": lambda m, x: gated(m, x, lambda m, y: m.gate(m.excite(m.squeeze(m.pool(y))))),
    "function": lambda m, x: gated(m, x, lambda m, y: torch.sigmoid(m.excite(m.squeeze(F.adaptive_avg_pool2d(y, 1))))),
    "hard": lambda m, x: gated(m, x, lambda m, y: F.hardsigmoid(mean(m, y))),
    "hard module": lambda m, x: gated(m, x, lambda m, y: m.hard(mean(m, y))),
    "scale first": lambda m, x: m.project(torch.sigmoid(mean(m, y := m.deep(m.expand(x)))) * y),
    "residual": lambda m, x: gated(m, x, lambda m, y: mean(m, y).sigmoid()) + x,
    "torch.mul": lambda m, x: m.project(torch.mul(y := m.deep(m.expand(x)), m.gate(mean(m, y)))),
}


def squeezing(**more):
    few = nn.Sequential(nn.Conv2d(24, 6, 1), nn.SiLU())
    ends = {"gate": nn.Sigmoid(), "hard": nn.Hardsigmoid(), "pool": nn.AdaptiveAvgPool2d(1)}
    return block(squeeze=few, excite=nn.Conv2d(6, 24, 1), **ends, **more)


@pytest.mark.parametrize("does", SCALES.values(), ids=SCALES)
def test_blocks_take_squeeze_and_excitation_in(does):
    fast = check(Branch(does, **squeezing()), PackedInvertedResidual, 1)
    assert next(m for m in fast.modules() if isinstance(m, PackedInvertedResidual)).squeeze is not None


def test_squeeze_and_excitation_of_something_else_is_one_layer():
    does = lambda m, x: m.wide((y := m.expand(x)) * mean(m, y).sigmoid())
    check(Branch(does, **squeezing(wide=nn.Conv2d(24, 8, 3))), PackedSqueezeExcitation, 1)


def test_a_residual_is_added_in_the_store_of_squeeze_and_excitation():
    def does(m, x):
        y = m.expand(x)
        for _ in range(2):
            y = F.relu((z := m.same(y)) * mean(m, z).sigmoid() + y)
        return y

    fast = check(Branch(does, **squeezing(same=nn.Conv2d(24, 24, 1))), PackedSqueezeExcitation, 2)
    assert {m.activation for m in fast.modules() if isinstance(m, PackedSqueezeExcitation)} == {"relu"}


def written_between(m, x):
    scale = mean(m, y := m.deep(m.expand(x))).sigmoid()
    y.add_(1)
    return m.project(y * scale)


@pytest.mark.parametrize(
    "does",
    [
        lambda m, x: gated(m, x, lambda m, y: torch.tanh(mean(m, y))),
        lambda m, x: gated(m, x, lambda m, y: F.relu(mean(m, y))),
        lambda m, x: gated(m, x, lambda m, y: mean(m, y)),
        lambda m, x: gated(m, x, lambda m, y: mean(m, y + 1).sigmoid()),
        lambda m, x: gated(m, x, lambda m, y: m.excite(m.squeeze(y)).sigmoid()),
        lambda m, x: gated(
            m, x, lambda m, y: m.excite(m.squeeze(y.mean((1, 2), keepdim=True).expand(y.shape))).sigmoid()
        ),
        lambda m, x: gated(m, x, lambda m, y: (s := mean(m, y).sigmoid()) + 0 * s.sum()),
        lambda m, x: m.project((y := m.deep(m.expand(x))) * (s := mean(m, y).sigmoid())) * s.mean(),
        lambda m, x: gated(m, x, lambda m, y: F.hardsigmoid(mean(m, y).sigmoid())),
        written_between,
    ],
    ids=[
        "tanh",
        "relu",
        "none",
        "of another",
        "not pooled",
        "pooled over channels",
        "added to",
        "used twice",
        "two",
        "written",
    ],
)
def test_what_is_no_squeeze_and_excitation_stays(does):
    check(Branch(does, **squeezing()), PackedSqueezeExcitation, 0)


class Written(nn.Module):
    """A linear layer that is not one of torch.nn's."""

    def __init__(self, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 9))
        self.bias = nn.Parameter(torch.randn(5)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Scaled(Written):
    def forward(self, x):
        return F.linear(x, self.weight * 2, bias=self.bias)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(9, 5), 1),
        (nn.Linear(9, 5, bias=False), 1),
        (Written(), 1),
        (Written(bias=False), 1),
        (Scaled(), 0),
        (nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3)), 2),
    ],
    ids=["with bias", "without", "written", "written without bias", "scaled", "two"],
)
def test_linear_layers_are_packed(layer, expected):
    check(Branch(lambda m, x: m.layer(x), layer=layer), PackedLinear, expected)


def test_linear_layers_that_share_weights_go_on_to():
    one, two = nn.Linear(9, 9), nn.Linear(9, 9)
    two.weight = one.weight
    fast = check(Branch(lambda m, x: m.two(m.one(m.one(x))), one=one, two=two), PackedLinear, 3)
    assert len({id(m.weight) for m in fast.modules() if isinstance(m, PackedLinear)}) == 1


def test_hooks_of_linear_layers_run():
    layer = nn.Linear(9, 5)
    layer.register_forward_hook(lambda module, args, result: result + 1)
    check(Branch(lambda m, x: m.layer(x), layer=layer), PackedLinear, 0)


def test_a_linear_layer_of_others_becomes_part_of_a_pooled_end():
    class Tail(Written):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 8))

    check(Branch(lambda m, x: m.end(x.mean((2, 3))), end=Tail()), PooledLinear, 1)


ENDS = {
    "mean": lambda m, x: m.end(x.mean((2, 3))),
    "mean of a list": lambda m, x: m.end(torch.mean(x, dim=[-2, -1])),
    "kept mean": lambda m, x: m.end(x.mean((2, 3), keepdim=True).flatten(1)),
    "module": lambda m, x: m.end(torch.flatten(m.pool(x), 1)),
    "function": lambda m, x: m.end(m.flat(F.adaptive_avg_pool2d(x, 1))),
}


@pytest.mark.parametrize("does", ENDS.values(), ids=ENDS)
def test_pooled_ends_become_one_layer(does):
    layers = {"pool": nn.AdaptiveAvgPool2d((1, 1)), "flat": nn.Flatten(), "end": nn.Linear(8, 5)}
    check(Branch(does, **layers), PooledLinear, 1)


OTHER_ENDS = {
    "another size": lambda m, x: m.end(torch.flatten(F.adaptive_avg_pool2d(x, (1, 2)), 1)[:, :8]),
    "maxima": lambda m, x: m.end(torch.flatten(F.adaptive_max_pool2d(x, 1), 1)),
    "channels": lambda m, x: m.end(x.mean((1, 2))[:, :8]),
    "rows": lambda m, x: m.end(x.mean(2).mean(2)),
    "used twice": lambda m, x: m.end(y := x.mean((2, 3))) + y.mean(),
    "not flat": lambda m, x: m.end(x[..., :8]),
}


@pytest.mark.parametrize("does", OTHER_ENDS.values(), ids=OTHER_ENDS)
def test_other_ends_stay(does):
    check(Branch(does, end=nn.Linear(8, 5)), PooledLinear, 0)


def preact(**more):
    """The layers of a pointwise convolution behind BatchNorm and ReLU, and what may stand around them."""
    common = {"norm": nn.BatchNorm2d(8), "conv": nn.Conv2d(8, 12, 1), "pool": nn.AvgPool2d(2)}
    return {**common, "after": nn.Sequential(nn.BatchNorm2d(12), nn.ReLU()), **more}


@pytest.mark.parametrize(
    ("pool", "does"),
    [
        (1, lambda m, x: m.conv(F.relu(m.norm(x)))),
        (1, lambda m, x: m.conv(F.relu(m.norm(x), inplace=True)) + x[:, :1]),
        (1, lambda m, x: m.after(m.conv(m.norm(x).relu_()))),
        (1, lambda m, x: m.pool(m.after(m.conv(torch.relu(m.norm(x)))))),
        (1, lambda m, x: m.pool(y := m.conv(F.relu(m.norm(x)))).mean() + y),
        (2, lambda m, x: m.pool(m.conv(F.relu(m.norm(x))))),
    ],
)
def test_norm_and_relu_go_into_the_convolution_after_them(pool, does):
    fast = check(Branch(does, **preact()), PackedPreactConv2d, 1)
    assert next(m for m in fast.modules() if isinstance(m, PackedPreactConv2d)).pool == pool


@pytest.mark.parametrize("more", [{"norm": nn.BatchNorm2d(8, affine=False)}, {"conv": nn.Conv2d(8, 12, 1, bias=False)}])
def test_a_norm_or_a_convolution_without_parameters(more):
    check(Branch(lambda m, x: m.conv(F.relu(m.norm(x))), **preact(**more)), PackedPreactConv2d, 1)


@pytest.mark.parametrize(
    "pool",
    [nn.AvgPool2d(2, 1), nn.AvgPool2d((1, 2)), nn.AvgPool2d(2, padding=1), nn.AvgPool2d(2, ceil_mode=True),
     nn.AvgPool2d(2, divisor_override=3), nn.MaxPool2d(2)],
    ids=str,
)  # fmt: skip
def test_other_pooling_comes_after(pool):
    fast = check(Branch(lambda m, x: m.pool(m.conv(F.relu(m.norm(x)))), **preact(pool=pool)), PackedPreactConv2d, 1)
    assert next(m for m in fast.modules() if isinstance(m, PackedPreactConv2d)).pool == 1


@pytest.mark.parametrize(
    ("does", "more"),
    [
        (lambda m, x: m.conv(y := F.relu(m.norm(x))) + y.mean(), {}),
        (lambda m, x: m.conv(F.relu(y := m.norm(x))) + y.mean(), {}),
        (lambda m, x: m.conv(F.relu6(m.norm(x))), {}),
        (lambda m, x: m.conv(m.norm(x)), {}),
        (lambda m, x: m.conv(F.relu(m.norm(x))), {"norm": nn.BatchNorm2d(8, track_running_stats=False)}),
        (lambda m, x: m.conv(F.relu(m.norm(x))), {"norm": nn.InstanceNorm2d(8)}),
        (lambda m, x: m.conv(F.relu(m.norm(x))), {"conv": nn.Conv2d(8, 12, 3)}),
        (lambda m, x: m.conv(F.relu(m.norm(x))), {"conv": nn.Conv2d(8, 12, 1, groups=2)}),
        (lambda m, x: m.conv(F.relu(m.norm(x))), {"conv": nn.Conv2d(8, 12, 1, 2)}),
        (lambda m, x: m.conv(F.relu(m.norm(x))), {"conv": nn.Conv2d(8, 12, 1, padding=1)}),
    ],
)
def test_other_preactivations_stay(does, more):
    check(Branch(does, **preact(**more)), PackedPreactConv2d, 0)


@pytest.mark.parametrize("hooked", ("norm", "conv", "act"))
def test_hooks_keep_layers_apart(hooked):
    model = Branch(lambda m, x: m.conv(m.act(m.norm(x))), **preact(act=nn.ReLU()))
    getattr(model, hooked).register_forward_hook(lambda module, args, y: y + 1)
    check(model, PackedPreactConv2d, 0)


def test_what_a_norm_reads_may_be_written_over_after_it():
    def does(m, x):
        z = m.norm(y := m.conv(x))
        y.relu_()
        return m.conv(F.relu(z)) + y

    check(Branch(does, **preact(conv=nn.Conv2d(8, 8, 1))), PackedPreactConv2d, 1)


def dense(*, growth=4, number=3, **more):
    """The layers of a dense block of 8 channels, and a transition."""

    def layer(c):
        bottleneck = nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 16, 1, bias=False), nn.BatchNorm2d(16))
        return nn.Sequential(bottleneck, nn.ReLU(), nn.Conv2d(16, growth, 3, padding=1))

    total = 8 + number * growth
    made = {f"layer{i}": layer(8 + i * growth) for i in range(number)}
    made["end"] = nn.Sequential(nn.BatchNorm2d(total), nn.ReLU(), nn.Conv2d(total, 6, 1), nn.AvgPool2d(2))
    return {**made, **more}


def lists(m, x):
    features = [x]
    for layer in (m.layer0, m.layer1, m.layer2):
        features.append(layer(torch.cat(features, 1)))
    return torch.cat(features, 1)


def pairs(m, x):
    for layer in (m.layer0, m.layer1, m.layer2):
        x = torch.cat((x, layer(x)), dim=1)
    return x


@pytest.mark.parametrize(
    ("transitions", "does"),
    [
        (0, lists),
        (0, pairs),
        (0, lambda m, x: F.relu(lists(m, F.relu(x)))),
        (0, lambda m, x: lists(m, y := F.relu(x)).mean() + y),
        (0, lambda m, x: m.end(y := lists(m, x)).mean() + y),
        (1, lambda m, x: m.end(lists(m, x))),
        (1, lambda m, x: m.end(pairs(m, torch.cat((x[:, :3], x[:, 3:]), 1)))),
        (1, lambda m, x: m.end(lists(m, torch.cat((x[:, :3], x[:, 3:]), 1)))),
    ],
)
@pytest.mark.parametrize("growth", (4, 5))
def test_dense_blocks_become_one_layer(does, transitions, growth):
    fast = check(Branch(does, **dense(growth=growth)), PackedDenseBlock, 1)
    block = next(m for m in fast.modules() if isinstance(m, PackedDenseBlock))
    assert len(block.layers) == 3 and (block.transition is not None) == transitions


def test_a_dense_block_is_found_again_in_what_is_accelerated():
    check(accelerate(settle(Branch(lambda m, x: m.end(lists(m, x)), **dense())).eval()), PackedDenseBlock, 1)


def used(m, x):
    """A feature is used twice."""
    y = m.layer0(x)
    z = m.layer1(torch.cat((x, y), 1))
    return torch.cat((x, y, z, m.layer2(torch.cat((x, y, z), 1))), 1) + y.mean()


def swapped(m, x):
    y = m.layer0(x)
    z = m.layer1(torch.cat((y, x), 1))
    return torch.cat((x, y, z, m.layer2(torch.cat((x, y, z), 1))), 1)


def read_twice(m, x):
    y = torch.cat((x, m.layer0(x)), 1)
    z = torch.cat((y, m.layer1(y)), 1)
    return torch.cat((z, m.layer2(z)), 1) + z.mean()


def written_over(m, x):
    y = pairs(m, z := F.relu(x))
    return y + z.mul_(2).mean()


def written_over_by_a_module(m, x):
    y = m.layer0(x := x + 1)
    m.over(x)
    z = m.layer1(torch.cat((x, y), 1))
    return torch.cat((x, y, z, m.layer2(torch.cat((x, y, z), 1))), 1)


@pytest.mark.parametrize("does", [used, written_over, written_over_by_a_module])
def test_blocks_of_other_connections_stay(does):
    check(Branch(does, **dense(over=nn.ReLU(inplace=True))), PackedDenseBlock, 0)


@pytest.mark.parametrize(("number", "does"), [(1, swapped), (2, read_twice)])
def test_as_many_layers_as_can_become_one(number, does):
    fast = check(Branch(does, **dense()), PackedDenseBlock, 1)
    assert len(next(m for m in fast.modules() if isinstance(m, PackedDenseBlock)).layers) == number


def test_rows_are_no_features():
    check(Branch(lambda m, x: torch.cat((x, m.layer0(x)), 2), **dense(growth=8)), PackedDenseBlock, 0)


def test_what_hooks_look_at_is_made_before_a_block():
    model = Branch(lists, **dense())
    model.layer1[2].register_forward_hook(lambda module, args, y: y + 1)
    fast = check(model, PackedDenseBlock, 1)
    assert len(next(m for m in fast.modules() if isinstance(m, PackedDenseBlock)).layers) == 1


def test_what_runs_a_dense_block_is_told(capsys):
    accelerate(settle(Branch(lambda m, x: m.end(lists(m, x)), **dense())).eval(), verbose=True)
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in told if "preact_conv2d" in line] == ["layer0.0.2", "layer1.0.2", "layer2.0.2", "end.2"]
    assert [line[0] for line in told if "winograd_conv2d," in line] == ["layer0.2", "layer1.2", "layer2.2"]


POOLS = {
    "maximum": (PackedMaxPool2d, lambda m, x: m.max(x)),
    "mean": (PackedAvgPool2d, lambda m, x: m.mean(x)),
    "maximum, function": (PackedMaxPool2d, lambda m, x: F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True)),
    "mean, function": (PackedAvgPool2d, lambda m, x: F.avg_pool2d(x, (3, 2), 2, 1, count_include_pad=False)),
    "after a sum": (PackedMaxPool2d, lambda m, x: m.max(m.point(x) + m.point(x + 1))),
    "before a sum": (PackedMaxPool2d, lambda m, x: m.max(x) + m.max(x + 1)),
}
OTHER_POOLS = {
    "indices": (PackedMaxPool2d, lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0]),
    "dilation": (PackedMaxPool2d, lambda m, x: F.max_pool2d(x, 3, 1, 1, 2)),
    "divisor": (PackedAvgPool2d, lambda m, x: F.avg_pool2d(x, 2, divisor_override=3)),
    "size of a tensor": (PackedMaxPool2d, lambda m, x: F.max_pool2d(x, x.shape[2] // 3)),
    "hooks": (PackedMaxPool2d, lambda m, x: m.hooked(x)),
}


def pools():
    """A maximum, a mean, a convolution, and a maximum with a hook."""
    hooked = nn.MaxPool2d(2)
    hooked.register_forward_hook(lambda module, args, y: y + 1)
    return {"max": nn.MaxPool2d(3, 2, 1), "mean": nn.AvgPool2d(3, 1, 1), "point": nn.Conv2d(8, 8, 1), "hooked": hooked}


@pytest.mark.parametrize(("layer", "does"), POOLS.values(), ids=POOLS)
def test_pools_become_layers(layer, does):
    check(Branch(does, **pools()), layer, 2 if does is POOLS["before a sum"][1] else 1)


@pytest.mark.parametrize(("layer", "does"), OTHER_POOLS.values(), ids=OTHER_POOLS)
def test_other_pools_stay(layer, does):
    check(Branch(does, **pools()), layer, 0)


def relus(fast):
    """What is left of ReLUs, beside those in the stores of convolutions."""
    return sum(n.target in (F.relu, torch.relu) or isinstance(_module(fast, n), nn.ReLU) for n in fast.graph.nodes)


def _module(fast, node):
    return fast.get_submodule(node.target) if node.op == "call_module" else None


def test_relus_of_one_value_are_computed_once():
    def does(m, x):
        y = m.max(m.point(x))
        padded = F.pad(F.relu(y), (0, y.shape[2] % 1))
        return m.point(F.relu(y)) + m.point(m.relu(y)) + m.point(torch.relu(padded)) + y

    assert relus(check(Branch(does, relu=nn.ReLU(), **pools()), PackedMaxPool2d, 1)) == 2


def test_a_relu_that_is_shared_goes_into_the_convolution():
    layers = {"one": nn.Conv2d(8, 8, 1), "two": nn.Conv2d(8, 8, 3), "relu": nn.ReLU()}
    does = lambda m, x: m.two(m.relu(y := m.one(x))) + m.two(F.relu(y))
    assert relus(check(Branch(does, **layers), PackedMaxPool2d, 0)) == 0


WRITTEN = {
    "the value": lambda m, x: m.point(F.relu(y := m.max(x))) + m.point(F.relu(y.mul_(2).sub_(1))) + m.point(F.relu(y)),
    "a view of the value": lambda m, x: m.point(F.relu(y := m.max(x))) + y[:, :4].neg_().mean() + m.point(F.relu(y)),
    "the first result": lambda m, x: m.point(F.relu(y := m.max(x)).sub_(1)) + m.point(F.relu(y)),
    "the second result": lambda m, x: m.point(z := F.relu(y := m.max(x))) + m.point(F.relu(y).sub_(1)) + m.point(z),
    "in place": lambda m, x: m.point(F.relu(y := m.max(x))) + m.point(y.neg_()) + m.point(F.relu(y, inplace=True)),
}


@pytest.mark.parametrize("does", WRITTEN.values(), ids=WRITTEN)
def test_relus_stay_apart_where_something_is_written_over(does):
    check(Branch(does, **pools()), PackedMaxPool2d, 1)


def test_slices_are_laid_out_for_convolutions():
    does = lambda m, x: m.narrow(x.chunk(2, 1)[1]) + m.narrow(x.split(4, 1)[0])
    fast = check(Branch(does, narrow=nn.Conv2d(4, 8, 3)), PackedMaxPool2d, 0)
    got = []
    for module in fast.modules():
        if isinstance(module, PackedConv2d):
            module.register_forward_pre_hook(lambda module, args: got.append(module._fits(args[0], None)))
    with torch.inference_mode():
        fast(torch.randn(1, 8, 9, 9))
    assert got == [True, True]

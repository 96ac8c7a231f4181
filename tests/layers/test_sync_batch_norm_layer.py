"""SyncBatchNorm in one process is BatchNorm; convert and revert are inverses. Several ranks: tests/ops."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from edges import error_of
from torch import nn

from fastnets.layers import SyncBatchNorm

KINDS = {
    "1d": (nn.BatchNorm1d, (6, 4)),
    "1d long": (nn.BatchNorm1d, (3, 4, 7)),
    "2d": (nn.BatchNorm2d, (3, 4, 5, 6)),
    "3d": (nn.BatchNorm3d, (2, 4, 3, 2, 2)),
}
OPTIONS = {
    "default": {},
    "cumulative": {"momentum": None},
    "not affine": {"affine": False},
    "no statistics": {"track_running_stats": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_trains_and_infers_as_batch_norm(kind, options):
    build, shape = KINDS[kind]
    torchs = build(4, eps=1e-3, **options).double()
    ours = SyncBatchNorm(4, eps=1e-3, **options, dtype=torch.float64)
    ours.load_state_dict(torchs.state_dict())
    for step in range(4):
        if step == 3:
            ours.eval(), torchs.eval()
        x = torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        both = []
        for layer in (ours, torchs):
            layer.zero_grad()
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            y.pow(3).sum().backward()
            both.append([y.detach(), leaf.grad, *(p.grad for p in layer.parameters())])
        for a, b in zip(*both, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for a, b in zip(ours.state_dict().values(), torchs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class Network(nn.Module):
    """One of each kind, one of them in two places, in several states."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.BatchNorm2d(4, momentum=None), nn.ReLU())
        self.twice = self.stem[0]
        self.frozen = nn.BatchNorm3d(4, affine=False).eval()
        self.small = nn.BatchNorm1d(4).half()
        self.bare = nn.BatchNorm2d(4, track_running_stats=False)
        self.sync = nn.SyncBatchNorm(4, process_group=None)
        self.other = nn.InstanceNorm2d(4, affine=True)


def test_convert_and_revert_are_inverses():
    network = Network()
    network.small.weight.requires_grad_(False)
    network.small.note = "kept"
    calls = []
    network.stem[0].register_forward_hook(lambda *args: calls.append(1))
    network.stem[0].register_buffer("extra", torch.ones(1))
    types = {n: type(m) for n, m in network.named_modules()}
    attributes = {n: dict(m.__dict__) for n, m in network.named_modules()}
    state = {k: v.clone() for k, v in network.state_dict().items()}
    parameters = list(network.parameters())

    converted = SyncBatchNorm.convert(network)
    assert converted is network and network.twice is network.stem[0]
    names = {n for n, m in network.named_modules() if isinstance(m, SyncBatchNorm)}
    assert names == {"stem.0", "frozen", "small", "bare", "sync"}
    assert type(network.other) is nn.InstanceNorm2d
    assert network.stem[0].layer_name == "stem.0" and not network.frozen.training and network.stem[0].momentum is None
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
    assert list(network.state_dict()) == list(state)
    network.stem(torch.randn(2, 4, 3, 3))
    assert calls == [1] and network.stem[0].num_batches_tracked == 1
    network.load_state_dict(state)

    assert SyncBatchNorm.revert(SyncBatchNorm.convert(network)) is network  # twice converted is once converted
    assert {n: type(m) for n, m in network.named_modules()} == types
    for name, module in network.named_modules():
        assert module.__dict__.keys() == attributes[name].keys(), name
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])
    assert SyncBatchNorm.revert(network) is network


def test_a_single_layer_is_converted_itself():
    layer = nn.BatchNorm2d(4)
    assert type(SyncBatchNorm.convert(layer)) is SyncBatchNorm
    assert type(SyncBatchNorm.revert(layer)) is nn.BatchNorm2d
    ours = SyncBatchNorm(4)
    assert SyncBatchNorm.revert(SyncBatchNorm.convert(ours)) is ours and type(ours) is SyncBatchNorm


class WithActivation(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize("layer", [WithActivation(4), nn.LazyBatchNorm2d()], ids=["subclass", "lazy"])
def test_a_subclass_is_left_alone_with_a_warning(layer):
    network = nn.Sequential(layer, nn.BatchNorm2d(4))
    kind = type(layer)
    with pytest.warns(UserWarning, match=f"leaves '0' as it is: .*{kind.__name__} may do more"):
        SyncBatchNorm.convert(network)
    assert type(network[0]) is kind and type(network[1]) is SyncBatchNorm
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SyncBatchNorm.convert(nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4)))


def test_copies_pickles_compiles_and_exports():
    layer, x = SyncBatchNorm.convert(nn.Sequential(nn.BatchNorm2d(4))).eval(), torch.randn(2, 4, 3, 3)
    expected = layer(x)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.compile(layer, fullgraph=True, backend="aot_eager"),
        torch.export.export(layer, (x,)).module(),
    ):
        torch.testing.assert_close(other(x), expected)
    assert type(SyncBatchNorm.revert(copy.deepcopy(layer))[0]) is nn.BatchNorm2d
    assert repr(layer[0]).replace("SyncBatchNorm", "BatchNorm2d") == repr(nn.BatchNorm2d(4))


@pytest.mark.parametrize("momentum", (0.1, None))
def test_a_training_step_compiles(momentum):
    x, several = torch.randn(3, 4, 3, 3), []
    for wrap in (lambda m: m, lambda m: torch.compile(m, fullgraph=True, backend="aot_eager")):
        layer = SyncBatchNorm(4, momentum=momentum)
        for _ in range(2):
            wrap(layer)(x).square().sum().backward()
        several.append([*layer.state_dict().values(), layer.weight.grad])
    torch.testing.assert_close(*several)


def test_a_wrong_input_gets_torchs_error():
    for wrong in (torch.ones(4), torch.ones(2, 3, 4), torch.ones(1, 4)):
        theirs = nn.SyncBatchNorm(4) if wrong.dim() == 1 else nn.BatchNorm1d(4)
        assert error_of(SyncBatchNorm(4), wrong) == error_of(theirs, wrong)

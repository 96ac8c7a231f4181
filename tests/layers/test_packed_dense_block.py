"""PackedPreactConv2d and PackedDenseBlock where their kernel does not run, and what they keep; tests/ops has the kernel."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastnets.layers import PackedConv2d, PackedDenseBlock, PackedPreactConv2d


def norm(channels, **more):
    made = nn.BatchNorm2d(channels, **more)
    for t in (made.running_mean, made.running_var, made.weight, made.bias):
        if t is not None:
            nn.init.uniform_(t, 0.5, 1.5)
    return made


def preact(channels, out, pool=1, activation=None, **more):
    return PackedPreactConv2d(norm(channels, **more), PackedConv2d(channels, out, 1, activation=activation), pool)


def layers(channels=6, growth=3, number=3):
    """Of a dense block."""
    reads = range(channels, channels + growth * number, growth)
    return [(preact(c, 8, activation="relu"), PackedConv2d(8, growth, 3, padding=1)) for c in reads]


def make(kind):
    torch.manual_seed(0)
    made = {
        "preact": lambda: preact(6, 40),
        "pooled": lambda: preact(6, 40, pool=2, affine=False),
        "block": lambda: PackedDenseBlock(layers()),
        "block and transition": lambda: PackedDenseBlock(layers(), preact(15, 7, pool=2)),
    }[kind]()
    return made.eval().requires_grad_(False)


KINDS = ("preact", "pooled", "block", "block and transition")
every_kind = pytest.mark.parametrize("kind", KINDS)


def image(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)


def in_turn(module, x):
    """One PyTorch call for each step."""
    if isinstance(module, PackedPreactConv2d):
        y = module.conv(F.relu(module.norm(x)))
        return y if module.pool == 1 else F.avg_pool2d(y, module.pool)
    for bottleneck, conv in module.layers:
        x = torch.cat((x, conv(in_turn(bottleneck, x))), 1)
    return x if module.transition is None else in_turn(module.transition, x)


@every_kind
def test_the_kernel_and_the_steps_agree(kind):
    module, x = make(kind), image(2, 6, 7, 5)
    torch.testing.assert_close(module(x), in_turn(module, x))


@every_kind
def test_the_kernel_runs(kind, monkeypatch):
    module, calls = make(kind), []
    run = PackedPreactConv2d.in_one_pass
    monkeypatch.setattr(PackedPreactConv2d, "in_one_pass", lambda *args: calls.append(1) or run(*args))
    module(image(2, 6, 7, 5))
    assert len(calls) == sum(isinstance(m, PackedPreactConv2d) for m in module.modules())


def test_several_inputs_are_concatenated():
    module, x = make("preact"), image(2, 6, 7, 5)
    parts = [p.contiguous(memory_format=torch.channels_last) for p in x.split((1, 3, 2), 1)]
    assert torch.equal(module(*parts), module(x))
    torch.testing.assert_close(module.double()(*(p.double() for p in parts)), in_turn(module, x.double()))


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_types_run_the_steps(kind, dtype):
    module, x = make(kind).to(dtype), image(2, 6, 7, 5).to(dtype)
    assert torch.equal(module(x), in_turn(module, x))


@every_kind
def test_other_layouts_run_the_steps(kind):
    module, x = make(kind), image(2, 6, 7, 5).contiguous()
    assert torch.equal(module(x), in_turn(module, x))
    assert torch.equal(module(x.transpose(2, 3)), in_turn(module, x.transpose(2, 3)))
    module.to(memory_format=torch.channels_last)  # now what the layers of a block make is, what they read is not
    assert torch.equal(module(x), in_turn(module, x))


@every_kind
def test_gradients_run_the_steps(kind):
    module, x = make(kind), image(2, 6, 7, 5).requires_grad_()
    module(x).square().sum().backward()
    expected = torch.autograd.grad(in_turn(module, x).square().sum(), x)[0]
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("name", [n for n, _ in make("block and transition").named_parameters()])
def test_a_gradient_of_any_parameter_is_computed(name):
    module, x = make("block and transition"), image(1, 6, 7, 5)
    parameter = module.get_parameter(name).requires_grad_()
    module(x).sum().backward()
    assert parameter.grad is not None


@every_kind
def test_training_normalises_by_the_batch(kind):
    module, x = make(kind).train(), image(2, 6, 7, 5)
    expected = in_turn(copy.deepcopy(module), x)
    before = [b.clone() for b in module.buffers()]
    assert torch.equal(module(x), expected)
    assert all(not torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True))


@every_kind
def test_it_compiles_and_exports(kind):
    module, x = make(kind), image(2, 6, 7, 5)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


@every_kind
def test_no_images_give_none(kind):
    assert make(kind)(image(0, 6, 7, 5)).shape == in_turn(make(kind), image(0, 6, 7, 5)).shape


@every_kind
def test_wrong_channels_raise(kind):
    with pytest.raises(RuntimeError, match="channels|elements"):
        make(kind)(image(1, 5, 6, 7))


def test_an_image_smaller_than_what_is_pooled_raises():
    with pytest.raises(RuntimeError, match="too small"):
        make("pooled")(image(1, 6, 1, 7))


def test_what_is_packed_follows_norm_and_weights():
    module, x = make("preact"), image(1, 6, 7, 5)
    module(x)
    packed = module._packed
    module(x)
    assert module._packed is packed
    for t in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
        t.mul_(0.5)
        torch.testing.assert_close(module(x), in_turn(module, x))


def test_packed_weights_are_in_no_state_and_no_copy():
    module, x = make("preact"), image(1, 6, 7, 5)
    y = module(x)
    assert len(module.state_dict()) == 7
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other._packed is None
        assert torch.equal(other(x), y)


def test_layers_that_do_not_follow_one_another_are_refused():
    conv = PackedConv2d(6, 8, 1)
    strange = [
        (nn.BatchNorm2d(5), conv, 1),
        (nn.BatchNorm2d(6, track_running_stats=False), conv, 1),
        (nn.Identity(), conv, 1),
        (nn.BatchNorm2d(6), PackedConv2d(6, 8, 3), 1),
        (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1), 1),
        (nn.BatchNorm2d(6), PackedConv2d(6, 8, 1, activation="relu"), 2),
        (nn.BatchNorm2d(6), conv, 0),
    ]
    for arguments in strange:
        with pytest.raises(ValueError, match="expected a BatchNorm2d with running statistics"):
            PackedPreactConv2d(*arguments)
    first, second, third = layers()
    bottleneck = first[0]
    blocks = [
        ([],),
        ([first, third],),
        ([(bottleneck, PackedConv2d(8, 3, 3))],),
        ([(bottleneck, PackedConv2d(8, 3, 3, 2, padding=1))],),
        ([(bottleneck, PackedConv2d(7, 3, 3, padding=1))],),
        ([(bottleneck, nn.Conv2d(8, 3, 3, padding=1))],),
        ([(nn.Identity(), first[1])],),
        ([first, second], preact(9, 7)),
        ([first, second], nn.Identity()),
    ]
    for arguments in blocks:
        with pytest.raises(ValueError, match="expected layers of a pointwise convolution"):
            PackedDenseBlock(*arguments)

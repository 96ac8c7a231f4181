"""accelerate: the same numbers, with as few passes as promised, and nothing changed that must not be."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
import pickle
import random
import sys
from collections.abc import Mapping, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from peers import Branch, build_peer, build_settled, check_plan, difference, import_peer, settle
from torch import nn
from torch.nn.utils import prune

import fastnets
from fastnets._op import looked_on
from fastnets.accelerate import accelerate
from fastnets.accelerate._proof import prove
from fastnets.accelerate._record import Recorder
from fastnets.layers import DepthwiseConv2d, PackedConv2d, PackedInvertedResidual, PooledLinear
from fastnets.models import create_model


def image(n=2, c=8, size=9, dtype=torch.float64):
    return torch.randn(n, c, size, size, dtype=dtype, generator=torch.Generator().manual_seed(3))


def check(model: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """Accelerates the model; its outputs must be the model's to the digits of the type, in both layouts.

    In float64 one convolution after the other; in float32 without gradients on oneDNN, which writes over residuals.
    """
    for dtype, digits in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model = settle(model).to(dtype).eval()
        fast = accelerate(model)
        for x in inputs or (image(1), image(2)):
            x = x.to(dtype)
            with torch.set_grad_enabled(dtype == torch.float64):
                check_plan(fast, model, x, digits)
    return fast


def kinds(fast: nn.Module) -> list[type]:
    """The types of the layers that run in a call, but those that ``accelerate`` adds for itself."""
    layers = [kind for child in fast.children() for kind in _running(child)]
    return [kind for kind in layers if not kind.__module__.startswith(accelerate.__module__)]


def _running(module: nn.Module) -> list[type]:
    module = vars(module).get("_network", module)  # of a part that looks as it did
    return [kind for child in module.children() for kind in _running(child)] or [type(module)]


# ---- whole networks --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v2", "mobilenetv1_100"])
def test_networks_of_depthwise_convolutions_become_folded_and_fused_layers(name):
    fast = accelerate(create_model(name, width=0.25).eval())  # test_networks.py has the logits, of all networks
    assert set(kinds(fast)) == {DepthwiseConv2d, PackedConv2d, PooledLinear}
    assert all(m.activation == "relu6" for m in fast.modules() if isinstance(m, DepthwiseConv2d))


@pytest.mark.parametrize(
    ("library", "name"),
    [
        *(("torchvision", name) for name in ("densenet121", "googlenet", "inception_v3", "mobilenet_v2", "resnet18")),
        *(("torchvision", name) for name in ("resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1")),
        *(("timm", name) for name in ("efficientnet_lite0", "inception_v4", "mobilenetv1_100", "nasnetalarge")),
        *(("timm", name) for name in ("res2net50_26w_4s", "tf_efficientnet_lite0")),
    ],
)
@torch.inference_mode()
def test_networks_of_other_libraries_are_accelerated_too(library, name):
    model = build_settled(partial(build_peer, name, library)).eval()
    x = image(2, 3, 96, torch.float32)
    fast = accelerate(model)
    expected = model(x)
    for _ in range(3):  # packs weights, is recorded, runs the plan
        assert difference(fast(x), expected) < 1e-4
    assert PackedConv2d in kinds(fast) and nn.Conv2d not in kinds(fast)
    if name == "mobilenet_v2":
        assert set(kinds(fast)) == {DepthwiseConv2d, PackedConv2d, PooledLinear}


def test_the_model_is_left_alone():
    model = settle(create_model("mobilenet_v2", num_classes=3, width=0.25)).eval()
    before = copy.deepcopy(model)
    fast = accelerate(model)
    fast(image(1, 3, 32, torch.float32))
    assert str(model) == str(before)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert all(p.requires_grad for p in model.parameters()) and not any(p.requires_grad for p in fast.parameters())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in fast.parameters()}
    assert not shared, "training the model further would change its accelerated copy"


def test_it_copies_pickles_compiles_and_exports():
    fast = accelerate(settle(create_model("efficientnet_lite0", num_classes=3, width=0.25)).eval())
    x = image(2, 3, 64, torch.float32)
    expected = fast(x)
    assert torch.equal(copy.deepcopy(fast)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(fast))(x), expected)
    assert torch.equal(accelerate(fast)(x), expected)
    assert difference(torch.compile(fast, fullgraph=True, backend="aot_eager")(x), expected) < 1e-5
    assert difference(torch.export.export(fast, (x,)).module()(x), expected) < 1e-5


@pytest.mark.parametrize("size", [9, 10, 12])
@pytest.mark.parametrize("options", [{"stride": 2}, {"stride": 3, "dilation": 2}, {"stride": (1, 2), "groups": 8}])
def test_tensorflows_padding_of_timm_is_added_to_any_size(size, options):
    same = import_peer("timm").layers.Conv2dSame(8, 8, (3, 4), bias=False, **options)
    fast = check(nn.Sequential(same, nn.BatchNorm2d(8), nn.ReLU()), image(2, size=size))
    assert set(kinds(fast)) == {DepthwiseConv2d if "groups" in options else PackedConv2d}


class WritesOverWhatIsPadded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.same = import_peer("timm").layers.Conv2dSame(8, 8, 1)  # needs no zeros

    def forward(self, x):
        x = self.first(x)
        y = self.same(x)
        return y + self.last(F.relu(x, inplace=True))


def test_tensorflows_padding_keeps_what_is_written_over_later():
    check(WritesOverWhatIsPadded())


TENSORFLOWS = "tf_efficientnet_lite0", "tf_mobilenetv3_small_075"


@torch.inference_mode()
@pytest.mark.parametrize("name", TENSORFLOWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tensorflows_networks_of_timm_copy_no_padding(cpu_kernels, name, dtype):
    model = build_settled(partial(build_peer, name, "timm")).eval()
    fast = accelerate(model, image(1, 3, 43, torch.float32) if dtype == torch.bfloat16 else None, dtype=dtype)
    blocks = [module for module in fast.modules() if isinstance(module, PackedInvertedResidual)]
    assert [block.depthwise.padding for block in blocks].count("same") == sum(
        type(module).__name__ == "Conv2dSame" and module.groups > 1 for module in model.modules()
    )
    inputs = [image(n, 3, size, torch.float32) for n, size in ((1, 64), (2, 75), (1, 97))]
    expected = [model(x) for x in inputs]
    for _ in range(3):  # packs weights, is recorded, runs the plan
        for x, y in zip(inputs, expected, strict=True):
            got = fast(x)
            assert dtype != torch.float32 or difference(got, y) < 1e-4
    for x in inputs:
        with looked_on(recorder := Recorder()):
            fast(x)  # by its plan
        names = {op._opname for op in recorder.operators}
        assert names and not any("pad" in name for name in names)


class Padded(nn.Module):
    """Zeros laid around in the four ways that networks know, before convolutions that have padding of their own or none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.zeros = nn.Conv2d(8, 16, 3, 2), nn.ZeroPad2d((0, 1, 2, 0))
        self.depthwise, self.constant = nn.Conv2d(16, 16, 5, 2, (1, 0), groups=16), nn.ConstantPad2d((1, 2, 3, 0), 0)
        self.project, self.even, self.last = nn.Conv2d(16, 8, 1), nn.ZeroPad2d(1), nn.Conv2d(8, 8, 3, padding="valid")

    def forward(self, x):
        y = self.project(self.depthwise(self.constant(self.stem(self.zeros(x)))))
        return self.last(F.pad(self.last(self.even(y)), (1, 0), mode="constant"))


def test_zeros_before_a_convolution_are_its_padding():
    fast = check(Padded(), image(2, size=15), image(1, size=16))
    assert set(kinds(fast)) == {PackedConv2d, DepthwiseConv2d}
    paddings = [m.padding for m in fast.modules() if isinstance(m, PackedConv2d | DepthwiseConv2d)]
    assert sorted(paddings, key=str) == [(0, 0), (0, 1, 0, 0), (1, 1), (2, 0, 0, 1), (4, 1, 1, 2)]


class Laid(nn.Module):
    """What is laid around is no padding of the convolution, or something else sees it."""

    def __init__(self, lay, after=lambda m, x, y: m.conv(y)) -> None:
        super().__init__()
        self.conv, self.lay, self.after = nn.Conv2d(8, 8, 3), lay, after

    def forward(self, x):
        x = x * 2
        return self.after(self, x, self.lay(x))


@pytest.mark.parametrize(
    "model",
    [
        Laid(lambda x: F.pad(x, (0, 1, 0, 1), value=1.0)),
        Laid(nn.ConstantPad2d(1, 2.0)),
        Laid(lambda x: F.pad(x, (0, 1, 0, 1), "reflect")),
        Laid(nn.ReflectionPad2d(1)),
        Laid(nn.ZeroPad2d((-1, 1, -1, 1))),
        Laid(lambda x: F.pad(x, (0, 1, 0, 1, 1, -1))),
        Laid(lambda x: F.pad(x, (0, x.shape[2] % 2))),
        Laid(nn.ZeroPad2d(1), lambda m, x, y: m.conv(y) + y[..., 1:-1, 1:-1]),
        Laid(nn.ZeroPad2d((0, 1, 0, 1)), lambda m, x, y: m.conv(y) + F.relu_(x)[..., 1:, 1:]),
        Laid(nn.ZeroPad2d((0, 1, 0, 1)), lambda m, x, y: F.relu_(x)[..., 1:, 1:] + m.conv(y)),
    ],
    ids=range(10),
)
def test_what_is_laid_around_for_more_than_a_convolution_stays(model):
    check(model)


def test_a_convolution_of_timm_with_hooks_stays():
    same = import_peer("timm").layers.Conv2dSame(8, 8, 3, stride=2)
    same.register_forward_hook(lambda module, args, result: result + 1)
    assert type(same) in kinds(check(nn.Sequential(same)))


# ---- folding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    "conv",
    [
        lambda bias: nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=bias),
        lambda bias: nn.Conv2d(8, 16, (1, 5), stride=(2, 1), padding=(0, 2), groups=8, bias=bias),
        lambda bias: nn.Conv2d(8, 6, 1, bias=bias),
        lambda bias: nn.Conv2d(8, 6, 1, stride=2, bias=bias),
        lambda bias: nn.Conv2d(8, 6, 1, padding=1, bias=bias),
        lambda bias: nn.Conv2d(8, 6, 3, padding="same", dilation=2, bias=bias),
        lambda bias: nn.Conv2d(8, 6, 3, groups=2, bias=bias),
        lambda bias: nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode="reflect", bias=bias),
        lambda bias: DepthwiseConv2d(8, 3, multiplier=2, bias=bias),
    ],
    ids=["depthwise", "multiplier", "pointwise", "strided", "padded", "dense", "grouped", "reflect", "layer"],
)
def test_batch_norm_folds_into_every_kind_of_convolution(conv, affine, bias):
    conv = conv(bias)
    norm = nn.BatchNorm2d(conv.out_channels, affine=affine)
    fast = check(nn.Sequential(conv, norm, nn.ReLU6(inplace=True)))
    assert nn.BatchNorm2d not in kinds(fast) and nn.ReLU6 not in kinds(fast)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)),
        nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(DepthwiseConv2d(8, 3, activation="relu"), nn.BatchNorm2d(8)),
        Branch(lambda m, x: m.norm(y := m.conv(x)) + y, conv=nn.Conv2d(8, 8, 3), norm=nn.BatchNorm2d(8)),
    ],
    ids=["before", "by_batch", "after_relu", "after_activation", "used_twice"],
)
def test_batch_norm_stays_where_folding_would_be_wrong(model):
    assert nn.BatchNorm2d in kinds(check(model))


def test_convolutions_called_twice_fold_apart():
    conv, one, two = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    model = Branch(lambda m, x: m.two(m.conv(m.one(m.conv(m.conv(x))))), conv=conv, one=one, two=two)
    assert kinds(check(model)) == [DepthwiseConv2d] * 3


@pytest.mark.parametrize(
    "reparametrise", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_reparametrised_convolutions_stay(reparametrise):
    check(nn.Sequential(reparametrise(nn.Conv2d(8, 8, 3)), nn.BatchNorm2d(8)))


def test_hooks_still_run():
    conv = nn.Conv2d(8, 8, 3, groups=8)
    conv.register_forward_hook(lambda module, args, output: output * 2)
    check(nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU()))


# ---- activations, additions, layout ----------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 8], ids=["pointwise", "depthwise"])
@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.Sigmoid(), nn.LeakyReLU(0.3), nn.Softmax(1)],
    ids=lambda module: type(module).__name__,
)
def test_every_activation(activation, groups):
    check(nn.Sequential(nn.Conv2d(8, 8, 1, groups=groups), activation))


@pytest.mark.parametrize(
    "does",
    [
        lambda m, x: F.relu(m.conv(x)),
        lambda m, x: torch.relu(m.conv(x)),
        lambda m, x: m.conv(x).relu(),
        lambda m, x: m.conv(x).relu_(),
        lambda m, x: torch.sigmoid(m.conv(x)),
        lambda m, x: F.hardswish(m.conv(x), inplace=True),
    ],
)
@pytest.mark.parametrize("groups", [1, 8], ids=["pointwise", "depthwise"])
def test_activations_called_as_functions(does, groups):
    check(Branch(does, conv=nn.Conv2d(8, 8, 1, groups=groups)))


@pytest.mark.parametrize(
    "does",
    [
        lambda m, x: m.conv(x) + x,
        lambda m, x: x + m.conv(x),
        lambda m, x: torch.add(m.conv(x), x, alpha=2),
        lambda m, x: m.conv(x) + 1.5,
        lambda m, x: (y := m.conv(x)) + y,
        lambda m, x: (y := m.conv(x)) + F.relu(y),
        lambda m, x: F.relu(y := m.conv(x), inplace=True) + y,
        lambda m, x: F.relu(m.conv(x)) + m.conv(F.relu(m.conv(x))),
        lambda m, x: m.conv(x).mean((2, 3), keepdim=True) + m.conv(x),
        lambda m, x: m.conv(x.mean((2, 3), keepdim=True)) + x,
        lambda m, x: m.conv(x)[:, :, :1] + m.conv(x),
        lambda m, x: torch.cat([y := m.conv(x), y + x], 1),
        lambda m, x: m.conv(x) + m.conv(x)[:1].float(),
        lambda m, x: m.conv(x).view(x.shape[0], -1),
        lambda m, x: m.conv(x[0]),
        lambda m, x: m.conv(y := m.conv(x)) + y,
        lambda m, x: m.conv(z := m.conv(y := m.conv(x))) + y + z,
        lambda m, x: (m.conv(m.conv(y := m.conv(x))) + y).relu() * 2 + m.conv(y),
        lambda m, x: m.conv(m.conv(y := m.conv(x))).add_(y).relu_(),
        lambda m, x: F.relu(m.conv(y := m.conv(x)) + m.conv(y)),
        lambda m, x: (m.conv(m.conv(y := m.conv(x))) + y, m.conv(y))[0] + (m.conv(m.conv(y)) + y),
        lambda m, x: m.conv(m.conv(y := m.conv(x))) + y.flatten(2).view(y.shape),
        lambda m, x: (
            [z := y[:, ::2], m.conv(m.conv(y)) + y, z.mean()][1] + z.mean() if (y := m.conv(x)) is not None else x
        ),
        lambda m, x: m.conv(m.conv(p := F.max_pool2d(x, 1))) + p,
        lambda m, x: operator.iadd(y := m.conv(x), m.conv(y)) + y,
        lambda m, x: operator.iadd(m.conv(y := m.conv(x)), y) + y,
        lambda m, x: torch.cat([y := m.conv(x), operator.iadd(y, m.conv(y))], 1),
        lambda m, x: operator.isub(y := m.conv(x), m.conv(y)) + y,
        lambda m, x: operator.imul(y := m.conv(x), m.conv(y)) + y,
        lambda m, x: operator.itruediv(y := m.conv(x), m.conv(y).abs() + 1) + y,
        lambda m, x: operator.ipow(y := m.conv(x), 2) + y,
    ],
)
@pytest.mark.parametrize("groups", [1, 2, 8], ids=["pointwise", "grouped", "depthwise"])
def test_sums_and_shapes_in_any_arrangement(does, groups):
    check(Branch(does, conv=nn.Conv2d(8, 8, 1, groups=groups)))


@torch.inference_mode()
def test_the_additions_of_resnets_are_in_the_stores_of_convolutions():
    model = settle(import_peer("torchvision").models.resnet50()).eval()
    fast = accelerate(model)
    x = image(2, 3, 64, torch.float32)
    assert difference(fast(x), model(x)) < 1e-4
    calls = [node for node in fast.graph.nodes if node.op in ("call_module", "call_function")]
    assert [node for node in calls if "add" in str(node.target) or "relu" in str(node.target)] == []
    assert sum(len(node.args) == 2 for node in calls if str(node.target).startswith("convolutions")) == 16


def test_gradients_still_reach_the_input():
    model = settle(create_model("mobilenet_v2", num_classes=3, width=0.25)).double().eval()
    gradients = []
    for network in (model, accelerate(model)):
        x = image(1, 3, 32).requires_grad_()
        network(x).square().sum().backward()
        gradients.append(x.grad)
    assert difference(*reversed(gradients)) < 1e-10


def test_the_whole_network_runs_in_channels_last():
    fast = accelerate(settle(create_model("efficientnet_lite0", width=0.25)).eval())
    lost = []

    def look(module, args):
        if not args[0].is_contiguous(memory_format=torch.channels_last):
            lost.append(module)

    for module in fast.modules():
        if isinstance(module, nn.Conv2d | PackedInvertedResidual | PooledLinear):
            module.register_forward_pre_hook(look)
    fast(image(1, 3, 96, torch.float32))
    fast(image(2, 3, 96, torch.float32))
    assert not lost


# ---- refusals --------------------------------------------------------------------------------


def test_what_is_not_a_module():
    with pytest.raises(TypeError, match="expects a torch.nn.Module, but got function"):
        accelerate(check)


@pytest.mark.parametrize("part", ["the model", "classifier"])
def test_a_training_model_is_refused(part):
    model = create_model("mobilenetv1_100", width=0.25).eval()
    (model if part == "the model" else model.classifier).train()
    with pytest.raises(ValueError, match=f"{part} is training: call .eval"):
        accelerate(model)


def test_a_dtype_that_is_not_floating():
    with pytest.raises(TypeError, match="expects a floating dtype or int8, but got torch.int16"):
        accelerate(nn.Conv2d(8, 8, 1).eval(), dtype=torch.int16)


# ---- what stays as it is ---------------------------------------------------------------------


def untraceable(conv: nn.Module) -> Branch:
    return Branch(
        lambda m, x: m.part(x) if x.sum() > -1e9 else x, part=nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU())
    )


def test_what_cannot_be_traced_can_be_accelerated_twice():
    """What the first time has made has activations, which the second time leaves where they are."""
    first = accelerate(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()).eval())
    model = Branch(lambda m, x: m.one(x) if x.sum() > -1e9 else x, one=first.convolutions._0).eval()
    x = image(2, 8, 9, torch.float32)
    assert torch.equal(accelerate(model)(x), model(x)) and model(x).min() == 0


def test_parts_of_what_cannot_be_traced_are_accelerated(capsys):
    model = nn.Sequential(nn.Conv2d(8, 8, 1), untraceable(nn.Conv2d(8, 8, 3, padding=1, groups=8)), nn.BatchNorm2d(8))
    fast = check(model)
    (part,) = (m for m in fast.modules() if isinstance(m, nn.Sequential) and m is not fast)
    assert kinds(part._network).count(DepthwiseConv2d) == 1
    accelerate(model, verbose=True)
    printed = capsys.readouterr().out
    assert "cannot be traced: symbolically traced variables cannot be used as inputs to control flow" in printed
    assert "fastnets depthwise_conv2d with relu" in " ".join(printed.split())


def test_layers_of_what_cannot_be_traced_are_told(capsys):
    layers = {"conv": nn.Conv2d(8, 8, 3, padding=1, groups=8), "norm": nn.BatchNorm2d(8)}
    accelerate(Branch(lambda m, x: m.norm(m.conv(x)) if x.sum() > -1e9 else x, **layers).eval(), verbose=True)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["conv", "Conv2d", "fastnets", "depthwise_conv2d"] in rows
    assert ["norm", "BatchNorm2d", "PyTorch"] in rows


def test_code_that_cannot_be_traced_still_finds_its_layers():
    def does(m, x):
        return F.conv2d(x, m.conv.weight, m.conv.bias, m.conv.stride) if x.sum() > -1e9 else m.conv(x)

    check(Branch(does, conv=nn.Conv2d(8, 4, 1)))


@pytest.mark.parametrize("place", ["part", ""], ids=["a part", "the model"])
def test_hooks_of_parts_see_what_they_saw(place):
    model = settle(Branch(lambda m, x: m.part(x), part=nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)))).eval()
    seen: list[torch.Tensor] = []
    model.get_submodule(place).register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    fast, x = accelerate(model), image(1, dtype=torch.float32)
    with torch.no_grad():
        model(x), fast(x)
    assert len(seen) == 2 and difference(seen[1], seen[0]) < 1e-5
    hooked = next(m for m in fast.modules() if m._forward_hooks)
    assert nn.BatchNorm2d not in kinds(hooked._network)


def double(module, args, output):
    return output * 2


@pytest.mark.parametrize("copied", (copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))))
@pytest.mark.parametrize("place", ("", "0", "0.0", "after"))
def test_copies_have_the_hooks(copied, place):
    model = settle(nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)), nn.ReLU())).eval()
    if place != "after":
        model.get_submodule(place).register_forward_hook(double)
    fast, x = accelerate(model), image(1, dtype=torch.float32)
    if place == "after":
        fast.register_forward_hook(double), model.register_forward_hook(double)
    with torch.no_grad():
        for _ in range(3):
            assert difference(copied(fast)(x), model(x)) < 1e-5
        assert difference(fast(x), model(x)) < 1e-5


class Encoder(nn.Sequential):
    scale = 3

    def __init__(self):
        super().__init__(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)), nn.ReLU())
        self.shift = 2

    def features(self, x):
        return self[0](x) + self.shift


@pytest.mark.parametrize(
    "does",
    (
        lambda m, x: functools.reduce(lambda x, layer: layer(x), m.part, x),
        lambda m, x: m.part[1](m.part[0](x)),
        lambda m, x: m.part[0][1](x),
        lambda m, x: m.part(x) * m.part.shift * m.part.scale,
        lambda m, x: m.part.features(x) + m.part(x),
        lambda m, x: m.part(x) * len(m.part) if isinstance(m.part, Encoder) and m.part else x,
    ),
)
def test_code_that_cannot_be_traced_may_ask_its_parts_for_anything(does):
    check(Branch(lambda m, x: does(m, x) if x.sum() > -1e9 else x, part=Encoder()))


def test_parts_follow_the_model_but_take_no_weights():
    model = settle(untraceable(nn.Conv2d(8, 8, 1))).eval()
    fast, x = accelerate(model).double(), image(1, dtype=torch.float64)
    assert difference(fast(x), model.double()(x)) < 1e-6
    with pytest.raises(RuntimeError, match="load into the model that it was made from"):
        fast.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("does", "why"),
    (
        (lambda m, x, scale=None: m.conv(x) if scale is None else m.conv(x) * scale, "optional argument"),
        (lambda m, x, mode="plain": m.conv(x) if mode is not TWICE else m.conv(x) * 2, "optional argument"),
        (lambda m, x, scale: m.conv(x) if scale is None else m.conv(x) * scale, "argument, or on one that may be None"),
        (lambda m, x: m.conv(x if isinstance(x, torch.Tensor) else x[0]), "type of what it is given"),
        (lambda m, x: m.conv(operator.imul(x, 1)), "writes over what it is given"),
        (lambda m, x: setattr(m, "last", m.conv(x)) or m.last, "it sets last in a call"),
        (lambda m, x: m.conv(x) + torch.rand(1) * 0, "draws random numbers"),
        (lambda m, x: m.conv(x) + random.random() * 0, "draws random numbers"),
    ),
)
def test_code_that_a_graph_would_get_wrong_is_not_traced(does, why, capsys):
    model = with_forward(does)
    x, before = image(1, dtype=torch.float32), (torch.get_rng_state(), random.getstate())
    fast = accelerate(model, verbose=True)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert why in capsys.readouterr().out and "last" not in vars(accelerate(model))
    given = [(x,)]
    if "argument" in why:
        given = [(x,)] if does.__defaults__ else [(x, None)]
        given.append((x, TWICE if "mode" in inspect.signature(does).parameters else torch.full((1,), 5.0)))
    with torch.no_grad():
        for args in given:
            for _ in range(3):
                assert difference(fast(*args), model(*args)) < 1e-5


TWICE = "twice"


def with_forward(does) -> nn.Module:
    """A module of that code, which fx sees as its own."""
    kind = type("Code", (nn.Module,), {"forward": does})
    model = kind()
    model.conv = nn.Conv2d(8, 8, 1)
    return model.eval()


def by_match(m, x):
    match x:
        case torch.Tensor():
            return m.conv(x)
    return m.conv(x[0]) * 2


def is_image(x):
    return type(x) is torch.Tensor


@pytest.mark.parametrize(
    "does",
    (
        by_match,
        lambda m, x: m.conv(x) if torch.is_tensor(x) else m.conv(x[0]) * 2,
        lambda m, x: m.conv(x) if type(x) is torch.Tensor else m.conv(x[0]) * 2,
        lambda m, x: m.conv(x) if is_image(x) else m.conv(x[0]) * 2,
        lambda m, x: m.conv(x) if x.__class__ is torch.Tensor else m.conv(x[0]) * 2,
        lambda m, x: m.conv(x[0]) * 2 if isinstance(x, Mapping | Sequence) else m.conv(x),
        lambda m, x: m.conv(x[0]) * 2 if type(x) in (list, dict) else m.conv(x),
        lambda m, x: m.conv(x if not isinstance(x, nn.Parameter) else x[0]) if torch.is_tensor(x) else m.conv(x[0]),
    ),
)
def test_code_may_ask_for_types_in_any_way(does):
    model, x = with_forward(does).double(), image()
    fast = accelerate(model)
    for given in (x, [x], {0: x}):
        assert difference(fast(given), model(given)) < 1e-12


def test_functions_in_c_may_ask():
    def does(m, x):
        y = m.conv(x)
        return F.scaled_dot_product_attention(y, y, y)

    model = with_forward(does).double()
    fast = accelerate(model, image())
    assert isinstance(fast, torch.fx.GraphModule) and difference(fast(image()), model(image())) < 1e-12


def test_code_may_ask_whether_sizes_are_tensors():
    def pad(size):
        return torch.clamp(size % 2, 0) if isinstance(size, torch.Tensor) else size % 2

    def does(m, x):
        h, w = x.shape[-2:]
        return m.conv(F.pad(x, [0, pad(x.size(2) + w) * 0, 0, pad(h)]))

    model = with_forward(does)
    assert isinstance(accelerate(model, image(1, dtype=torch.float32)), torch.fx.GraphModule)


@pytest.mark.parametrize("does", (lambda m, x, scale=2.0: m.conv(x) * scale, lambda m, x, scale: m.conv(x) * scale))
def test_an_argument_that_is_only_computed_with_is_traced(does):
    model = with_forward(does)
    fast, x = accelerate(model), image(1, dtype=torch.float32)
    assert isinstance(fast, torch.fx.GraphModule)
    given = [(x, 3.0)] if does.__defaults__ is None else [(x,), (x, 3.0)]
    with torch.no_grad():
        assert all(difference(fast(*args), model(*args)) < 1e-5 for args in given)


def test_a_buffer_that_a_call_writes_into_is_written_in_each():
    model = with_forward(lambda m, x: m.conv(x) * m.calls.add_(1))
    model.register_buffer("calls", torch.zeros(()))
    fast, x = accelerate(model), image(1, dtype=torch.float32)
    with torch.no_grad():
        for _ in range(5):
            assert difference(fast(x), model(x)) < 1e-5


def test_a_forward_that_was_replaced_is_the_one_that_runs():
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())).eval()
    for layer in (model, model[0], model[1]):
        layer.forward = functools.partial(lambda layer, x: type(layer).forward(layer, x) + 1, layer)
    x = image(1, dtype=torch.float32)
    with torch.no_grad():
        assert difference(accelerate(model)(x), model(x)) < 1e-5


@pytest.mark.parametrize("computed", (nn.utils.weight_norm, lambda conv: prune.l1_unstructured(conv, "weight", 0.5)))
def test_weights_that_hooks_compute(computed):
    model = nn.Sequential(computed(nn.Conv2d(8, 8, 1)), nn.BatchNorm2d(8)).eval()
    x = image(1, dtype=torch.float32)
    model(x)  # leaves a weight with a gradient's history, which PyTorch does not copy
    with torch.no_grad():
        assert difference(accelerate(model, x)(x), model(x)) < 1e-5


def test_a_part_that_is_used_twice_stays_one():
    part = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    model = Branch(lambda m, x: m.a(x) + m.b(x) if x.sum() > -1e9 else x, a=part, b=part)
    fast = check(model)
    assert fast.a is fast.b


# ---- example, type, table --------------------------------------------------------------------


def test_the_example_proves_the_copy():
    x = image(1, dtype=torch.float32)
    model = settle(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))).eval()
    fast = accelerate(model, (x,))
    model[0].weight.data.mul_(1.001)
    with pytest.raises(RuntimeError, match=r"on the example, result 0 differs from the model's by \d.* of its largest"):
        prove(model, fast, (x,))


def test_what_a_copy_raises_on_the_example_is_said():
    with pytest.raises(RuntimeError, match="on the example, the copy raises ZeroDivisionError"):
        prove(nn.Identity(), Branch(lambda m, x: x * (1 // 0)), (torch.zeros(1),))


def test_a_model_that_makes_much_of_rounding_is_proved_by_its_own():
    # What is left of 1e4 in float32 has an error of 1e-3, which is the model's as well as the copy's.
    cancelling = Branch(lambda m, x: m.conv(x) + 1e4 - 1e4, conv=nn.Conv2d(8, 8, 3))
    x = image(1, dtype=torch.float32)
    fast = accelerate(cancelling.eval(), (x,))
    fast.get_submodule("convolutions.conv").bias.add_(0.1)
    with pytest.raises(RuntimeError, match="where rounding explains"):
        prove(cancelling, fast, (x,))


@torch.inference_mode()
def test_bfloat16_is_as_close_as_the_model_in_bfloat16():
    model = settle(create_model("mobilenet_v2", num_classes=10, width=0.25)).eval()
    x = image(2, 3, 64, torch.float32)
    fast = accelerate(model, x, dtype=torch.bfloat16)
    assert fast(x).dtype == torch.bfloat16
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("wrap", (lambda x: [x], lambda x: {0: x}, lambda x: (x, None, 2)))
@pytest.mark.parametrize("by_name", (False, True))
def test_inputs_of_what_cannot_be_traced_are_cast_too(wrap, by_name):
    model = with_forward(lambda m, x, **also: m.conv(also.get("y", x)[0]) if x[0].sum() > -1e9 else x)
    fast, x = accelerate(model, dtype=torch.float64), image(dtype=torch.float32)
    also = [{"y": wrap(t)} if by_name else {} for t in (x, x.double())]
    assert difference(copy.deepcopy(fast)(wrap(x), **also[0]), model.double()(wrap(x.double()), **also[1])) < 1e-12


@torch.inference_mode()
def test_a_model_that_is_in_bfloat16_is_proved_by_its_own_rounding():
    model = settle(create_model("mobilenet_v2", num_classes=10, width=0.25)).eval().bfloat16()
    x = image(2, 3, 64, torch.bfloat16)
    accelerate(model, x)
    wrong = copy.deepcopy(model)
    wrong.classifier[1].bias.add_(1)
    with pytest.raises(RuntimeError, match="where rounding explains"):
        prove(wrong, accelerate(model), (x,))


@torch.inference_mode()
@pytest.mark.parametrize("own", (torch.float32, torch.bfloat16))
def test_what_16_bits_would_hide_is_refused(monkeypatch, own):
    module = sys.modules[accelerate.__module__]

    def slightly_wrong(*args, right=module._rewritten):
        fast = right(*args)
        for p in fast.parameters():
            p.mul_(1.01)
        return fast

    model = settle(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))).eval().to(own)
    x = image(1, dtype=own)
    accelerate(model, x, dtype=torch.bfloat16)
    monkeypatch.setattr(module, "_rewritten", slightly_wrong)
    prove(model, accelerate(model, dtype=torch.bfloat16), (x,))
    with pytest.raises(RuntimeError, match="where rounding explains 1.0e-04"):
        accelerate(model, x, dtype=torch.bfloat16)


def test_the_table_names_every_layer(capsys):
    accelerate(create_model("mobilenetv1_100", width=0.25).eval(), verbose=True)
    printed = capsys.readouterr().out
    assert printed.count("fastnets inverted_residual  with relu6") == 26
    assert printed.startswith("layer ") and "fastnets direct_conv2d" in printed and "fastnets pooled_linear" in printed
    accelerate(create_model("mobilenetv1_100", width=0.25).eval(), dtype=torch.bfloat16, verbose=True)
    printed = capsys.readouterr().out
    assert printed.count("fastnets inverted_residual  with relu6") == 26
    assert "fastnets direct_conv2d" in printed and "fastnets pooled_linear" in printed
    accelerate(create_model("mobilenetv1_100", width=0.25).eval(), dtype=torch.float64, verbose=True)
    printed = capsys.readouterr().out
    assert printed.count("fastnets depthwise_conv2d  with relu6") == 13 and "oneDNN, packed" in printed
    assert "inverted_residual" not in printed and "direct_conv2d" not in printed


def test_the_table_knows_the_layers_of_fastnets(capsys):
    accelerate(nn.Sequential(fastnets.layers.ChannelShuffle(2), nn.ReLU()).eval(), verbose=True)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [["0", "ChannelShuffle", "fastnets"], ["1", "ReLU", "PyTorch"]]


# ---- convert, revert -------------------------------------------------------------------------


def test_convert_changes_classes_and_nothing_else_and_revert_undoes_it():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.ChannelShuffle(2), nn.PixelUnshuffle(1), nn.PixelShuffle(2), nn.Conv2d(2, 4, 1)
    ).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before, state, x = str(model), copy.deepcopy(model.state_dict()), image(2)
    expected = model(x)
    assert fastnets.convert(model) is model
    assert all(type(module).__module__.startswith("fastnets") for module in model)
    assert list(model.state_dict()) == list(state) and str(model) == before
    fastnets.backend_report(reset=True)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert {"depthwise_conv2d", "channel_shuffle", "pixel_shuffle"} <= fastnets.backend_report().keys()
    model(x).sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, state["0.weight"])
    assert fastnets.revert(model) is model
    assert all(type(module).__module__.startswith("torch.nn") for module in model)


@pytest.mark.parametrize("function", [fastnets.convert, fastnets.revert])
def test_convert_takes_modules(function):
    with pytest.raises(TypeError, match=f"{function.__name__} expects a torch.nn.Module, but got list"):
        function([])


def test_it_is_part_of_the_package():
    assert fastnets.accelerate is accelerate

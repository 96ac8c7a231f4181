"""Sequential: BatchNorm with the activation after it as one op in training, and nothing else than that."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from edges import error_of
from torch import nn

import fastnets
from fastnets.layers import Sequential, SyncBatchNorm, norm_depthwise
from fastnets.layers.activation import activation_name

ACTIVATIONS = [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.Sigmoid(), nn.LeakyReLU(0.1)]
LAST = torch.channels_last


class Named(nn.Sequential):
    """A subclass that adds nothing to the call."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.also = len(layers)


class Own(nn.Sequential):
    def forward(self, input):
        return super().forward(input) + 1


def chain(norm=None, activation=None, make=nn.Sequential):
    layers = nn.Conv2d(3, 6, 3), norm or nn.BatchNorm2d(6), activation or nn.ReLU6(inplace=True), nn.Conv2d(6, 2, 1)
    with torch.no_grad():
        layers[1].weight.uniform_(0.5, 2)
        layers[1].bias.normal_()
    return make(*layers).double().to(memory_format=LAST)


def image(n=2):
    x = torch.randn(n, 3, 8, 7, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return x.contiguous(memory_format=LAST)


def step(model, x):
    """What a training step computes and leaves behind."""
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    y.pow(3).sum().backward()
    return [y.detach(), leaf.grad, *(p.grad for p in model.parameters()), *model.state_dict().values()]


def ran():
    """How often the fused op ran, forward and backward."""
    report = fastnets.backend_report(reset=True)
    names = "sync_batch_norm_local", "sync_batch_norm_local_backward"
    return tuple(sum(report[n]["calls"].values()) if n in report else 0 for n in names)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("momentum", (0.1, None))
def test_a_step_is_that_of_pytorch(activation, momentum):
    theirs = chain(nn.BatchNorm2d(6, momentum=momentum), copy.deepcopy(activation))
    ours = fastnets.convert(copy.deepcopy(theirs))
    for n in (2, 3):
        fastnets.backend_report(reset=True)
        torch.testing.assert_close(step(ours, image(n)), step(theirs, image(n)), rtol=1e-11, atol=1e-11)
        assert ran() == (1, 1)
    torch.testing.assert_close(ours.eval()(image()), theirs.eval()(image()), rtol=1e-12, atol=1e-12)
    assert ran() == (0, 0)


@pytest.mark.parametrize(
    "norm, x",
    [
        (nn.BatchNorm1d(4, affine=False), torch.randn(5, 4)),
        (nn.BatchNorm1d(4, track_running_stats=False), torch.randn(5, 4, 3)),
        (nn.BatchNorm3d(4), torch.randn(2, 4, 3, 2, 5)),
        (SyncBatchNorm(4), torch.randn(2, 4, 3, 5)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_every_kind_of_batch_norm(norm, x, monkeypatch):
    model = nn.Sequential(norm, nn.SiLU())
    expected = step(copy.deepcopy(model), x)
    fastnets.convert(model)
    monkeypatch.delattr(nn.SiLU, "forward")  # as nobody calls it
    torch.testing.assert_close(step(model, x), expected, rtol=1e-4, atol=1e-5)


def nothing(*_):
    return None


def watch(model, how):
    """Somebody looks at a layer, or has changed it; returns what takes that back."""
    norm, activation = model[1], model[2]
    if how == "forward":
        norm.forward = norm.forward
        return lambda: norm.__dict__.pop("forward")
    if how.startswith("all"):
        return getattr(nn.modules.module, how.replace("all", "register_module"))(nothing).remove
    layer, _, hook = how.partition(" ")
    return getattr({"norm": norm, "activation": activation}[layer], f"register_{hook}")(nothing).remove


@pytest.mark.parametrize(
    "how",
    ["norm forward_hook", "norm full_backward_hook", "activation forward_pre_hook", "activation full_backward_pre_hook",
     "all_forward_hook", "all_full_backward_hook", "forward"],
)  # fmt: skip
def test_whoever_looks_between_the_two_keeps_them_apart(how):
    theirs = chain(activation=nn.ReLU())  # hooks of the backward pass do not go with an activation in place
    ours = fastnets.convert(copy.deepcopy(theirs))
    unwatch = watch(ours, how)
    try:
        fastnets.backend_report(reset=True)
        got = step(ours, image())
        assert ran() == (0, 0)
    finally:
        unwatch()
    torch.testing.assert_close(got, step(theirs, image()), rtol=1e-12, atol=1e-12)
    step(ours, image())
    assert ran() == (1, 1)


def test_a_hook_sees_what_is_between_the_two():
    model, seen = fastnets.convert(chain()), []
    model[1].register_forward_hook(lambda _module, _args, y: seen.append(y.min().item()))
    model(image())
    assert seen[0] < 0


@pytest.mark.parametrize(
    "activation", [nn.LeakyReLU(0.2), nn.Tanh(), nn.Identity(), nn.Conv2d(6, 6, 1)], ids=lambda a: type(a).__name__
)
def test_what_is_no_pair_stays_as_it_is(activation):
    assert activation_name(activation) is None
    model = chain(activation=activation)
    ours = fastnets.convert(copy.deepcopy(model))
    fastnets.backend_report(reset=True)
    torch.testing.assert_close(step(ours, image()), step(model, image()), rtol=0, atol=0)
    assert ran() == (0, 0)


@pytest.mark.parametrize(
    "norm, size",
    [(nn.BatchNorm1d, (64, 16, 130)), (nn.BatchNorm2d, (2, 16, 65, 65)), (nn.BatchNorm3d, (2, 16, 3, 37, 37))],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_large_batch_norm_by_itself_runs_on_our_kernels(norm, size):
    x = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = nn.Sequential(norm(16), nn.Tanh()).double()
    ours = fastnets.convert(copy.deepcopy(theirs))
    fastnets.backend_report(reset=True)
    torch.testing.assert_close(step(ours, x), step(theirs, x), rtol=1e-10, atol=1e-10)
    assert ran() == (1, 1)
    for watched in (copy.deepcopy(ours), fastnets.convert(nn.Sequential(norm(16, device="meta")))):
        watched[0].register_forward_hook(nothing)
        watched(x.to(watched[0].weight.device))
    ours.eval()(x)
    assert ran() == (0, 0)


@pytest.mark.parametrize(
    "norm", [nn.SyncBatchNorm(6), nn.LazyBatchNorm2d(), nn.GroupNorm(2, 6)], ids=lambda n: type(n).__name__
)
def test_other_norms_stay_as_they_are(norm):
    """PyTorch's SyncBatchNorm above all, whose statistics are not those of one process."""
    assert type(fastnets.convert(nn.Sequential(norm, nn.ReLU()))) is nn.Sequential


def test_a_batch_norm_in_eval_mode_uses_what_it_has_learnt():
    theirs = chain()
    ours = fastnets.convert(copy.deepcopy(theirs))
    for model in (theirs, ours):
        model[1].eval()
    torch.testing.assert_close(step(ours, image()), step(theirs, image()), rtol=1e-12, atol=1e-12)


def test_subclasses_that_leave_forward_alone_are_converted_and_come_back():
    model = nn.ModuleList(
        [chain(make=Named), chain(make=Own), chain(), nn.Sequential(nn.ReLU()), nn.Sequential(nn.BatchNorm2d(6))]
    )
    before, state = str(model), list(model.state_dict())
    assert fastnets.convert(fastnets.convert(model)) is model
    named, own, plain, other, alone = model
    assert isinstance(named, Sequential) and isinstance(named, Named) and named.also == 4
    assert [type(m) for m in (own, plain, other, alone)] == [Own, Sequential, nn.Sequential, Sequential]
    assert str(model) == before and list(model.state_dict()) == state
    fastnets.backend_report(reset=True)
    named(image())
    assert ran()[0] == 1
    fastnets.revert(model)
    assert [type(m) for m in model] == [Named, Own, *[nn.Sequential] * 3]


@pytest.mark.parametrize("make", (nn.Sequential, Named))
def test_copies_pickles_and_compiles(make):
    model = fastnets.convert(chain(make=make))
    expected = step(copy.deepcopy(model), image())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model)
        torch.testing.assert_close(step(other, image()), expected)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    leaf = image().requires_grad_()
    y = compiled(leaf)
    y.pow(3).sum().backward()
    torch.testing.assert_close([y.detach(), leaf.grad], expected[:2])


def test_a_wrong_input_gets_pytorchs_error():
    for wrong in (torch.ones(2, 6, 3), torch.ones(1, 6, 1, 1), torch.ones(2, 5, 3, 3)):
        several = [cls(nn.BatchNorm2d(6), nn.ReLU()) for cls in (Sequential, nn.Sequential)]
        assert error_of(several[0], wrong) == error_of(several[1], wrong)


def test_it_needs_less_memory_for_the_backward_pass():
    """Saved for it: the input of BatchNorm, and of what is per channel."""
    x = torch.randn(4, 6, 32, 32).contiguous(memory_format=LAST).requires_grad_()
    saved = []

    def keep(t):
        saved.append(t.untyped_storage().nbytes())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        Sequential(nn.BatchNorm2d(6), nn.ReLU6(inplace=True))(x)
    assert sum(saved) < 1.05 * x.nbytes


def test_a_batch_norm_by_itself_can_be_traced():
    model = fastnets.convert(nn.Sequential(nn.BatchNorm2d(6), nn.Tanh()))
    traced, x = torch.fx.symbolic_trace(copy.deepcopy(model)), image().float()[:, :1].expand(-1, 6, -1, -1)
    torch.testing.assert_close(traced(x), model(x))


def block(norm=None, c=24, **kwargs):
    """As in MobileNetV2: chains within a chain."""
    torch.manual_seed(0)
    conv = {"kernel_size": 3, "stride": 2, "padding": 1, "groups": c, "bias": False} | kwargs
    first = nn.Sequential(nn.Conv2d(3, c, 1, bias=False), norm or nn.BatchNorm2d(c), nn.ReLU6(inplace=True))
    second = nn.Sequential(nn.Conv2d(c, c, **conv), nn.BatchNorm2d(c), nn.ReLU6(inplace=True))
    return nn.Sequential(first, second, nn.Conv2d(c, 4, 1, bias=False), nn.BatchNorm2d(4)).to(memory_format=LAST)


def large_image(layout=LAST):
    return torch.randn(2, 3, 75, 75, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)


def joined():
    report = fastnets.backend_report(reset=True)
    return sum(report["norm_depthwise_conv2d"]["calls"].values()) if "norm_depthwise_conv2d" in report else 0


def check_as_near(ours, theirs, x):
    """What a step computes and leaves behind is as near to what it would in float64 as with PyTorch's layers."""
    got, other = (torch.cat([t.double().flatten() for t in step(model, x)]) for model in (ours, theirs))
    exact = torch.cat([t.double().flatten() for t in step(theirs.double(), x.double())])
    assert (got - exact).norm() <= 2 * (other - exact).norm() + torch.finfo(torch.float32).eps * exact.norm()


@pytest.mark.parametrize("momentum", (0.1, None))
def test_cpu_a_depthwise_convolution_after_the_pair_joins_them(cpu_kernels, momentum):
    theirs = block(nn.BatchNorm2d(24, momentum=momentum))
    ours = fastnets.convert(copy.deepcopy(theirs))
    for _ in range(2):
        joined()
        check_as_near(ours, copy.deepcopy(theirs), large_image())
        assert joined() == 1
        step(theirs, large_image())
    torch.testing.assert_close(ours.eval()(large_image()), theirs.eval()(large_image()))
    assert joined() == 0


@pytest.mark.parametrize(
    "change",
    ["bias", "few channels", "two kernels a channel", "reflected padding", "padding same", "dense", "contiguous", "float64", "small",
     "hook on the convolution", "hook on the inner chain", "compiled", "eval", "synchronised"],
)  # fmt: skip
def test_cpu_what_keeps_the_convolution_apart(cpu_kernels, change):
    kwargs = {
        "bias": {"bias": True},
        "few channels": {"c": 12},
        "reflected padding": {"padding_mode": "reflect"},
        "padding same": {"stride": 1, "padding": "same"},
        "dense": {"groups": 1},
    }
    theirs = block(SyncBatchNorm(24) if change == "synchronised" else None, **kwargs.get(change, {}))
    if change == "two kernels a channel":
        theirs[1] = nn.Sequential(nn.Conv2d(24, 48, 3, groups=24, bias=False), nn.Conv2d(48, 24, 1)).to(
            memory_format=LAST
        )
    x = large_image(torch.contiguous_format if change == "contiguous" else LAST)
    if change == "float64":
        theirs, x = theirs.double(), x.double()
    x = x[:, :, :20] if change == "small" else torch.cat([x, x]) if change == "few channels" else x
    if change == "contiguous":
        theirs = theirs.to(memory_format=torch.contiguous_format)
    if change == "eval":
        theirs[0].eval()
    ours = fastnets.convert(copy.deepcopy(theirs))
    if change == "compiled":
        ours[1].compile(backend="eager")
    if "hook" in change:
        (ours[1][0] if "convolution" in change else ours[1]).register_forward_pre_hook(nothing)
    joined()
    check_as_near(ours, theirs, x)
    assert joined() == 0


def test_cpu_a_wrong_large_input_gets_pytorchs_error(cpu_kernels):
    theirs = nn.Sequential(*block()[0][1:], *block()[1][:1])
    ours = fastnets.convert(copy.deepcopy(theirs))
    for size in ((24, 150, 150), (2, 23, 120, 120), (2, 24, 1, 1, 12000)):
        wrong = torch.ones(size)
        wrong = wrong.contiguous(memory_format=LAST) if wrong.dim() == 4 else wrong
        assert error_of(ours, wrong) == error_of(theirs, wrong)


def test_a_backend_that_lacks_the_op_keeps_the_convolution_apart():
    norm, _, conv = fastnets.convert(nn.Sequential(*block()[0][1:], *block()[1][:1]))
    x = torch.ones(1, 24, 8, 8).contiguous(memory_format=LAST)
    for name, joins in ((None, True), ("cpu", True), ("reference", True), ("triton", False), ("cuda", False)):
        with fastnets.use_backend(name):
            assert norm_depthwise.joins(norm, conv, x) == joins

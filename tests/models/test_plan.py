"""Networks that run by a plan: the same results, and no plan where another call would run something else."""

from __future__ import annotations

import copy
import gc
import itertools
import operator
import pickle
import random
import resource
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, combinations
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from edges import threads
from peers import Branch, difference, settle
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastnets
from fastnets._op import looked_on
from fastnets.accelerate import accelerate
from fastnets.accelerate._arena import Block, Layout, _choose_offsets
from fastnets.accelerate._plan import Network
from fastnets.accelerate._record import Recorder
from fastnets.models import create_model


class Parts(nn.Module):
    """One of each: a convolution of ours and of oneDNN, several results, slices, a result that is an argument of another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.down = nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.drop(self.stem(x))
        left, right = self.down(y).chunk(2, 1)
        return {"sum": F.relu(left * 2, inplace=True) - right, "right": right, "y": y.flatten(1)[:, ::2], "again": y}


class Slices(nn.Module):
    """Kernels that could write into a concatenation and read a split, and what stands in their way."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = nn.Conv2d(24, 24, 1), nn.Conv2d(24, 40, 3, padding=1)
        self.left, self.right = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.mean = nn.AvgPool2d(3, 1, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.repeat(1, 8, 1, 1).contiguous(memory_format=torch.channels_last)
        wide = torch.cat((self.one(x), self.three(x)), 1)
        left, right = (part.contiguous(memory_format=torch.channels_last) for part in (wide[:, :32], wide[:, 32:]))
        used, twice = self.left(left), self.right(right)
        mixed = torch.cat((self.pool(left), used, x, self.mean(right)), 1)
        again = torch.cat((self.pool(right), self.one(x)), 1)
        read = self.left(again[:, 8:40].contiguous(memory_format=torch.channels_last))
        kept = right.clone()
        wide.relu_()  # after which neither half is what it was
        return mixed, again, read, self.pool(kept), wide, used * 2, torch.cat((twice, twice), 1)


def image(n: int = 1, size: int = 12, seed: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def parts() -> nn.Module:
    return accelerate(settle(Parts()).eval())


def planned(fast: nn.Module, *xs: torch.Tensor) -> None:
    """Calls until the network has a plan for each input."""
    for x in xs:
        for _ in range(2):
            fast(x)


def ran(fast: nn.Module, x: torch.Tensor) -> tuple[object, bool]:
    """What a call returns, and whether it ran by a plan: then no layer was called."""
    called = []
    with pytest.MonkeyPatch.context() as patch:
        forward = fastnets.layers.PackedConv2d.forward
        patch.setattr(fastnets.layers.PackedConv2d, "forward", lambda *args: called.append(1) or forward(*args))
        return fast(x), not called


@torch.inference_mode()
@pytest.mark.parametrize("n, size", [(1, 12), (3, 12), (2, 17), (1, 40)])
def test_a_plan_gives_what_the_layers_give(n, size):
    model = settle(Parts()).eval()
    fast = accelerate(model)
    planned(fast, image(n, size))
    for seed in range(3):
        x = image(n, size, seed)
        got, by_plan = ran(fast, x)
        expected = model(x)
        assert by_plan and got.keys() == expected.keys()
        assert all(difference(got[name], expected[name]) < 1e-5 for name in got)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("n, size", [(1, 12), (2, 17), (1, 1)])
def test_slices_are_written_and_read_where_they_lie(n, size, inference):
    fast = accelerate(settle(Slices()).eval())
    with torch.inference_mode(inference), torch.no_grad():
        planned(fast, image(n, size))
        (plan,) = fast._plans.plans.values()
        arena = fast._plans.arena
        for seed in range(2):
            x = image(n, size, seed)
            got, expected = plan(arena, x), nn.Module.__call__(fast, x)
            assert ran(fast, x)[1]
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        by_plan, by_layers = counts(lambda: plan(arena, x)), counts(lambda: nn.Module.__call__(fast, x))
    if size > 1:  # or images are slices and the reverse
        assert by_plan["cat"] == 0 and by_layers["cat"] == 4
        copies = [of["clone"] + of["contiguous"] for of in (by_plan, by_layers)]
        assert copies[0] == copies[1] - 2  # a slice, and what nobody writes to; others are overwritten


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("written", [False, True])
def test_photos_in_planes_are_read_where_they_lie(dtype, written):
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.add(1) if not written else x.clone()
            z = y.contiguous(memory_format=torch.channels_last)
            if written:
                y.add_(1)
            return self.conv(z)

    fast = accelerate(settle(First()).eval(), dtype=dtype)
    x = image(2, 9).to(dtype)
    planned(fast, x)
    (plan,) = fast._plans.plans.values()
    assert torch.equal(plan(fast._plans.arena, x), nn.Module.__call__(fast, x))


@torch.inference_mode()
def test_a_network_copies_no_photos():
    fast = accelerate(settle(nn.Sequential(nn.Conv2d(3, 8, 3))).eval())
    planned(fast, x := image(2, 9))
    (plan,) = fast._plans.plans.values()
    assert counts(lambda: nn.Module.__call__(fast, x)) == {"contiguous": 1, "direct_conv2d": 1}
    assert counts(lambda: plan(fast._plans.arena, x)) == {"direct_conv2d": 1}


@torch.inference_mode()
@pytest.mark.parametrize("more", ("nothing", "a reader", "written"))
def test_maxima_are_taken_where_the_convolution_is_made(more):
    """Not where something else reads the convolution's result, or where the photo is written over in between."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 18, 3), nn.Conv2d(18, 18, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.mul(2)
            y = self.conv(x)
            if more == "written":
                x.add_(1)
            z = self.last(nn.functional.max_pool2d(y, 3, 2, ceil_mode=True))
            return z + y.mean() if more == "a reader" else z + x.mean()

    model = settle(First()).eval()
    fast = accelerate(model)
    for seed in range(4):
        x = image(2, 12, seed)
        assert difference(fast(x), model(x)) < 1e-5
    (plan,) = fast._plans.plans.values()
    plan(fast._plans.arena, x)
    assert counts(lambda: plan(fast._plans.arena, x))["direct_max_pool2d"] == (more == "nothing")


@torch.inference_mode()
def test_concatenations_of_other_kinds_stay():
    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(24, 24, 1), nn.Conv2d(24, 24, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = x.repeat(1, 8, 1, 1).contiguous(memory_format=torch.channels_last)
            wide = torch.cat((self.one(x), self.two(x).double()), 1)
            below = torch.cat((self.one(x), self.two(x)), 2)
            padded = torch.cat((self.one(x), x.new_empty(0), self.two(x)), 1)
            return wide, below, padded, torch.cat((self.one(x), self.two(x)), dim=-3)

    model = settle(Others()).eval()
    fast = accelerate(model)
    for seed in range(4):
        x = image(2, 9, seed)
        for got, expected in zip(fast(x), model(x), strict=True):
            assert got.dtype == expected.dtype and difference(got, expected) < 1e-5
    assert ran(fast, x)[1]


@torch.inference_mode()
def test_a_layer_tells_the_density_of_each_call():
    layer = fastnets.layers.PrecisionGateConv2d(3, 8, 3)
    layer.scale.fill_(1.0)
    fast = accelerate(nn.Sequential(layer, nn.Conv2d(8, 8, 1)).eval())
    (gated,) = [m for m in fast.modules() if isinstance(m, fastnets.layers.PrecisionGateConv2d)]
    for x in (image(1), image(1), image(1), torch.zeros(1, 3, 12, 12), image(1)):
        fast(x)
        assert (gated.density > 0) == x.any()


def counts(call) -> Counter[str]:
    """The operators that a call runs."""
    with looked_on(recorder := Recorder()):
        call()
    return Counter(op._opname for op in recorder.operators)


@torch.inference_mode()
def test_each_shape_and_layout_has_its_plan():
    fast = parts()
    last = image(2).contiguous(memory_format=torch.channels_last)
    planned(fast, image(1), image(2), last)
    assert all(ran(fast, x)[1] for x in (image(1, seed=5), image(2, seed=5), last))
    assert not ran(fast, image(4))[1]
    with threads(torch.get_num_threads() + 1):  # for which weights may have to lie in another order
        assert not ran(fast, image(1))[1]
    assert ran(fast, image(1))[1]


@torch.inference_mode()
def test_a_tensor_that_is_two_arguments_is_told_from_two_tensors():
    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("own", image(seed=7))

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.conv(a) - 2 * self.conv(b) + self.conv(self.own)

    model = settle(Difference()).eval()
    a, b = image(seed=1), image(seed=2)
    for second in (a, b, None):
        fast = accelerate(model)
        (own,) = [buffer for buffer in fast.buffers() if buffer.shape == a.shape]
        for _ in range(3):
            fast(a, own if second is None else second)
        for pair in ((a, b), (b, b), (b, a)):
            assert difference(fast(*pair), model(*pair)) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x1_0"])
def test_kernels_that_follow_one_another_are_one_call(name):
    fast = accelerate(settle(create_model(name, num_classes=3)).eval())
    planned(fast, x := image(1, 64))
    (plan,), arena = fast._plans.plans.values(), fast._plans.arena
    assert (
        counts(lambda: plan(arena, x))["inverted_residual"] > 12
    )  # the first call in a thread writes down what they do
    first = "direct_max_pool2d" if name.startswith("shufflenet") else "direct_conv2d"
    assert counts(lambda: plan(arena, x)) == {first: 1, "run_steps": 1, "pooled_linear": 1}


@torch.inference_mode()
@pytest.mark.parametrize(
    "turn", [lambda y: y.transpose(2, 3), lambda y: y.flip(1), lambda y: y[:, 2:], lambda y: y.contiguous()]
)
def test_copies_between_steps_are_made_at_each_call(turn):
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(3, 18, 1), nn.Conv2d(18, 18, 1), nn.Conv2d(18, 18, 1)
            self.last = nn.Conv2d(turn(torch.ones(1, 18, 2, 2)).shape[1], 18, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = turn(self.two(self.one(self.stem(x)))).contiguous(memory_format=torch.channels_last)
            return self.last(y).add(1)

    model = settle(Turned()).eval()
    fast = accelerate(model)
    for seed in range(5):
        x = image(2, 9, seed)
        assert difference(fast(x), model(x)) < 1e-5


@torch.inference_mode()
def test_steps_go_with_the_memory_that_they_write_to():
    fast = accelerate(settle(create_model("mobilenet_v2", num_classes=3, width=0.25)).eval())
    planned(fast, x := image(1, 32))
    fast(x)
    (plan,), arena = fast._plans.plans.values(), fast._plans.arena
    (steps, *_) = arena.results_of(plan.layout).steps.values()
    torch.ops.fastnets_cpu.run_steps(steps)
    with looked_on(recorder := Recorder()):
        arena.results.clear()
        gc.collect()
    assert not recorder.operators  # a recording in which other networks go does not record that
    assert difference(fast(x), nn.Module.__call__(fast, x)) < 1e-6
    with pytest.raises(RuntimeError, match="no steps"):
        torch.ops.fastnets_cpu.run_steps(steps)


@torch.inference_mode()
def test_results_are_new_at_each_call():
    fast = parts()
    planned(fast, image())
    first = fast(image())
    before = {name: y.clone() for name, y in first.items()}
    fast(image(seed=9))
    assert all(torch.equal(first[name], before[name]) for name in first)


def set_parameter(fast):
    (layer,) = [m for m in fast.modules() if isinstance(m, nn.Conv2d) and m.groups == 4]
    layer.weight = nn.Parameter(layer.weight * 2, requires_grad=False)


def set_data(fast):
    for parameter in fast.parameters():
        parameter.data = parameter.data * 2


def load(fast):
    fast.load_state_dict({name: t * 2 for name, t in fast.state_dict().items()})


def replace_layer(fast):
    path = next(name for name, m in fast.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 4)
    fast.set_submodule(path, nn.Conv2d(32, 32, 3, stride=2, padding=1).eval())


def hook(fast):
    layer = next(m for m in fast.modules() if isinstance(m, nn.Conv2d) and m.groups == 4)
    layer.register_forward_hook(lambda module, args, output: output * 3)


def hook_all(fast):
    fast.register_forward_pre_hook(lambda module, args: (args[0] * 3,))


def replace_forward(fast):
    layer = next(m for m in fast.modules() if isinstance(m, nn.Conv2d) and m.groups == 4)
    layer.forward = lambda x, of=layer: type(of).forward(of, x) * 3


def train_fused(fast):
    fast.requires_grad_()
    x = image()
    optimizer = torch.optim.AdamW(fast.parameters(), lr=0.1, fused=True)
    with torch.enable_grad():
        sum(y.sum() for y in fast(x).values()).backward()
    optimizer.step()
    fast.requires_grad_(False)


def write_data(fast):
    for parameter in fast.parameters():
        parameter.data.mul_(2)
    fast.train().eval()


def edit_graph(fast):
    (difference,) = fast.graph.find_nodes(op="call_function", target=operator.sub)
    difference.target = operator.add
    fast.recompile()


CHANGES = [
    set_parameter,
    set_data,
    write_data,
    load,
    train_fused,
    replace_layer,
    replace_forward,
    hook,
    hook_all,
    edit_graph,
]


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_is_run_as_it_is(change):
    fast, x = parts(), image()
    planned(fast, x)
    (before, by_plan), twin = ran(fast, x), copy.deepcopy(fast)
    assert by_plan
    torch.manual_seed(0)
    change(fast)
    torch.manual_seed(0)
    change(twin)
    for _ in range(3):  # of which the last may run by a new plan
        got, expected = fast(x), nn.Module.__call__(twin, x)
        assert all(torch.equal(got[name], expected[name]) for name in got)
        assert not torch.equal(got["sum"], before["sum"])


def test_training_layers_and_gradients_are_not_planned():
    fast, x = parts(), image()
    with torch.no_grad():
        planned(fast, x)
    x.requires_grad_()
    sum(y.sum() for y in fast(x).values()).backward()
    assert x.grad.any()
    weight = next(fast.parameters()).requires_grad_()
    sum(y.sum() for y in fast(x.detach()).values()).backward()
    assert weight.grad.any()
    with torch.no_grad():
        fast.train()
        first, second = (nn.Module.__call__(fast, x)["again"] for _ in range(2))
        assert torch.equal(first, second)  # the dropout is gone; what is left has no two modes
        assert not ran(fast, x)[1] or torch.equal(ran(fast, x)[0]["again"], first)


def first(x: torch.Tensor) -> torch.Tensor:
    """Which image has the largest sum."""
    return x.sum((1, 2, 3)).argmax()


BY_NUMBERS = {
    "item": lambda m, x: m.conv(x / x.abs().max().item()),
    "of a complex number": lambda m, x: m.conv(x) * abs(torch.view_as_complex(x.amax((0, 2, 3))[:2]).item()),
    "equal": lambda m, x: m.conv(x) * (1 + torch.equal(x, x.abs())),
    "allclose": lambda m, x: m.conv(x) * (1 + torch.allclose(x, x.abs())),
    "is_nonzero": lambda m, x: m.conv(x) * (1 + torch.is_nonzero(x.mean() > 0)),
    "clamp": lambda m, x: m.conv(x).clamp(max=x.mean().item()),
    "index": lambda m, x: m.conv(x)[first(x)],
    "slice": lambda m, x: m.conv(x)[:, : first(x) + 2],
    "mask": lambda m, x: (y := m.conv(x))[y > 0],
    "narrow": lambda m, x: m.conv(x).narrow(0, first(x), 1),
    "select": lambda m, x: m.conv(x).select(0, first(x)),
    "roll": lambda m, x: m.conv(x).roll(first(x).item(), 1),
    "repeat_interleave": lambda m, x: m.conv(x.repeat_interleave(first(x) + 1, 0)) * 2,
    "one_hot": lambda m, x: m.conv(x.new_ones(1, 3, 1, 1) * F.one_hot(first(x))) * 2,
    "full": lambda m, x: m.conv(x) + torch.full((1,), x.amax()),
    "arange": lambda m, x: m.conv(x) * torch.arange(first(x) + 2).sum(),
    "tensor_split": lambda m, x: torch.tensor_split(m.conv(x), first(x)[None] + 1)[0],
    "tolist": lambda m, x: m.conv(x) * x.amax().tolist(),
    "numpy": lambda m, x: m.conv(x) * x.numpy().max().item(),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("forward", BY_NUMBERS.values(), ids=BY_NUMBERS)
def test_what_depends_on_numbers_is_not_planned(forward, inference):
    model = Branch(forward, conv=nn.Conv2d(3, 8, 1)).eval()
    fast, x = accelerate(model), image(2)
    with torch.inference_mode(inference), torch.no_grad():
        for other in (x, x, x, x.flip(0) * 10, x.abs()):
            assert difference(fast(other), model(other)) < 1e-5


@torch.no_grad()
def test_nested_tensors_between_layers_are_not_planned():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = Branch(
        lambda m, x: m.encoder(x, src_key_padding_mask=x[..., 0] > 9), encoder=nn.TransformerEncoder(layer, 2)
    )
    fast, x = accelerate(model.eval()), torch.randn(2, 6, 16)
    x[1, 3:, 0] = 10
    for _ in range(4):
        assert difference(fast(x), model(x)) < 1e-5


@torch.no_grad()
def test_nested_inputs_are_not_planned():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    fast, x = accelerate(model), torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)])
    for _ in range(4):
        assert all(map(torch.equal, fast(x).unbind(), model(x).unbind()))


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@torch.inference_mode()
def test_results_of_other_types_are_made_anew():
    class Pairs(nn.Module):
        def forward(self, x: torch.Tensor) -> Pair:
            return Pair(x * 2, x.amax((2, 3)))

    fast = accelerate(Pairs().eval())
    for seed in range(4):
        x = image(seed=seed)
        got = fast(x)
        assert torch.equal(got.first, x * 2) and torch.equal(got.second, x.amax((2, 3)))


@torch.inference_mode()
def test_parameters_that_have_no_memory_of_their_own_are_not_followed():
    fast = accelerate(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).eval())
    fast.register_buffer("sparse", torch.eye(3).to_sparse())
    planned(fast, image())
    assert not ran(fast, image())[1]


@torch.inference_mode()
def test_code_of_others_runs_at_each_call():
    calls = []

    class Counts(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return super().forward(x)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Counts(8, 8, 1)).eval()
    model[1].register_forward_hook(lambda module, args, output: calls.append(2))
    fast = accelerate(model)
    calls.clear()
    for _ in range(4):
        fast(image())
    assert calls == [1, 2] * 4


@torch.inference_mode()
def test_random_numbers_are_new_at_each_call():
    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) + torch.rand_like(x)

    fast = accelerate(Noise().eval())
    results = [fast(image()) for _ in range(5)]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(results))


@torch.inference_mode()
def test_a_backend_that_is_asked_for_runs_and_is_counted():
    fast, x = parts(), image()
    expected = fast(x)
    planned(fast, x)
    with fastnets.use_backend("reference"):
        for _ in range(3):
            fastnets.backend_report(reset=True)
            assert difference(fast(x)["sum"], expected["sum"]) < 1e-5
            assert all(set(entry["calls"]) == {"reference"} for entry in fastnets.backend_report().values())
    fastnets.backend_report(reset=True)
    once = None
    for _ in range(3):
        fast(x)
        report = fastnets.backend_report(reset=True)
        once = once or report
        assert report == once and "grouped_conv2d" in report
    fast(x)
    fast(x)
    assert {op: entry["calls"]["cpu"] for op, entry in fastnets.backend_report().items()} == {
        op: 2 * entry["calls"]["cpu"] for op, entry in once.items()
    }


@torch.inference_mode()
@pytest.mark.parametrize("change", [load, lambda fast: [p.mul_(2) for p in fast.parameters()]], ids=["load", "write"])
def test_weights_that_are_changed_in_inference_mode_are_seen(change):
    model = nn.Sequential(nn.Conv2d(32, 32, 1, bias=False)).eval()
    fast, x = accelerate(model), torch.randn(1, 32, 9, 9)
    planned(fast, x)
    assert ran(fast, x)[1]
    change(fast)
    assert difference(fast(x), model(x) * 2) < 1e-5


@torch.no_grad()
def test_new_weights_where_old_ones_lay_are_seen():
    fast, x = accelerate(nn.Sequential(nn.Conv2d(8, 64, 3, bias=False)).eval()), torch.randn(1, 8, 9, 9)
    (weight,) = fast.parameters()
    for _ in range(200):
        planned(fast, x)
        for _ in range(2):  # the second may get the memory that the first gives back
            weight.data = torch.randn_like(weight)
        assert difference(fast(x), nn.functional.conv2d(x, weight)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_plan_for_themselves(make):
    fast, x = parts(), image()
    planned(fast, x)
    twin = make(fast)
    assert isinstance(twin, Network)
    assert twin.state_dict().keys() == fast.state_dict().keys()
    twin.get_parameter(next(name for name, _ in twin.named_parameters())).data = torch.zeros(32, 3, 3, 3)
    planned(twin, x)
    assert ran(twin, x)[1] and not torch.equal(twin(x)["sum"], fast(x)["sum"])


def test_threads_share_a_network():
    fast = accelerate(settle(create_model("mobilenet_v2", num_classes=3, width=0.25)).eval())
    xs = [image(1 + i % 2, 32, seed=i) for i in range(40)]
    with torch.no_grad():
        expected = [nn.Module.__call__(fast, x) for x in xs]

    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return fast(x)

    with ThreadPoolExecutor(8) as pool:
        assert all(difference(y, e) < 1e-6 for y, e in zip(pool.map(call, xs), expected, strict=True))


# ---- memory ----------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "shufflenet_v2_x1_0", "squeezenet1_1", "densenet121", "res2net50_26w_4s"],
)
def test_results_in_between_lie_in_the_arena_and_do_not_disturb_each_other(name):
    fast = accelerate(settle(create_model(name, num_classes=3)).eval())
    x = image(2, 64)
    planned(fast, x)
    (plan,), arena = fast._plans.plans.values(), fast._plans.arena
    with looked_on(results := Results()):
        result = plan(arena, x)
    memory = range(arena.memory.data_ptr(), arena.memory.data_ptr() + len(arena.memory))
    inside = [at for at in results.places if at in memory]
    assert len(inside) >= len(results.places) - 1 and result.data_ptr() not in memory  # but the classifier's
    assert all(y.data_ptr() % 64 == 0 for y in arena.results_of(plan.layout))
    arena.memory.view(torch.float32).fill_(torch.nan)
    assert torch.equal(plan(arena, x), nn.Module.__call__(fast, x))


class Results(TorchDispatchMode):
    """Where the results of our kernels lie, but those that are several."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "fastnets_cpu" and isinstance(result, torch.Tensor):
            self.places.append(result.data_ptr())
        return result


def test_no_two_results_overlap_that_are_alive_at_once():
    numbers = random.Random(0)
    for count in [1, 2, 3, 8, 40] * 20:
        graph = fx.Graph()
        blocks = []
        for _ in range(count):
            node, (first, last) = graph.placeholder("x"), sorted(numbers.sample(range(30), 2))
            node.meta["val"] = torch.empty(numbers.choice((1, 16, 17, 100, 1000)))
            blocks.append(Block(node, first, last))
        _choose_offsets(blocks)
        for a, b in combinations(blocks, 2):
            assert a.last < b.first or b.last < a.first or a.end <= b.offset or b.end <= a.offset
        alive = [sum(b.nbytes for b in blocks if b.first <= i <= b.last) for i in range(30)]
        assert max(alive) <= Layout(blocks).nbytes <= 1.6 * max(alive)  # first fit may leave gaps


def test_a_thread_has_one_memory_for_all_sizes_and_modes():
    fast = accelerate(settle(create_model("mobilenet_v2", num_classes=3, width=0.25)).eval())
    xs = [image(n, size, seed=n) for n, size in ((1, 32), (3, 64), (1, 48))]
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            expected = [nn.Module.__call__(fast, x) for x in xs]
            planned(fast, *xs)
            arena = fast._plans.arena
            for x, y in zip([*xs, *xs], [*expected, *expected], strict=True):
                assert torch.equal(fast(x), y)
            sizes = [plan.layout.nbytes for plan in fast._plans.plans.values()]
            assert len(arena.memory) == max(sizes) > min(sizes)
            places = [y for plan in fast._plans.plans.values() for y in arena.results_of(plan.layout)]
            assert {y.untyped_storage().data_ptr() for y in places} == {arena.memory.data_ptr()}
    with ThreadPoolExecutor(1) as pool, torch.inference_mode():
        pool.submit(fast, xs[1]).result()
        theirs = pool.submit(lambda: arena.memory).result()
    assert len(theirs) == len(arena.memory) and theirs.data_ptr() != arena.memory.data_ptr()


def test_operators_write_over_results_in_the_arena_in_any_mode():
    overwrites = Branch(lambda self, x: (self.stem(x).mul_(2) + 1) * 3, stem=nn.Conv2d(3, 32, 3))
    fast = accelerate(overwrites.eval())
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            planned(fast, image())
            (plan,) = fast._plans.plans.values()
            assert len(plan.layout.places) == 2
            assert torch.equal(plan(fast._plans.arena, image()), nn.Module.__call__(fast, image()))


@torch.inference_mode()
def test_a_result_that_grows_has_memory_of_its_own():
    def grows(self, x):
        first, second = self.stem(x), self.stem(x + 1)
        first.resize_(2, 32, 10, 10)[1].fill_(7)
        return second.sin() + first[:1]

    fast = accelerate(Branch(grows, stem=nn.Conv2d(3, 32, 3)).eval())
    planned(fast, image())
    (plan,) = fast._plans.plans.values()
    assert len(plan.layout.places) == 2  # the sum and the second
    assert torch.equal(plan(fast._plans.arena, image()), nn.Module.__call__(fast, image()))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenetv1_100", "squeezenet1_1", "densenet121", "resnext50_32x4d"])
def test_memory_is_at_most_that_of_the_model(name):
    model = create_model(name, num_classes=3).eval().to(memory_format=torch.channels_last)
    fast, x = accelerate(model), image(4, 96).contiguous(memory_format=torch.channels_last)
    planned(fast, x)
    model(x), fast(x)
    (plan,) = fast._plans.plans.values()
    most = peak(lambda: model(x))
    assert 0 < plan.layout.nbytes + peak(lambda: fast(x)) <= most
    fast._plans = None
    fast(x)
    assert 0 < peak(lambda: fast(x)) <= most  # of the call that is recorded
    assert fast._plans.plans


def peak(call) -> int:
    """The most bytes of tensors that a call makes and has at once."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


@torch.inference_mode()
def test_no_page_is_faulted_in_twice():
    fast = accelerate(create_model("mobilenetv1_100", num_classes=3).eval())
    x = image(16, 224).contiguous(memory_format=torch.channels_last)  # a result of 51 MB, twice: 25 088 pages
    planned(fast, x)
    fast(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    fast(x)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000


@pytest.mark.skipif(not hasattr(TorchDispatchMode, "_should_skip_dynamo"), reason="this torch imports it for any mode")
def test_a_plan_does_not_import_the_compiler():
    code = (
        "import sys, torch, fastnets\n"
        "fast = fastnets.accelerate(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval())\n"
        "for _ in range(3): fast(torch.ones(1, 3, 9, 9))\n"
        "assert fast._plans.plans and 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- limits ----------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_number_of_plans_is_bounded():
    fast = accelerate(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).eval())
    for size in range(4, 44):
        planned(fast, image(1, size))
    assert 0 < len(fast._plans.plans) <= 16
    assert fast(image(1, 50)).shape == (1, 8, 50, 50)


@torch.inference_mode()
def test_autocast_and_other_modes_are_obeyed():
    from torch.utils.flop_counter import FlopCounterMode

    fast, x = parts(), image()
    planned(fast, x)
    with FlopCounterMode(display=False) as counter:
        fast(x)
    assert counter.get_total_flops() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(x)["y"].dtype == nn.Module.__call__(fast, x)["y"].dtype


@torch.no_grad()
def test_an_operator_with_none_among_its_results():
    model = Branch(
        lambda m, x: m.lstm(m.conv(x).flatten(2).transpose(1, 2))[0], conv=nn.Conv2d(3, 8, 1), lstm=nn.LSTM(8, 4)
    )
    fast, x = accelerate(settle(model).eval()), torch.randn(1, 3, 5, 5)
    for _ in range(4):
        assert difference(fast(x), model(x)) < 1e-5

"""Parts of networks that a batch goes through in slices: the same results, where it pays, and where it must not."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from peers import Branch, difference, settle
from torch import nn

from fastnets import accelerate
from fastnets.models import create_model

batches = importlib.import_module("fastnets.accelerate._batches")


@pytest.fixture
def small(monkeypatch):
    """All that has 1000 bytes is large, and so is what a slice may have of it."""
    for name, value in (("_LARGE", 1000), ("_SLICE", 1000), ("_WEIGHTS", 1 << 30)):
        monkeypatch.setattr(batches, name, value // torch.get_num_threads())


@pytest.fixture
def always(small, monkeypatch):
    """Cuts whatever can be cut."""
    monkeypatch.setattr(batches.Sizes, "_pays", lambda *_: True)


def parts_of(fast, *inputs):
    sizes = batches.Sizes(fast)
    with torch.inference_mode():
        sizes.run(*inputs)
    return sizes.parts()


def layers(**more):
    return {
        "wide": nn.Conv2d(8, 32, 1),
        "three": nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        "deep": nn.Conv2d(32, 32, 3, padding=1, groups=32),
        "groups": nn.Conv2d(32, 32, 3, padding=1, groups=4),
        "back": nn.Conv2d(32, 8, 1),
        "pool": nn.MaxPool2d(3, 2, 1),
        **more,
    }


def residuals(m, x):
    y = m.wide(x)
    for _ in range(2):
        y = F.relu(m.three(y) + y)
    return m.back(m.groups(y))


MODELS = {
    "chain": lambda m, x: m.back(m.pool(m.three(m.wide(x)))),
    "residuals": residuals,
    "several results": lambda m, x: (y := m.groups(m.three(m.wide(x))), m.back(y), m.back(m.pool(y)).flatten(1)),
    "concatenation": lambda m, x: m.join(torch.cat((y := m.three(m.wide(x)), m.deep(y), m.groups(y)), 1)),
    "inverted residual": lambda m, x: m.back(m.deep(m.wide(m.back(m.deep(m.wide(x))) + x))),
    "written over": lambda m, x: m.back(m.wide(x).add_(m.three(m.wide(x))).relu_()),
    "two parts": lambda m, x: m.back(m.three(m.groups(torch.tanh(m.groups(m.three(m.wide(x))))))),
}  # fmt: skip


@pytest.mark.parametrize("n", (2, 5, 8))
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_slices_give_what_the_batch_gives(always, name, n):
    model = settle(Branch(MODELS[name], join=nn.Conv2d(96, 8, 1), **layers())).eval()
    fast = accelerate(model)
    x = torch.randn(n, 8, 14, 11)
    assert parts_of(fast, x)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.clone(memory_format=layout)
        for _ in range(4):  # notes sizes and packs weights, is recorded, runs the plan
            results, expected = fast(given), model(x.clone())
            pairs = zip(results, expected, strict=True) if isinstance(results, tuple) else [(results, expected)]
            assert all(difference(got, exact) < 1e-5 for got, exact in pairs)
        assert torch.equal(given, x), "the input was changed"


@pytest.mark.parametrize("name", ("mobilenet_v2", "resnet18", "squeezenet1_1", "densenet121", "shufflenet_v2_x0_5"))
@pytest.mark.parametrize("dtype", (None, torch.bfloat16), ids=str)
@torch.inference_mode()
def test_networks_in_slices(monkeypatch, name, dtype):
    torch.manual_seed(0)
    model = settle(create_model(name, num_classes=10)).eval()
    x = torch.randn(4, 3, 64, 64)
    whole = accelerate(model, dtype=dtype)(x)
    for place, value in (("_LARGE", 10_000), ("_SLICE", 40_000)):
        monkeypatch.setattr(batches, place, value)
    fast = accelerate(model, dtype=dtype)
    assert parts_of(fast, x)
    for _ in range(4):
        # Bit by bit where no layer takes another kernel for fewer images; oneDNN's and Winograd's may.
        assert difference(fast(x), whole) < (2e-5 if dtype is None else 0.05)


@torch.inference_mode()
def test_int8_in_slices(small, cpu_kernels):
    model = settle(Branch(MODELS["residuals"], **layers())).eval()
    x = torch.randn(6, 8, 14, 11)
    fast = accelerate(model, x, dtype=torch.int8)
    assert parts_of(fast, x)
    whole = fast(x[:1])
    for _ in range(4):
        assert torch.equal(fast(x)[:1], whole)


@torch.inference_mode()
def test_slices_need_less_memory(monkeypatch, cpu_kernels):
    model, x = settle(Branch(residuals, **layers())).eval(), torch.randn(16, 8, 32, 32)
    sizes = {}
    for large in (1 << 40, 1 << 18):
        monkeypatch.setattr(batches, "_LARGE", large)
        monkeypatch.setattr(batches, "_SLICE", 1 << 16)
        fast = accelerate(model)
        for _ in range(3):
            fast(x)
        sizes[large] = fast._plans.arena.memory.numel()
    assert sizes[1 << 18] < sizes[1 << 40] / 4


def find(does, n=8, **more):
    return parts_of(accelerate(settle(Branch(does, **layers(**more))).eval()), torch.randn(n, 8, 14, 11))


def test_what_is_cut(small):
    (part,) = find(MODELS["chain"])
    assert part.images == 1 and len(part.outputs) == 1
    assert [node.op for node in part.nodes] == ["call_module"] * len(part.nodes)
    first, second = find(MODELS["two parts"])
    assert first.images == second.images == 1


def test_what_stays_whole(small, monkeypatch):
    assert not find(MODELS["chain"], n=1)
    assert not find(lambda m, x: m.wide(x))  # all that is made is read after it
    assert not find(lambda m, x: (m.three(y := m.wide(x)), y))
    assert not find(lambda m, x: F.silu(m.wide(F.silu(x))))
    monkeypatch.setattr(batches, "_SLICE", 1 << 20)
    assert not find(MODELS["chain"])  # a slice would be all of it
    monkeypatch.setattr(batches, "_SLICE", 1000)
    monkeypatch.setattr(batches, "_WEIGHTS", 100)
    assert not find(MODELS["chain"])
    monkeypatch.setattr(batches, "_LARGE", 1 << 30)
    monkeypatch.setattr(batches, "_WEIGHTS", 1 << 30)
    assert not find(MODELS["chain"])


def test_a_plan_has_not_too_many_slices(small):
    (part,) = find(MODELS["chain"], n=100)
    assert part.images == 4


@torch.inference_mode()
def test_errors_are_those_of_the_network(small):
    model = settle(Branch(MODELS["chain"], **layers())).eval()
    with pytest.raises(RuntimeError) as theirs:
        model(torch.ones(4, 7, 9, 9))
    with pytest.raises(RuntimeError) as ours:
        accelerate(model)(torch.ones(4, 7, 9, 9))
    assert str(ours.value) == str(theirs.value)


@torch.inference_mode()
def test_numbers_among_the_arguments(small):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.chain = Branch(MODELS["chain"], **layers())

        def forward(self, x, scale):
            return self.chain(x) * scale

    model, x = settle(Scaled()).eval(), torch.randn(4, 8, 14, 11)
    fast = accelerate(model)
    for n in (1, 4):
        for scale in (2.0, 3.0, 4.0, 5.0):
            given = x[:n], torch.tensor(scale)
            assert difference(fast(*given), model(*given)) < 1e-5


def test_batches_of_different_sizes_stay_whole(small):
    two = lambda m, x: m.back(m.three(m.wide(x))), lambda m, x: m.back(m.three(m.wide(x[:2])))
    assert len(find(two[0])) == 1 and not find(lambda m, x: (two[0](m, x), two[1](m, x)))


def test_statistics_of_batches_stay_whole(small):
    """A BatchNorm that is set to train sees all images together."""
    model = settle(
        Branch(
            lambda m, x: m.conv(F.relu(m.norm(m.pool(m.wide(x))))),
            norm=nn.BatchNorm2d(32),
            **layers(conv=nn.Conv2d(32, 32, 1)),
        )
    ).eval()
    fast, x = accelerate(model), torch.randn(4, 8, 14, 11)
    cut = lambda: [str(node.target) for part in parts_of(fast, x) for node in part.nodes]
    assert any("preact" in target for target in cut())
    fast.train()
    assert cut() and not any("preact" in target for target in cut())


def test_few_nodes_between_large_values_are_taken_along(monkeypatch):
    nodes = list(range(30))
    large = {3, 5, 12, 25, 26}
    monkeypatch.setattr(batches, "_GAP", 8)
    assert list(batches._pieces(nodes, large.__contains__)) == [nodes[3:13], nodes[25:27]]
    assert list(batches._pieces(nodes, set().__contains__)) == []


@torch.inference_mode()
def test_what_lies_within_dense_blocks_counts(monkeypatch):
    monkeypatch.setattr(batches, "_LARGE", 60_000 // torch.get_num_threads())
    monkeypatch.setattr(batches, "_SLICE", 1)
    fast, x = accelerate(settle(create_model("densenet121", num_classes=10)).eval()), torch.randn(4, 3, 32, 32)
    sizes = batches.Sizes(fast)
    sizes.run(x)
    # 256 features of 8x8, 512 of 4x4, 1024 of 2x2 and of 1x1.
    assert [*sizes.within.values()] == [4 * 4 * c * h * h for c, h in ((256, 8), (512, 4), (1024, 2), (1024, 1))]
    assert [[n for n in part.nodes if n in sizes.within] for part in sizes.parts()] == [list(sizes.within)[:3]]

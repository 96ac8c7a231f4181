"""One rank of the tests in test_sync_batch_norm_ranks.py; torchrun starts several. Arguments: scenes, separated by commas,
and a folder.

Every scene compares what the ranks got with one process over the concatenated batch, in float64 to 1e-10.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastnets.layers import SyncBatchNorm
from fastnets.ops import sync_batch_norm
from fastnets.ops._activation import ACTIVATIONS

CHANNELS, TIMEOUT = 5, 10
DOUBLE = {"dtype": torch.float64}


class Collectives:
    """Counts the collectives that operators of PyTorch start, under any name."""

    def __enter__(self):
        self.names: list[str] = []
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self.profiler.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.profiler.__exit__(*error)
        self.names = [e.name for e in self.profiler.events() if e.name.startswith("_c10d_functional::")]
        self.names += [e.name for e in self.profiler.events() if e.name.startswith("c10d::")]


def batches(sizes: list[int], layout: torch.memory_format = torch.contiguous_format) -> list[Tensor]:
    make = torch.Generator().manual_seed(3)
    several = [torch.randn(n, CHANNELS, 4, 3, generator=make, **DOUBLE) * 2 + 7 for n in sizes]
    return [x.contiguous(memory_format=layout) for x in several]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def vectors() -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(4)
    return torch.randn(CHANNELS, generator=make, **DOUBLE), torch.randn(CHANNELS, generator=make, **DOUBLE)


def whole(xs: list[Tensor], activation: str | None, *, momentum: float = 0.3) -> dict[str, list[Tensor]]:
    """F.batch_norm over all ranks' batches: results and gradients, cut into each rank's; gradients of a square sum."""
    w, b = (v.requires_grad_() for v in vectors())
    x = torch.cat(xs).requires_grad_()
    mean, var = torch.zeros(CHANNELS, **DOUBLE), torch.ones(CHANNELS, **DOUBLE)
    y = ACTIVATIONS[activation](nn.functional.batch_norm(x, mean, var, w, b, True, momentum, 1e-3))
    dx, dw, db = torch.autograd.grad(y.pow(3).sum(), (x, w, b), create_graph=True)
    second = torch.autograd.grad(dx.square().sum() + dw.square().sum() / 9 + db.sum(), (x, w))
    cut = [len(x) for x in xs]
    whole = {"y": y.split(cut), "dx": dx.split(cut), "ddx": second[0].split(cut)}
    return {k: [t.detach() for t in v] for k, v in whole.items()} | {
        "dw": [dw.detach()], "db": [db.detach()], "ddw": [second[1]], "running": [mean, var]
    }  # fmt: skip


def equals_one_process(sizes: list[int], layout: torch.memory_format, activation: str | None = None) -> None:
    rank = dist.get_rank()
    xs = batches(sizes, layout)
    expected = whole(xs, activation)
    x = xs[rank].requires_grad_()
    w, b = (v.requires_grad_() for v in vectors())
    mean, var = torch.zeros(CHANNELS, **DOUBLE), torch.ones(CHANNELS, **DOUBLE)
    with Collectives() as forward:
        y = sync_batch_norm(x, mean, var, w, b, True, 0.3, 1e-3, activation=activation)
    close(y, expected["y"][rank])
    close(mean, expected["running"][0])
    close(var, expected["running"][1])
    with Collectives() as backward:
        dx, dw, db = torch.autograd.grad(y.pow(3).sum(), (x, w, b), create_graph=True)
    if dist.get_world_size() == 1:
        assert not forward.names and not backward.names, (forward.names, backward.names)
    else:
        assert [n for n in forward.names if "wait" not in n and n.startswith("_c10d")] == [
            "_c10d_functional::all_gather_into_tensor"
        ], forward.names
        assert [n for n in backward.names if "wait" not in n and n.startswith("_c10d")] == [
            "_c10d_functional::all_reduce"
        ], backward.names
        assert len([n for n in forward.names + backward.names if n.startswith("c10d::")]) in (0, 2)
    close(dx, expected["dx"][rank])
    total = torch.stack([dw, db]).detach()
    if dist.get_world_size() > 1:
        dist.all_reduce(total)  # what DistributedDataParallel does with the local gradients
    close(total[0], expected["dw"][0])
    close(total[1], expected["db"][0])
    # The gradient of the gradient: sums over ranks of squares of local dx; of dw the total's, so 2 dw / 9 of each rank.
    local = dx.square().sum() + (total[0] * 2 / 9 * dw).sum() + db.sum()
    second = torch.autograd.grad(local, (x, w))
    close(second[0], expected["ddx"][rank])
    ddw = second[1].clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(ddw)
    close(ddw, expected["ddw"][0])


def scene_equal(_: Path) -> None:
    world = dist.get_world_size()
    equals_one_process([3] * world, torch.contiguous_format)
    equals_one_process([3] * world, torch.channels_last)


def scene_unequal(_: Path) -> None:
    sizes = [2 + 3 * i for i in range(dist.get_world_size())]
    equals_one_process(sizes, torch.contiguous_format)
    equals_one_process(sizes[::-1], torch.channels_last)
    for activation in ("relu", "silu"):
        equals_one_process(sizes, torch.channels_last, activation)


def scene_empty(_: Path) -> None:
    world = dist.get_world_size()
    equals_one_process([0] + [3] * (world - 1), torch.contiguous_format)
    equals_one_process([4] + [0] * (world - 1), torch.channels_last)
    # Nobody has anything: nothing is learnt, nothing is NaN.
    layer = SyncBatchNorm(CHANNELS)
    x = torch.zeros(0, CHANNELS, 2, 2, requires_grad=True)
    layer(x).sum().backward()
    assert not layer.running_mean.any() and torch.equal(layer.running_var, torch.ones(CHANNELS))
    # One value of a channel on all ranks together.
    if world < 2:
        return  # one process refuses that, as F.batch_norm does
    one = torch.ones(1 if dist.get_rank() == 0 else 0, CHANNELS, 1, 1)
    assert not layer(one).any() and torch.isfinite(layer.running_var).all()


def scene_half(_: Path) -> None:
    """16-bit input on most ranks, none on one, parameters in float32: all exchange the same type."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for dtype in (torch.bfloat16, torch.float16):
        xs = [x.to(dtype) for x in batches([0 if i == 1 else 3 for i in range(world)])]
        layer = SyncBatchNorm(CHANNELS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(xs[rank].requires_grad_())
        assert y.dtype == dtype
        y.sum().backward()
        full = nn.functional.batch_norm(torch.cat(xs).float(), None, None, training=True)
        expected = full.split([len(x) for x in xs])[rank]
        close(y.float(), expected.to(dtype).float(), 2 * torch.finfo(dtype).eps)
        assert xs[rank].grad.dtype == dtype and layer.weight.grad.dtype == torch.float32


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, momentum=None)]
    return nn.Sequential(*layers, nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(64, 2)).double()


def scene_ddp(_: Path) -> None:
    """Three steps of a network, wrapped as users do it, equal those of one process on the whole batch."""
    rank, world = dist.get_rank(), dist.get_world_size()
    single, ours = network(), DistributedDataParallel(SyncBatchNorm.convert(network()))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (single, ours)]
    for step in range(3):
        x = torch.randn(2 * world, 3, 8, 8, generator=torch.Generator().manual_seed(step), **DOUBLE)
        for model, optimizer, part in zip((single, ours), optimizers, (x, x.chunk(world)[rank]), strict=True):
            optimizer.zero_grad()
            model(part).square().mean().backward()
            optimizer.step()
    for (name, a), b in zip(single.state_dict().items(), ours.module.state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    with Collectives() as inference:
        x = torch.randn(2, 3, 8, 8, **DOUBLE)
        close(ours.module.eval()(x), SyncBatchNorm.revert(ours.module)(x))
    assert not inference.names


def scene_compile(_: Path) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    xs = batches([2 + i for i in range(world)])
    eager, compiled = SyncBatchNorm(CHANNELS, **DOUBLE), SyncBatchNorm(CHANNELS, **DOUBLE)
    both = []
    for layer in (eager, torch.compile(compiled, fullgraph=True, backend="aot_eager")):
        x = xs[rank].clone().requires_grad_()
        with Collectives() as calls:
            y = layer(x)
            y.pow(3).sum().backward()
        kinds = [n for n in calls.names if n.startswith("_c10d") and "wait" not in n]
        assert kinds == ["_c10d_functional::all_gather_into_tensor", "_c10d_functional::all_reduce"], kinds
        both.append([y.detach(), x.grad])
    for a, b in zip(*both, strict=True):
        close(a, b)
    close(eager.running_var, compiled.running_var)
    close(eager.weight.grad, compiled.weight.grad)


def scene_groups(_: Path) -> None:
    """Each half of four ranks is a group of its own."""
    rank = dist.get_rank()
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    xs = batches([1, 2, 3, 4])
    y = sync_batch_norm(xs[rank], None, None, training=True, process_group=groups[rank // 2])
    first = rank // 2 * 2
    pair = nn.functional.batch_norm(torch.cat(xs[first : first + 2]), None, None, training=True)
    close(y, pair.split([len(x) for x in xs[first : first + 2]])[rank - first])
    outside = groups[1 - rank // 2]  # a rank that is no member normalises alone
    alone = sync_batch_norm(xs[rank], None, None, training=True, process_group=outside)
    close(alone, nn.functional.batch_norm(xs[rank], None, None, training=True))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(6)


def fails(folder: Path, expected: str) -> None:
    """Runs the layer 'first' on rank 0, whose error must come in time and name it."""
    model = SyncBatchNorm.convert(Two())
    try:
        model.first(torch.randn(8, 4, requires_grad=True)).pow(2).sum().backward()
    except RuntimeError as error:
        assert "layer 'first' (4 channels): rank 0 of 2" in str(error) and expected in str(error), error
        (folder / "named").touch()


def scene_dies(folder: Path) -> None:
    if dist.get_rank() == 0:
        fails(folder, "Has a rank ended")


def scene_skips_to_same_size(folder: Path) -> None:
    if dist.get_rank() == 0:
        return fails(folder, "Not in this layer: rank 1.")
    try:
        SyncBatchNorm.convert(Two()).second(torch.randn(8, 4))
    except RuntimeError as error:
        assert "layer 'second' (4 channels): rank 1 of 2" in str(error)


def scene_dies_before_backward(folder: Path) -> None:
    if dist.get_rank() == 0:
        return fails(folder, "the sums of the gradient")
    SyncBatchNorm.convert(Two()).first(torch.randn(8, 4))


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    for scene in sys.argv[1].split(","):
        globals()[f"scene_{scene}"](Path(sys.argv[2]))
        (Path(sys.argv[2]) / f"{scene} {dist.get_rank()}").touch()

"""Shuffles that networks spell out, and their accelerated copies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peers import difference, import_peer, settle
from torch import Tensor, nn

import fastnets
from fastnets.accelerate import accelerate
from fastnets.accelerate._compile import compile_backend


class Does(nn.Module):
    def __init__(self, does: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: Tensor) -> object:
        return self.does(x)


def by_size(x, groups=2):
    """As torchvision has it."""
    n, c, h, w = x.size()
    x = x.view(n, groups, c // groups, h, w)
    return torch.transpose(x, 1, 2).contiguous().view(n, c, h, w)


def by_shape(x):
    n, _, h, w = x.shape
    return x.reshape((n, 3, -1, h, w)).transpose(2, 1).reshape((n, -1, h, w))


def by_each_size(x):
    n, h, w = x.size(0), x.size(2), x.size(3)
    return x.view(n, 4, -1, h, w).transpose(1, 2).reshape(n, -1, h, w)


def halves(x):
    a, b = x.chunk(2, 1)
    return by_size(torch.cat((a.relu(), b), 1)).chunk(2, dim=1)


def ran(fast: Callable[..., object], x: Tensor) -> tuple[object, dict[str, int]]:
    fastnets.backend_report(reset=True)
    y = fast(x)
    return y, {op: sum(entry["calls"].values()) for op, entry in fastnets.backend_report().items()}


X = torch.arange(2 * 12 * 5 * 7.0).view(2, 12, 5, 7)


@pytest.mark.parametrize("compiled", (False, True))
@pytest.mark.parametrize(
    ("does", "ops"),
    [
        (by_size, {"channel_shuffle": 1}),
        (by_shape, {"channel_shuffle": 1}),
        (by_each_size, {"channel_shuffle": 1}),
        (lambda x: by_size(by_size(x), 3), {"channel_shuffle": 2}),
        (halves, {"shuffle_split": 1}),
    ],
)
def test_shuffles_become_ops(does, ops, compiled):
    model = Does(does).eval()
    fast = torch.compile(model, backend=compile_backend) if compiled else accelerate(model)
    with torch.inference_mode():
        y, calls = ran(fast, X)
        torch.testing.assert_close(y, model(X), rtol=0, atol=0)
    assert calls == ops


def transposed(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, w, h).transpose(1, 2).reshape(n, c, h, w)


def other_dims(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(2, 3).reshape(n, c, h, w)


def part_of_the_batch(x):
    n, c, h, w = x.shape
    return x.reshape(n // 2, 2, 2 * c // 2, h, w).transpose(1, 2).reshape(n // 2, -1, h, w)


@pytest.mark.parametrize("does", (transposed, other_dims, part_of_the_batch))
def test_what_is_no_shuffle_of_channels(does):
    model = Does(does).eval()
    y, calls = ran(accelerate(model), X)
    torch.testing.assert_close(y, model(X), rtol=0, atol=0)
    assert calls == {}


@pytest.mark.parametrize(
    "does",
    [
        lambda x: by_size(torch.cat((x[:, :4], x[:, 4:]), 1)).chunk(2, 1),
        lambda x: by_size(torch.cat((x[:, :6], x[:, 6:]), 1), 3).chunk(2, 1),
        lambda x: by_size(torch.cat((x[:, :6], x[:, 6:]), 1)).chunk(3, 1),
        lambda x: by_size(torch.cat((x[..., :6], x[..., 6:]), 3)).chunk(2, 1),
        lambda x: by_size(torch.cat((x, x, x, x), 1)).chunk(2, 1),
        lambda x: [y := by_size(torch.cat((x, x), 1)), y.chunk(2, 1)],
        lambda x: [y := torch.cat((x, x), 1), by_size(y).chunk(2, 1)],
        lambda x: by_size(torch.cat((x, x), 1)).chunk(2),
    ],
)
def test_splits_that_differ(does):
    model = Does(does).eval()
    y, calls = ran(accelerate(model), X)
    torch.testing.assert_close(y, model(X), rtol=0, atol=0)
    assert calls == {"channel_shuffle": 1}


def test_torchvisions_shufflenet():
    model = settle(import_peer("torchvision").models.shufflenet_v2_x0_5()).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        y, calls = ran(accelerate(model), x)
        assert difference(y, model(x)) < 1e-4
    assert calls["shuffle_split"] == 13 and calls["channel_shuffle"] == 3

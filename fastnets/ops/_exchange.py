"""What the ranks of a process group tell each other about a batch: one collective a call, and errors with a name.

The two operators are opaque to a tracer, so that a compiled graph makes the same calls, with the same messages.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from fastnets._op import _library


def group_name(process_group: dist.ProcessGroup | None) -> str:
    """The name of the group (None: the default one) if it has several ranks, this one among them; otherwise ''."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(process_group) < 2:
        return ""
    group = dist.group.WORLD if process_group is None else process_group
    assert group is not None
    return group.group_name


@contextmanager
def _named(what: str, channels: int, group: str, layer: str) -> Iterator[dist.ProcessGroup]:
    resolved = torch._C._distributed_c10d._resolve_process_group(group)  # type: ignore[arg-type]
    try:
        yield resolved
    except RuntimeError as error:
        where = f"layer {layer!r}" if layer else "a layer without a name"
        raise RuntimeError(
            f"sync_batch_norm: {where} ({channels} channels): rank {resolved.rank()} of {resolved.size()} could not "
            f"exchange {what} with the others. Has a rank ended, or skipped the layer? {error}"
        ) from error


def _moments(mean: Tensor, m2: Tensor, count: Tensor, group: str, layer: str) -> tuple[Tensor, Tensor, Tensor]:
    c = mean.numel()
    tag = zlib.crc32(layer.encode()) % 2**20  # exact in float32
    local = torch.cat((mean, m2, count.to(mean.dtype).view(1), mean.new_full((1,), tag)))
    with _named("the moments of the batch", c, group, layer) as ranks:
        # One collective, of 2 c + 2 numbers a rank; sums of all ranks' are then taken in the same order on each.
        gathered = torch.ops._c10d_functional.all_gather_into_tensor(local, ranks.size(), group)
        gathered = torch.ops._c10d_functional.wait_tensor(gathered).view(ranks.size(), -1)
        if mean.is_cpu:  # on a GPU a look would mean to wait for it
            elsewhere = [i for i, t in enumerate(gathered[:, -1].tolist()) if t != tag]
            if elsewhere:
                raise RuntimeError(f"Not in this layer: rank {', '.join(map(str, elsewhere))}.")
    means, m2s, counts = gathered[:, :c], gathered[:, c : 2 * c], gathered[:, 2 * c, None]
    total = counts.sum()
    divisor = total.clamp(min=1)
    # Chan's formula for several parts: m2 = sum of m2_i + count_i (mean_i - mean)².
    mean = means[0] + ((means - means[0]) * counts).sum(0) / divisor
    return mean, (m2s + counts * (means - mean).square()).sum(0) / divisor, total


def _sums(sums: Tensor, group: str, layer: str) -> Tensor:
    with _named("the sums of the gradient", sums.shape[-1], group, layer):
        total = torch.ops._c10d_functional.all_reduce(sums, "sum", group)
        return torch.ops._c10d_functional.wait_tensor(total)


# All ranks' mean, biased variance and count, of this rank's moments.
_library.define(
    "exchange_moments(Tensor mean, Tensor m2, Tensor count, str group, str layer) -> "
    "(Tensor mean, Tensor var, Tensor count)"
)
# The sum over all ranks.
_library.define("exchange_sums(Tensor sums, str group, str layer) -> Tensor")
_library.impl("exchange_moments", _moments, "CompositeExplicitAutograd")
_library.impl("exchange_sums", _sums, "CompositeExplicitAutograd")


@torch.library.register_fake("fastnets::exchange_moments", lib=_library)
def _fake_moments(mean: Tensor, m2: Tensor, count: Tensor, group: str, layer: str) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(mean), torch.empty_like(m2), mean.new_empty(())


@torch.library.register_fake("fastnets::exchange_sums", lib=_library)
def _fake_sums(sums: Tensor, group: str, layer: str) -> Tensor:
    return torch.empty_like(sums)


exchange_moments = torch.ops.fastnets.exchange_moments.default
exchange_sums = torch.ops.fastnets.exchange_sums.default

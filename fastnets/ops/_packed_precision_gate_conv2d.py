"""Precision gating for inference: weights quantised and packed once, in the order in which the CPU's kernel reads them.

A panel is 16 output channels of a group whose bytes lie together. Weights of 9 bits with their sign do not fit a byte:
what passes it is an excess, a table for each panel (``Excess`` in csrc/cpu/precision_gate_conv2d.h).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnets._op import is_plain
from fastnets.ops._convolution import Ints
from fastnets.ops._packed import cpu_kernels, packed_op
from fastnets.ops.precision_gate_conv2d import gated, kernels_decline, largest, quantize

LANES, WINDOW = 16, 64  # kLanes and kWindow in csrc/cpu/precision_gate_conv2d.h


def takes(
    x: Tensor, w: Tensor, threshold: Tensor, bias: Tensor | None, scale: Tensor, activation_bits: int, weight_bits: int
) -> bool:
    """Whether the kernel may run where these are the arguments of a valid call of ``precision_gate_conv2d``."""
    if torch.compiler.is_compiling() or not x.is_cpu or not is_plain(x, w, threshold, bias, scale):
        return False
    return cpu_kernels() and not kernels_decline(x, w, activation_bits, weight_bits)


# To bytes (p, t, c / 4, 16, 4) of p panels of t taps and c channels, rounded up to a multiple of four; their sums (p, 16);
# where each panel's excess starts (p + 1); the excess (k, 144); the largest magnitude of a weight, in the weights' type.
pack_precision_gate_conv2d = packed_op("pack_precision_gate_conv2d(Tensor w, int groups, int weight_bits) -> Tensor[]")
packed_precision_gate_conv2d = packed_op(
    "packed_precision_gate_conv2d(Tensor x, Tensor[] weights, int[4] sizes, Tensor threshold, Tensor? bias, "
    "Tensor scale, int[2] stride, int[2] padding, int[2] dilation, int groups, int activation_bits, int high_bits, "
    "int weight_bits) -> (Tensor y, Tensor open)"  # sizes: of the weights
)

# ---- reference -------------------------------------------------------------------------------


@pack_precision_gate_conv2d.backend("reference")
def _pack(w: Tensor, groups: int, weight_bits: int) -> list[Tensor]:
    scale = largest(w)
    q = quantize(w, scale, weight_bits).to(torch.int32).flatten(2)
    o, channels, _ = q.shape
    q = F.pad(q.view(groups, o // groups, channels, -1), (0, 0, 0, -channels % 4, 0, -(o // groups) % LANES))
    panels = q.view(-1, LANES, *q.shape[2:]).permute(0, 3, 2, 1)  # panel, tap, channel, lane
    bytes = panels.clamp(-128, 127)
    starts, excess = _excess(panels - bytes)
    sums = panels.sum((1, 2), dtype=torch.int32)
    bytes = bytes.unflatten(2, (-1, 4)).transpose(3, 4).to(torch.int8)
    return [t.contiguous() for t in (bytes, sums, starts, excess, scale.to(w.dtype))]


def _excess(rest: Tensor) -> tuple[Tensor, Tensor]:
    """What (panel, tap, channel, lane) exceed a byte by, at most 128, as signed bytes in places of a window's channels."""
    rest = F.pad(rest, (0, 0, 0, -rest.shape[2] % WINDOW)).unflatten(2, (-1, WINDOW))
    rest = torch.cat([rest.clamp(max=127), (rest - 127).clamp(min=0)], 3)  # 128, which no signed byte holds, is two
    taken, channel = (rest != 0).to(torch.int8).sort(dim=3, descending=True, stable=True)
    weight, index = rest.gather(3, channel) * taken, channel % WINDOW * taken
    weight, index = (t.unflatten(3, (-1, 4)).transpose(4, 5).flatten(4) for t in (weight, index))  # four to a lane
    panel, tap, window, places = (weight != 0).any(4).nonzero(as_tuple=True)
    head = torch.stack([tap, window * WINDOW], 1).view(torch.uint8)
    at = panel, tap, window, places
    excess = torch.cat([head, index[at].to(torch.uint8), weight[at].to(torch.int8).view(torch.uint8)], 1)
    return F.pad(panel.bincount(minlength=len(rest)).cumsum(0), (1, 0)), excess


def unpack(weights: list[Tensor], sizes: Ints, groups: int) -> Tensor:
    """The quantised weights of these sizes as integers, in float64."""
    bytes, _, starts, excess, _ = weights
    panels = bytes.transpose(3, 4).flatten(2, 3).double()  # panel, tap, channel, lane
    tap, channel = excess[:, :16].contiguous().view(torch.int64)[..., None, None].unbind(1)
    panel = torch.repeat_interleave(starts.diff())[:, None, None]
    lane = torch.arange(LANES)[:, None]
    index, rest = excess[:, 16:].long().view(-1, 2, LANES, 4).unbind(1)
    rest = torch.where(rest > 127, rest - 256, rest)
    # A place that is not taken adds 0 to a channel that is there.
    panels.index_put_((panel, tap, channel + index * (rest != 0), lane), rest.double(), accumulate=True)
    rows = panels.permute(0, 3, 2, 1).unflatten(0, (groups, -1)).flatten(1, 2)[:, : sizes[0] // groups, : sizes[1]]
    return rows.reshape(tuple(sizes))


@packed_precision_gate_conv2d.backend("reference")
def _packed(
    x: Tensor, weights: list[Tensor], sizes: Ints, threshold: Tensor, bias: Tensor | None, scale: Tensor,
    stride: Ints, padding: Ints, dilation: Ints, groups: int, activation_bits: int, high_bits: int, weight_bits: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q, geometry = unpack(weights, sizes, groups), (stride, padding, dilation, groups)
    return gated(x, q, weights[-1], threshold, bias, scale, *geometry, activation_bits, high_bits, weight_bits)

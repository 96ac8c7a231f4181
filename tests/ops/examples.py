"""A call of every public op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from boxes import box_set, some_ids

from fastnets import ops


def examples(s: int) -> dict[str, Callable[[], Any]]:
    """By name, a call on s images of s² channels, s² rows and s² columns, or on s² boxes; s = 1 is the least there is."""
    c, k, make = s * s, 3 if s > 1 else 1, torch.Generator().manual_seed(s)
    x, other = torch.randn(2, s, c, c, c, generator=make)
    v = torch.randn(c, generator=make)
    w, w_grouped = torch.randn(c, 1, k, k, generator=make), torch.randn(c, s, k, k, generator=make)
    boxes, ids = box_set("random", c, s), some_ids(c, s)
    return {
        "batch_moments": lambda: ops.batch_moments(x),
        "batched_nms": lambda: ops.batched_nms(*boxes, ids, 0.5),
        "batched_soft_nms": lambda: ops.batched_soft_nms(*boxes, ids),
        "channel_shuffle": lambda: ops.channel_shuffle(x, s),
        "conv2d": lambda: ops.conv2d(x, w_grouped, groups=s),
        "corner_pool": lambda: ops.corner_pool(x, "top"),
        "corner_pool_sum": lambda: ops.corner_pool_sum(x, other, "top_left"),
        "depthwise_conv2d": lambda: ops.depthwise_conv2d(x, w, activation="relu"),
        "grouped_conv2d": lambda: ops.grouped_conv2d(x, w_grouped, groups=s, activation="relu"),
        "nms": lambda: ops.nms(*boxes, 0.5),
        "pixel_shuffle": lambda: ops.pixel_shuffle(x, s),
        "pixel_shuffle_to_uint8": lambda: ops.pixel_shuffle_to_uint8(x, s),
        "pixel_unshuffle": lambda: ops.pixel_unshuffle(x, s),
        "precision_gate_conv2d": lambda: ops.precision_gate_conv2d(x, w_grouped, v, groups=s),
        "shuffle_split": lambda: ops.shuffle_split(x, other),
        "soft_nms": lambda: ops.soft_nms(*boxes),
        "strip_pool": lambda: ops.strip_pool(x),
        "sync_batch_norm": lambda: ops.sync_batch_norm(x, v, v.exp()),
    }

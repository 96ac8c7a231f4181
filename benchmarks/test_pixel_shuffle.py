"""pixel_shuffle against PyTorch: ESPCN to 1080p (arXiv:1609.05158) and the tails of EDSR (arXiv:1707.02921)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks import _peers, _shapes
from fastnets.ops import pixel_shuffle, pixel_shuffle_to_uint8

ESPCN, EDSR = [*_shapes.ESPCN.values()], [*_shapes.EDSR.values()]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def cost(n, c, h, w, size):
    """Each number is read once, in 4 bytes, and written once in `size`."""
    return {"nbytes": (4 + size) * n * c * h * w, "flops": 0}


def by_hand(x, r):
    n, c, h, w = x.shape
    return x.view(n, c // (r * r), r, r, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // (r * r), h * r, w * r)


def into_channels_last(x, r):
    """The same with its result written as rows of pixels, which is the order of memory in channels_last."""
    n, c, h, w = x.shape
    y = x.view(n, c // (r * r), r, r, h, w).permute(0, 4, 2, 5, 3, 1).reshape(n, h * r, w * r, c // (r * r))
    return y.permute(0, 3, 1, 2)


def onnx(x, r):
    return _peers.onnx_op([("DepthToSpace", "x", "y", {"blocksize": r, "mode": "CRD"})], {"x": x})


def to_uint8(x, r):
    return F.pixel_shuffle(x, r).clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def map_of(n, c, h, w, r, layout):
    return torch.rand(n, c * r * r, h // r, w // r).contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("shape", ESPCN + EDSR, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixel_shuffle(race, layout, shape):
    x, r = map_of(*shape, layout), shape[-1]
    race(
        f"pixel_shuffle, {layout}",
        str(shape),
        {
            "torch": lambda: (F.pixel_shuffle(x, r),),
            "by hand": lambda: (by_hand(x, r),),
            "into channels_last": lambda: (into_channels_last(x, r),),
            "compile": _peers.compiled(F.pixel_shuffle, x, r),
            **onnx(x, r),
            "fastnets": lambda: (pixel_shuffle(x, r),),
        },
        (F.pixel_shuffle(x.double(), r),),
        **cost(*shape[:4], 4),
    )


@pytest.mark.parametrize("shape", ESPCN, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixel_shuffle_to_uint8(race, layout, shape):
    x, r = map_of(*shape, layout), shape[-1]
    race(
        f"pixel_shuffle_to_uint8, {layout}",
        str(shape),
        {
            "torch": lambda: (to_uint8(x, r),),
            "compile": _peers.compiled(to_uint8, x, r),
            "bytes first": lambda: (by_hand(x.clamp(0, 1).mul_(255).round_().to(torch.uint8), r),),
            "fastnets": lambda: (pixel_shuffle_to_uint8(x, r),),
        },
        (F.pixel_shuffle(x, r).clamp_(0, 1).mul_(255).round_().double(),),
        **cost(*shape[:4], 1),
    )

"""Activations applied in a kernel's store."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    # NaN passes the comparisons, where minimum and maximum would drop it.
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "relu6":
        z = _clamp(z, 6.0)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z < 0, 0.1 * z, z)
    elif ACTIVATION == "silu":
        z = z / (1.0 + tl.exp(-z))
    elif ACTIVATION == "hardswish":
        z = z * _clamp(z + 3.0, 6.0) * (1.0 / 6.0)
    elif ACTIVATION == "sigmoid":
        z = 1.0 / (1.0 + tl.exp(-z))
    else:
        tl.static_assert(ACTIVATION is None)
    return z


@triton.jit
def _clamp(z, high):
    return tl.where(z < 0, 0.0, tl.where(z > high, high, z))

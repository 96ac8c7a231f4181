"""Activations applied in a kernel's store, and their gradients."""

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
def activate_backward(dy, z, ACTIVATION: tl.constexpr):
    """The gradient of z, out of that of y = f(z). At the ends of a clamp it is PyTorch's: nothing."""
    if ACTIVATION == "relu":
        dy = tl.where(z <= 0, 0.0, dy)
    elif ACTIVATION == "relu6":
        dy = tl.where((z <= 0) | (z >= 6.0), 0.0, dy)
    elif ACTIVATION == "leaky_relu":
        dy = tl.where(z > 0, dy, 0.1 * dy)
    elif ACTIVATION == "silu":
        s = 1.0 / (1.0 + tl.exp(-z))
        dy = dy * s * (1.0 + z * (1.0 - s))  # d(z s)/dz = s + z s (1 - s)
    elif ACTIVATION == "hardswish":
        dy = dy * tl.where(z < -3.0, 0.0, tl.where(z > 3.0, 1.0, z * (1.0 / 3.0) + 0.5))
    elif ACTIVATION == "sigmoid":
        s = 1.0 / (1.0 + tl.exp(-z))
        dy = dy * s * (1.0 - s)
    else:
        tl.static_assert(ACTIVATION is None)
    return dy


@triton.jit
def _clamp(z, high):
    return tl.where(z < 0, 0.0, tl.where(z > high, high, z))

"""Depthwise convolution: the kernels of a grouped one, whose groups have one input channel each."""

from .grouped_conv2d import dw_launches, dx_launches, fwd_launches
from .grouped_conv2d import grouped_conv2d_bwd as depthwise_conv2d_bwd
from .grouped_conv2d import grouped_conv2d_fwd as depthwise_conv2d_fwd

__all__ = ["depthwise_conv2d_bwd", "depthwise_conv2d_fwd", "dw_launches", "dx_launches", "fwd_launches"]

"""Two-dimensional convolution: ``F.conv2d``, on our kernels where we have one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastnets.ops._arguments import WRONG_TYPE, refuse_types_as
from fastnets.ops._convolution import Pair
from fastnets.ops.depthwise_conv2d import depthwise_conv2d
from fastnets.ops.grouped_conv2d import grouped_conv2d


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    r"""Convolves as ``torch.nn.functional.conv2d`` does, depthwise and grouped convolutions on kernels of our own.

    .. math::
        y_{n,o,i,j} = b_o + \sum_{k,p,q} w_{o,k,p,q} \; x_{n,\,g(o) C + k,\; i s_h - p_h + p d_h,\; j s_w - p_w + q d_w}

    with C = c / groups channels in a group and g(o) the group of output channel o. One input channel
    per group goes to :func:`fastnets.ops.depthwise_conv2d`, more of them in more than one group to
    :func:`fastnets.ops.grouped_conv2d`, everything else, as several results of a single channel, to PyTorch.

    Args:
        input: (n, c, h, w) or (c, h, w).
        weight: (o, c / groups, kh, kw), input's type and device.
        bias: (o), input's type and device, or None.
        stride: steps of the kernel in pixels, an int or (vertical, horizontal).
        padding: zeros on each side in pixels, an int or (vertical, horizontal), 'valid' or 'same'.
        dilation: distance between taps in pixels, an int or (vertical, horizontal).
        groups: how many equal parts the channels fall into, each convolved by itself.

    Returns:
        (n, o, h', w') or (o, h', w'), input's type. Allocates what the function it goes to does.

    Raises:
        RuntimeError, TypeError: as ``F.conv2d``, with the same messages.

    Paper: A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet Classification with Deep Convolutional
    Neural Networks", 2012 (convolution in groups).

    Example:
        >>> import torch
        >>> from fastnets.ops import conv2d
        >>> conv2d(torch.ones(1, 2, 3, 3), torch.ones(2, 1, 3, 3), groups=2).flatten().tolist()
        [9.0, 9.0]
    """
    try:
        if weight.dim() == 4 and input.dim() in (3, 4):
            if weight.shape[1] == 1 and input.shape[-3] == groups and (groups > 1 or weight.shape[0] == 1):
                return depthwise_conv2d(input, weight, bias, stride, padding, dilation)
            if weight.shape[1] > 1 and groups > 1:
                return grouped_conv2d(input, weight, bias, stride, padding, dilation, groups)
    except WRONG_TYPE:
        refuse_types_as(F.conv2d, input, weight, bias, stride, padding, dilation, groups)
        raise
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)

"""SPNet's modules: strip pooling that gates an image, and a pyramid of average pools beside strip pooling."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.ops import strip_pool

Norm = Callable[[int], nn.Module]


class SPBlock(nn.Module):
    r"""SPNet's strip pooling module, with the parameter names of the authors' code: what an image is to be multiplied by.

    The means of rows and of columns, taken in one pass (:func:`fastnets.ops.strip_pool`), are convolved along the strip,
    normalised and added up all over the map, so that each pixel is told of its row and its column:

    .. math::
        y_{n, i, j} = \sigma(W \max(f(\bar{x})_{n, i} + g(\bar{x})_{n, j}, 0) + b)

    In ``x * block(x)``, :func:`fastnets.accelerate` makes one kernel of all that follows f and g.

    Args:
        inplanes: channels of the input.
        outplanes: of the result.
        norm_layer: makes the normalisation of so many channels.

    Returns:
        (from a call with (n, inplanes, h, w)) (n, outplanes, h, w), from 0 to 1.

    Paper: Q. Hou et al., "Strip Pooling: Rethinking Spatial Pooling for Scene Parsing", 2020,
    https://arxiv.org/abs/2003.13328

    Example:
        >>> import torch
        >>> from fastnets.layers import SPBlock
        >>> x = torch.ones(1, 16, 30, 40)
        >>> (x * SPBlock(16, 16).eval()(x)).shape
        torch.Size([1, 16, 30, 40])
    """

    def __init__(self, inplanes: int, outplanes: int, norm_layer: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, outplanes, (3, 1), padding=(1, 0), bias=False)
        self.bn1 = norm_layer(outplanes)
        self.conv2 = nn.Conv2d(inplanes, outplanes, (1, 3), padding=(0, 1), bias=False)
        self.bn2 = norm_layer(outplanes)
        self.conv3 = nn.Conv2d(outplanes, outplanes, 1)

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = strip_pool(input)
        strips = self.bn1(self.conv1(rows)) + self.bn2(
            self.conv2(columns)
        )  # (n, c, h, 1) + (n, c, 1, w): the whole map
        return self.conv3(F.relu(strips)).sigmoid()


class StripPooling(nn.Module):
    """SPNet's mixed pooling module, with the parameter names of the authors' code.

    Of two 1×1 convolutions of the input, one is averaged over pyramids of squares, the other over its rows and its
    columns in one pass (:func:`fastnets.ops.strip_pool`). The averages are convolved, spread over the map again and
    added up; what they give is added to the input.

    Args:
        in_channels: of the input and the output; a quarter of them is pooled.
        pool_size: squares along each side of the map in the two levels of the pyramid.
        norm_layer: makes the normalisation of so many channels.

    Returns:
        (from a call) the shape of the input (n, in_channels, h, w).

    Paper: Q. Hou et al., "Strip Pooling: Rethinking Spatial Pooling for Scene Parsing", 2020,
    https://arxiv.org/abs/2003.13328

    Example:
        >>> import torch
        >>> from fastnets.layers import StripPooling
        >>> StripPooling(16).eval()(torch.ones(1, 16, 30, 40)).shape
        torch.Size([1, 16, 30, 40])
    """

    def __init__(
        self, in_channels: int, pool_size: tuple[int, int] = (20, 12), norm_layer: Norm = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        c = in_channels // 4
        self.pool_size = tuple(pool_size)
        self.conv1_1 = _conv(in_channels, c, 1, norm_layer, relu=True)
        self.conv1_2 = _conv(in_channels, c, 1, norm_layer, relu=True)
        self.conv2_0 = _conv(c, c, 3, norm_layer)
        self.conv2_1 = _conv(c, c, 3, norm_layer)
        self.conv2_2 = _conv(c, c, 3, norm_layer)
        self.conv2_3 = _conv(c, c, (1, 3), norm_layer)
        self.conv2_4 = _conv(c, c, (3, 1), norm_layer)
        self.conv2_5 = _conv(c, c, 3, norm_layer, relu=True)
        self.conv2_6 = _conv(c, c, 3, norm_layer, relu=True)
        self.conv3 = _conv(2 * c, in_channels, 1, norm_layer)

    def forward(self, input: Tensor) -> Tensor:
        x = self.conv1_1(input)
        coarse, coarser = self.pool_size
        squares = self.conv2_0(x) + self._squares(self.conv2_1, x, coarse) + self._squares(self.conv2_2, x, coarser)
        rows, columns = strip_pool(self.conv1_2(input))
        strips = self.conv2_4(rows) + self.conv2_3(columns)  # (n, c, h, 1) + (n, c, 1, w) is the whole map
        both = torch.cat((self.conv2_5(F.relu(squares)), self.conv2_6(F.relu(strips))), 1)
        return F.relu(input + self.conv3(both))

    @staticmethod
    def _squares(conv: nn.Module, x: Tensor, size: int) -> Tensor:
        return F.interpolate(conv(_average(x, size)), x.shape[2:], mode="bilinear", align_corners=True)

    def extra_repr(self) -> str:
        return f"pool_size={self.pool_size}"


def _conv(
    in_channels: int, out_channels: int, kernel: int | tuple[int, int], norm_layer: Norm, relu: bool = False
) -> nn.Sequential:
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=(height // 2, width // 2), bias=False)
    return nn.Sequential(conv, norm_layer(out_channels), *([nn.ReLU()] if relu else []))


def _average(x: Tensor, size: int) -> Tensor:
    """``F.adaptive_avg_pool2d``, which ONNX does not have: there, products with matrices of weights."""
    if not torch.onnx.is_in_onnx_export():
        return F.adaptive_avg_pool2d(x, size)
    return _weights(x, x.shape[2], size) @ x @ _weights(x, x.shape[3], size).mT


def _weights(x: Tensor, length: int, size: int) -> Tensor:
    """(size, length): row i holds the weights of the pixels from floor(i length / size) to ceil((i + 1) length / size)."""
    i = torch.arange(size, device=x.device)[:, None]
    pixel = torch.arange(length, device=x.device)
    begin, end = i * length // size, ((i + 1) * length + size - 1) // size
    return ((pixel >= begin) & (pixel < end)).to(x.dtype) / (end - begin)

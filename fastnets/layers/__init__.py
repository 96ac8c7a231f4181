"""Modules that people put in networks; each is documented in the file that defines it."""

from fastnets.layers.blocks import DepthwiseSeparable as DepthwiseSeparable
from fastnets.layers.blocks import InvertedResidual as InvertedResidual
from fastnets.layers.conv import Conv2d as Conv2d
from fastnets.layers.conv import DepthwiseConv2d as DepthwiseConv2d
from fastnets.layers.pointwise import PointwiseConv2d as PointwiseConv2d
from fastnets.layers.precision_gate import PrecisionGateConv2d as PrecisionGateConv2d

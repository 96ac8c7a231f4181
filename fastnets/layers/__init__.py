"""Modules that people put in networks; each is documented in the file that defines it."""

from fastnets.layers.blocks import ConvNormActivation as ConvNormActivation
from fastnets.layers.blocks import DepthwiseSeparable as DepthwiseSeparable
from fastnets.layers.blocks import InvertedResidual as InvertedResidual
from fastnets.layers.conv import Conv2d as Conv2d
from fastnets.layers.conv import DepthwiseConv2d as DepthwiseConv2d
from fastnets.layers.conv import GroupedConv2d as GroupedConv2d
from fastnets.layers.corner_pool import BottomRightCornerPool as BottomRightCornerPool
from fastnets.layers.corner_pool import CornerPool as CornerPool
from fastnets.layers.corner_pool import TopLeftCornerPool as TopLeftCornerPool
from fastnets.layers.pointwise import PointwiseConv2d as PointwiseConv2d
from fastnets.layers.precision_gate import PrecisionGateConv2d as PrecisionGateConv2d
from fastnets.layers.residual import BasicBlock as BasicBlock
from fastnets.layers.residual import Bottleneck as Bottleneck
from fastnets.layers.residual import Residual as Residual
from fastnets.layers.shuffle import ChannelShuffle as ChannelShuffle
from fastnets.layers.shuffle import PixelShuffle as PixelShuffle
from fastnets.layers.shuffle import PixelUnshuffle as PixelUnshuffle
from fastnets.layers.shuffle import ShuffleSplit as ShuffleSplit
from fastnets.layers.squeeze_excitation import SqueezeExcitation as SqueezeExcitation
from fastnets.layers.strip_pool import StripPooling as StripPooling
from fastnets.layers.sync_batch_norm import SyncBatchNorm as SyncBatchNorm

"""Drop-in operations; each is documented in the file of its name."""

from fastnets.ops.conv2d import conv2d as conv2d
from fastnets.ops.depthwise_conv2d import depthwise_conv2d as depthwise_conv2d
from fastnets.ops.nms import batched_nms as batched_nms
from fastnets.ops.nms import nms as nms
from fastnets.ops.soft_nms import batched_soft_nms as batched_soft_nms
from fastnets.ops.soft_nms import soft_nms as soft_nms

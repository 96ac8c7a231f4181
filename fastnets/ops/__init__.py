"""Drop-in operations; each is documented in the file of its name."""

from fastnets.ops.conv2d import conv2d as conv2d
from fastnets.ops.corner_pool import corner_pool as corner_pool
from fastnets.ops.corner_pool import corner_pool_sum as corner_pool_sum
from fastnets.ops.depthwise_conv2d import depthwise_conv2d as depthwise_conv2d
from fastnets.ops.strip_pool import strip_pool as strip_pool

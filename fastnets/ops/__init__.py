"""Drop-in operations; each is documented in the file of its name."""

from fastnets.ops.batch_moments import batch_moments as batch_moments
from fastnets.ops.conv2d import conv2d as conv2d
from fastnets.ops.depthwise_conv2d import depthwise_conv2d as depthwise_conv2d
from fastnets.ops.sync_batch_norm import sync_batch_norm as sync_batch_norm

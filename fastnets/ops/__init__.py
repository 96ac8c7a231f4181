"""Drop-in operations; each is documented in the file of its name."""

from fastnets.ops.batch_moments import batch_moments as batch_moments
from fastnets.ops.channel_shuffle import channel_shuffle as channel_shuffle
from fastnets.ops.channel_shuffle import shuffle_split as shuffle_split
from fastnets.ops.conv2d import conv2d as conv2d
from fastnets.ops.corner_pool import corner_pool as corner_pool
from fastnets.ops.corner_pool import corner_pool_sum as corner_pool_sum
from fastnets.ops.depthwise_conv2d import depthwise_conv2d as depthwise_conv2d
from fastnets.ops.grouped_conv2d import grouped_conv2d as grouped_conv2d
from fastnets.ops.nms import batched_nms as batched_nms
from fastnets.ops.nms import nms as nms
from fastnets.ops.pixel_shuffle import pixel_shuffle as pixel_shuffle
from fastnets.ops.pixel_shuffle import pixel_shuffle_to_uint8 as pixel_shuffle_to_uint8
from fastnets.ops.pixel_shuffle import pixel_unshuffle as pixel_unshuffle
from fastnets.ops.precision_gate_conv2d import precision_gate_conv2d as precision_gate_conv2d
from fastnets.ops.soft_nms import batched_soft_nms as batched_soft_nms
from fastnets.ops.soft_nms import soft_nms as soft_nms
from fastnets.ops.strip_pool import strip_pool as strip_pool
from fastnets.ops.sync_batch_norm import sync_batch_norm as sync_batch_norm

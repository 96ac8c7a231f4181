"""Drop-in operations; each is documented in the file of its name."""

from fastnets.ops.conv2d import conv2d as conv2d
from fastnets.ops.depthwise_conv2d import depthwise_conv2d as depthwise_conv2d
from fastnets.ops.precision_gate_conv2d import precision_gate_conv2d as precision_gate_conv2d

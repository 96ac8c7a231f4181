"""fastnets: the hot operations of the classic vision papers, as kernels for PyTorch."""

from fastnets import ops as ops
from fastnets._backends import use_backend as use_backend
from fastnets._op import backend_report as backend_report

__version__ = "0.1.0"

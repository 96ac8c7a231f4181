"""fastnets: the hot operations of the classic vision papers, as kernels for PyTorch."""

from fastnets import layers as layers
from fastnets import models as models
from fastnets import ops as ops
from fastnets._backends import use_backend as use_backend
from fastnets._memory import keep_memory as keep_memory
from fastnets._op import backend_report as backend_report
from fastnets._tuner import tune as tune
from fastnets._tuning import use_tuning as use_tuning
from fastnets.accelerate import accelerate as accelerate
from fastnets.accelerate import convert as convert
from fastnets.accelerate import revert as revert
from fastnets.models import create_model as create_model
from fastnets.models import list_models as list_models

__version__ = "0.1.0"

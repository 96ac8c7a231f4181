"""The networks of the classic papers, on the kernels of :mod:`fastnets.ops`."""

from fastnets.models import densenet as densenet
from fastnets.models import efficientnet_lite as efficientnet_lite
from fastnets.models import mobilenetv1 as mobilenetv1
from fastnets.models import mobilenetv2 as mobilenetv2
from fastnets.models import res2net as res2net
from fastnets.models import resnet as resnet
from fastnets.models import resnext as resnext
from fastnets.models import scnet as scnet
from fastnets.models import senet as senet
from fastnets.models import shufflenetv1 as shufflenetv1
from fastnets.models import shufflenetv2 as shufflenetv2
from fastnets.models._registry import ModelInfo as ModelInfo
from fastnets.models._registry import create_model as create_model
from fastnets.models._registry import list_models as list_models
from fastnets.models._registry import model_info as model_info
from fastnets.models._registry import register_model as register_model
from fastnets.models._weights import WeightsError as WeightsError
from fastnets.models._weights import load_weights as load_weights

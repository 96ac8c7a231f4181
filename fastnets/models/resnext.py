"""ResNeXt, with the parameter names of torchvision, and of timm where only that has the network.

Paper: S. Xie, R. Girshick, P. Dollár, Z. Tu, K. He, "Aggregated Residual Transformations for Deep Neural
Networks", CVPR 2017, https://arxiv.org/abs/1611.05431
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastnets.layers import Bottleneck
from fastnets.models._registry import TORCHVISION, register_model
from fastnets.models.resnet import ResNet


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "resnext50_32x4d-7cdf4587.pth")
def resnext50_32x4d(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNeXt-50 (32×4d) with torchvision's ``resnext50_32x4d`` state_dict."""
    return ResNet(partial(Bottleneck, groups=32, base_width=4), (3, 4, 6, 3), num_classes, **options)


@register_model(
    names_follow="timm",
    interpolation="bicubic",
    weights_url="https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1/gluon_resnext101_32x4d-b253c8c4.pth",
)
def resnext101_32x4d(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNeXt-101 (32×4d) with timm's ``resnext101_32x4d`` state_dict."""
    return ResNet(partial(Bottleneck, groups=32, base_width=4), (3, 4, 23, 3), num_classes, **options)


@register_model(names_follow="torchvision", crop=224 / 232, weights_url=TORCHVISION + "resnext101_64x4d-173b62eb.pth")
def resnext101_64x4d(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNeXt-101 (64×4d) with torchvision's ``resnext101_64x4d`` state_dict."""
    return ResNet(partial(Bottleneck, groups=64, base_width=4), (3, 4, 23, 3), num_classes, **options)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "resnext101_32x8d-8ba56ff5.pth")
def resnext101_32x8d(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNeXt-101 (32×8d) with torchvision's ``resnext101_32x8d`` state_dict."""
    return ResNet(partial(Bottleneck, groups=32, base_width=8), (3, 4, 23, 3), num_classes, **options)

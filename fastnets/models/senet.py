"""SE-ResNet and SE-ResNeXt, with the parameter names of timm.

Those named ``legacy_`` are the networks of the paper, whose published weights timm has under that name; the others
are the networks of :mod:`fastnets.models.resnet` and :mod:`fastnets.models.resnext` with the same addition.

Paper: J. Hu, L. Shen, S. Albanie, G. Sun, E. Wu, "Squeeze-and-Excitation Networks", CVPR 2018,
https://arxiv.org/abs/1709.01507
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastnets.layers import Bottleneck, Conv2d, Residual, SqueezeExcitation
from fastnets.layers.blocks import init_weights
from fastnets.layers.residual import residual_stages
from fastnets.models._registry import TIMM, register_model
from fastnets.models.resnet import ResNet


class SEBottleneck(Bottleneck):
    """A bottleneck whose channels are weighted before the sum, so that the shortcut stays as it is."""

    se_name = "se"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        downsample = self._modules.pop("downsample")
        self.add_module(self.se_name, SqueezeExcitation(self.out_channels))
        self.add_module("downsample", downsample)  # the last one, as in timm

    def residual(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.se_name)(super().residual(x))


class LegacySEBottleneck(SEBottleneck):
    """The same under the names of the published weights."""

    se_name = "se_module"


class LegacySENet(nn.Module):
    """Is the network of the paper as its weights were published.

    Args:
        block: makes a block from (in_channels, channels, stride, dilation).
        blocks: in each of the four stages.
        num_classes: length of the output.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.senet import LegacySEBottleneck, LegacySENet
        >>> LegacySENet(LegacySEBottleneck, (1, 1, 1, 1), num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(self, block: Callable[..., Residual], blocks: Sequence[int], num_classes: int = 1000) -> None:
        super().__init__()
        stem = {
            "conv1": Conv2d(3, 64, 7, 2, 3, bias=False),
            "bn1": nn.BatchNorm2d(64),
            "relu1": nn.ReLU(inplace=True),
            "pool": nn.MaxPool2d(3, 2, ceil_mode=True),
        }
        self.layer0 = nn.Sequential(OrderedDict(stem))
        self.layer1, self.layer2, self.layer3, self.layer4 = residual_stages(block, blocks)
        self.dropout = nn.Dropout(0.2)
        self.last_linear = nn.Linear(self.layer4[-1].out_channels, num_classes)  # type: ignore[arg-type]
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.layer0(x)))))
        return self.last_linear(self.dropout(x.mean((2, 3))))


ResNeXtBottleneck = partial(SEBottleneck, groups=32, base_width=4)
LegacyResNetBottleneck = partial(LegacySEBottleneck, stride_first=True)
LegacyResNeXtBottleneck = partial(LegacySEBottleneck, groups=32, base_width=4)


@register_model(
    names_follow="timm",
    crop=0.95,
    interpolation="bicubic",
    weights_url=TIMM + "v0.1-rsb-weights/seresnet50_a1_0-ffa00869.pth",
)
def seresnet50(num_classes: int = 1000, **options: Any) -> ResNet:
    """SE-ResNet-50 with timm's ``seresnet50`` state_dict."""
    return ResNet(SEBottleneck, (3, 4, 6, 3), num_classes, **options)


@register_model(names_follow="timm", interpolation="bicubic")
def seresnet101(num_classes: int = 1000, **options: Any) -> ResNet:
    """SE-ResNet-101 with timm's ``seresnet101`` state_dict."""
    return ResNet(SEBottleneck, (3, 4, 23, 3), num_classes, **options)


@register_model(names_follow="timm", interpolation="bicubic")
def seresnet152(num_classes: int = 1000, **options: Any) -> ResNet:
    """SE-ResNet-152 with timm's ``seresnet152`` state_dict."""
    return ResNet(SEBottleneck, (3, 8, 36, 3), num_classes, **options)


@register_model(
    names_follow="timm", interpolation="bicubic", weights_url=TIMM + "v0.1-weights/seresnext50_32x4d_racm-a304a460.pth"
)
def seresnext50_32x4d(num_classes: int = 1000, **options: Any) -> ResNet:
    """SE-ResNeXt-50 (32×4d) with timm's ``seresnext50_32x4d`` state_dict."""
    return ResNet(ResNeXtBottleneck, (3, 4, 6, 3), num_classes, **options)


@register_model(
    names_follow="timm",
    interpolation="bicubic",
    weights_url="https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1/gluon_seresnext101_32x4d-cf52900d.pth",
)
def seresnext101_32x4d(num_classes: int = 1000, **options: Any) -> ResNet:
    """SE-ResNeXt-101 (32×4d) with timm's ``seresnext101_32x4d`` state_dict."""
    return ResNet(ResNeXtBottleneck, (3, 4, 23, 3), num_classes, **options)


@register_model(names_follow="timm", weights_url=TIMM + "v0.1-cadene/se_resnet50-ce0d4300.pth")
def legacy_seresnet50(num_classes: int = 1000) -> LegacySENet:
    """SE-ResNet-50 of the paper with timm's ``legacy_seresnet50`` state_dict."""
    return LegacySENet(LegacyResNetBottleneck, (3, 4, 6, 3), num_classes)


@register_model(names_follow="timm", weights_url=TIMM + "v0.1-cadene/se_resnet101-7e38fcc6.pth")
def legacy_seresnet101(num_classes: int = 1000) -> LegacySENet:
    """SE-ResNet-101 of the paper with timm's ``legacy_seresnet101`` state_dict."""
    return LegacySENet(LegacyResNetBottleneck, (3, 4, 23, 3), num_classes)


@register_model(names_follow="timm", weights_url=TIMM + "v0.1-cadene/se_resnet152-d17c99b7.pth")
def legacy_seresnet152(num_classes: int = 1000) -> LegacySENet:
    """SE-ResNet-152 of the paper with timm's ``legacy_seresnet152`` state_dict."""
    return LegacySENet(LegacyResNetBottleneck, (3, 8, 36, 3), num_classes)


@register_model(names_follow="timm", weights_url=TIMM + "v0.1-weights/legacy_se_resnext50_32x4d-f3651bad.pth")
def legacy_seresnext50_32x4d(num_classes: int = 1000) -> LegacySENet:
    """SE-ResNeXt-50 (32×4d) of the paper with timm's ``legacy_seresnext50_32x4d`` state_dict."""
    return LegacySENet(LegacyResNeXtBottleneck, (3, 4, 6, 3), num_classes)


@register_model(names_follow="timm", weights_url=TIMM + "v0.1-weights/legacy_se_resnext101_32x4d-37725eac.pth")
def legacy_seresnext101_32x4d(num_classes: int = 1000) -> LegacySENet:
    """SE-ResNeXt-101 (32×4d) of the paper with timm's ``legacy_seresnext101_32x4d`` state_dict."""
    return LegacySENet(LegacyResNeXtBottleneck, (3, 4, 23, 3), num_classes)

"""ResNet, with the parameter names of torchvision.

Paper: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastnets.layers import BasicBlock, Bottleneck, Conv2d, Residual
from fastnets.layers.blocks import init_weights
from fastnets.layers.residual import residual_stages
from fastnets.models._registry import TORCHVISION, register_model


class ResNet(nn.Module):
    """Is the network of the paper, with any residual block; the stride of torchvision's is in the 3×3 convolution.

    Args:
        block: makes a block from (in_channels, channels, stride, dilation) and ``erase_relu``.
        blocks: in each of the four stages.
        num_classes: length of the output.
        replace_stride_with_dilation: for each stage but the first, whether it keeps the size of its input and
            dilates its convolutions instead, as in torchvision.
        erase_relu: whether the ReLU that ends every block is left out, https://arxiv.org/abs/1709.07634.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.layers import BasicBlock
        >>> from fastnets.models.resnet import ResNet
        >>> ResNet(BasicBlock, (1, 1, 1, 1), num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        block: Callable[..., Residual],
        blocks: Sequence[int],
        num_classes: int = 1000,
        replace_stride_with_dilation: Sequence[bool] = (False, False, False),
        erase_relu: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages = residual_stages(partial(block, erase_relu=erase_relu), blocks, replace_stride_with_dilation)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(self.layer4[-1].out_channels, num_classes)  # type: ignore[arg-type]
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "resnet18-f37072fd.pth")
def resnet18(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-18 with torchvision's ``resnet18`` state_dict."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, **options)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "resnet34-b627a593.pth")
def resnet34(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-34 with torchvision's ``resnet34`` state_dict."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, **options)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "resnet50-0676ba61.pth")
def resnet50(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-50 with torchvision's ``resnet50`` state_dict."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, **options)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "resnet101-63fe2227.pth")
def resnet101(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-101 with torchvision's ``resnet101`` state_dict."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, **options)


@register_model(names_follow="torchvision", weights_url=TORCHVISION + "resnet152-394f9c45.pth")
def resnet152(num_classes: int = 1000, **options: Any) -> ResNet:
    """ResNet-152 with torchvision's ``resnet152`` state_dict."""
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes, **options)

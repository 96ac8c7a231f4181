"""timm's layers that are several of PyTorch's in one, whose own code fx cannot trace or the rewriting does not know."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.accelerate._graph import has_hooks


def split_timms(module: nn.Module) -> None:
    """Makes such layers of a module what they consist of, on the same parameters."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if has_hooks(child) or not type(child).__module__.startswith("timm."):
                continue
            if type(child).__name__ == "BatchNormAct2d" and isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _norm_and_activation(child))
            elif type(child).__name__ == "Conv2dSame" and isinstance(child, nn.Conv2d):
                setattr(parent, name, _padding_and_convolution(child))


def _norm_and_activation(child: nn.BatchNorm2d) -> nn.Module:
    norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
    for key, value in (*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)):
        setattr(norm, key, value)
    parts = [part for part in (getattr(child, "drop", None), getattr(child, "act", None)) if part is not None]
    return nn.Sequential(norm, *parts).eval()


def _padding_and_convolution(child: nn.Conv2d) -> nn.Module:
    conv = nn.Conv2d(
        child.in_channels,
        child.out_channels,
        child.kernel_size,  # type: ignore[arg-type]
        child.stride,  # type: ignore[arg-type]
        dilation=child.dilation,  # type: ignore[arg-type]
        groups=child.groups,
        bias=child.bias is not None,
        device="meta",
    )
    conv.weight, conv.bias = child.weight, child.bias
    return nn.Sequential(PadSame(child), conv).eval()


class PadSame(nn.Module):
    """TensorFlow's padding "same": so many zeros that a convolution has ceil(size / stride) results, more of them last."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        self.axes = (*zip(reach, conv.stride, strict=True),)

    def forward(self, input: Tensor) -> Tensor:
        sizes = zip(input.shape[-2:], self.axes, strict=True)
        (top, bottom), (left, right) = (_ends(size, reach, stride) for size, (reach, stride) in sizes)
        return F.pad(input, (left, right, top, bottom))  # never the input's memory, which may be written over


def _ends(size: int, reach: int, stride: int) -> tuple[int, int]:
    zeros = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return zeros // 2, zeros - zeros // 2

"""NASNet-A, with the parameter names of timm.

Paper: B. Zoph, V. Vasudevan, J. Shlens, Q. Le, "Learning Transferable Architectures for Scalable Image Recognition",
CVPR 2018, https://arxiv.org/abs/1707.07012
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnets.layers import Conv2d, ConvNormActivation, DropPath
from fastnets.layers.blocks import init_weights
from fastnets.models._registry import TIMM, register_model

# Figure 4 of the paper: pairs of operations, whose results are added, and the states that they work on. State 0 is
# the output of the cell before, 1 of the one before that, 2 and on are the sums. A digit is the kernel size of a
# separable convolution, "same" passes on.
Pairs = tuple[tuple[tuple[str, int], tuple[str, int]], ...]
NORMAL: Pairs = (
    (("5", 0), ("3", 1)),
    (("5", 1), ("3", 1)),
    (("avg", 0), ("same", 1)),
    (("avg", 1), ("avg", 1)),
    (("3", 0), ("same", 0)),
)
REDUCTION: Pairs = (
    (("5", 0), ("7", 1)),
    (("max", 0), ("7", 1)),
    (("avg", 0), ("5", 1)),
    (("same", 3), ("avg", 2)),
    (("3", 2), ("max", 0)),
)
EPS = 1e-3


def pad_for_stride_2(x: Tensor, kernel_size: int, value: float = 0.0) -> Tensor:
    """Adds what TensorFlow adds at stride 2 so that no pixel is left out: one less before than after, if odd."""
    h, w = kernel_size - 2 + x.shape[2] % 2, kernel_size - 2 + x.shape[3] % 2
    return F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2), value=value)


class HalvingMaxPool(nn.Module):
    """The largest of 3 by 3 pixels, at stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(pad_for_stride_2(x, 3, -torch.inf), 3, 2)


class HalvingAvgPool(nn.Module):
    """The mean of 3 by 3 pixels, at stride 2; ``count_padding``: whether zeros beyond the border are among them."""

    def __init__(self, count_padding: bool) -> None:
        super().__init__()
        self.count_padding = count_padding

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(pad_for_stride_2(x, 3), 3, 2)
        if self.count_padding:
            return y
        return y / F.avg_pool2d(pad_for_stride_2(torch.ones_like(x[:1, :1]), 3), 3, 2)


class SeparableConv2d(nn.Module):
    """Filters every channel by itself, then mixes the channels."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2 if stride == 1 else 0
        self.depthwise_conv2d = Conv2d(
            in_channels, in_channels, kernel_size, stride, padding, groups=in_channels, bias=False
        )
        self.pointwise_conv2d = Conv2d(in_channels, out_channels, 1, bias=False)
        self.halves = stride == 2

    def forward(self, x: Tensor) -> Tensor:
        if self.halves:
            x = pad_for_stride_2(x, self.depthwise_conv2d.kernel_size[0])
        return self.pointwise_conv2d(self.depthwise_conv2d(x))


class SeparableTwice(nn.Module):
    """The paper's separable convolution: ReLU, convolution and batch normalisation, twice."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.separable_1 = SeparableConv2d(in_channels, out_channels, kernel_size, stride)
        self.bn_sep_1 = nn.BatchNorm2d(out_channels, EPS)
        self.separable_2 = SeparableConv2d(out_channels, out_channels, kernel_size)
        self.bn_sep_2 = nn.BatchNorm2d(out_channels, EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_sep_1(self.separable_1(F.relu(x))), inplace=True)
        return self.bn_sep_2(self.separable_2(x))


class Pointwise(ConvNormActivation):
    """Brings a state to the channels of the cell: ReLU, 1×1 convolution and batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, eps=EPS, activation=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(x))


class Cell(nn.Module):
    """One of the two cells that the search has found.

    Args:
        previous: channels of the output of the cell before the last.
        current: channels of the output of the last cell.
        channels: of all operations inside.
        reduction: whether it is the cell that halves the size.
        fit: what the output of the cell before the last needs: nothing ('none'), a convolution to ``channels``
            ('pointwise'), or that and half the size ('halve').
        drop_path: probability that an operation is dropped, in training, for each sample.
        count_padding: as of :class:`HalvingAvgPool`.

    Returns:
        (from a call) (n, out_channels, h', w').
    """

    def __init__(
        self,
        previous: int,
        current: int,
        channels: int,
        reduction: bool,
        fit: str,
        drop_path: float,
        count_padding: bool,
    ) -> None:
        super().__init__()
        self.fit = fit
        if fit == "pointwise":
            self.conv_prev_1x1 = Pointwise(previous, channels)
        self.conv_1x1 = Pointwise(current, channels)
        if fit == "halve":
            # Every second pixel, and those between them, each to half of the channels.
            self.path_1, self.path_2 = nn.Sequential(), nn.Sequential(nn.ZeroPad2d((-1, 1, -1, 1)))
            for path in (self.path_1, self.path_2):
                path.append(nn.AvgPool2d(1, 2))
                path.add_module("conv", Conv2d(previous, channels // 2, 1, bias=False))
            self.final_path_bn = nn.BatchNorm2d(channels, EPS)
        self.pairs = REDUCTION if reduction else NORMAL
        for i, pair in enumerate(self.pairs):
            for side, (operation, state) in zip(("left", "right"), pair, strict=True):
                in_channels = previous if fit == "none" and state == 1 else channels
                stride = 2 if reduction and state < 2 else 1
                module = _operation(operation, in_channels, channels, stride, count_padding)
                self.add_module(f"comb_iter_{i}_{side}", module)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.joined = (3, 4, 5, 6) if reduction else (1, 2, 3, 4, 5, 6)
        self.out_channels = len(self.joined) * channels

    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        states = [self.conv_1x1(current), self._fitted(previous)]
        for i, ((left, a), (right, b)) in enumerate(self.pairs):
            states.append(self._result(i, "left", left, states[a]) + self._result(i, "right", right, states[b]))
        return torch.cat([states[i] for i in self.joined], 1)

    def _fitted(self, x: Tensor) -> Tensor:
        if self.fit == "pointwise":
            return self.conv_prev_1x1(x)
        if self.fit == "halve":
            x = F.relu(x)
            return self.final_path_bn(torch.cat([self.path_1(x), self.path_2(x)], 1))
        return x

    def _result(self, i: int, side: str, operation: str, x: Tensor) -> Tensor:
        return x if operation == "same" else self.drop_path(getattr(self, f"comb_iter_{i}_{side}")(x))


def _operation(name: str, in_channels: int, channels: int, stride: int, count_padding: bool) -> nn.Module:
    if name == "same":
        return nn.Identity()
    if name == "max":
        return HalvingMaxPool()
    if name == "avg":
        return HalvingAvgPool(count_padding) if stride == 2 else nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return SeparableTwice(in_channels, channels, int(name), stride)


class NASNet(nn.Module):
    """Is NASNet-A (``cells`` @ 24·``channels``) of the paper.

    Args:
        cells: N, normal cells in each of the three stages.
        channels: of the cells of the first stage.
        stem: channels of the first convolution.
        num_classes: length of the output.
        skip_reduction: whether the first cell after a reduction sees the output of the cell two before it.
        count_padding: whether mean pooling at stride 2 counts the zeros beyond the border, as timm's does; the
            paper's does not.
        dropout: before the classifier.
        drop_path: probability that an operation of the last cell is dropped, in training, for each sample; less in
            the cells before, in proportion to their depth. See ``fastnets.layers.schedule_drop_path``.

    Returns:
        (from a call) (n, num_classes), unnormalised, for an input (n, 3, h, w).

    Example:
        >>> import torch
        >>> from fastnets.models.nasnet import NASNet
        >>> NASNet(cells=1, channels=8, stem=8, num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    classifier_with_background = "last_linear"  # as published; see load_weights

    def __init__(
        self,
        cells: int,
        channels: int,
        stem: int,
        num_classes: int = 1000,
        skip_reduction: bool = False,
        count_padding: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv0 = ConvNormActivation(3, stem, 3, 2, 0, eps=EPS, activation=nn.Identity)
        plan = [("cell_stem_0", channels // 4, True, "none"), ("cell_stem_1", channels // 2, True, "halve")]
        for stage in range(3):
            wide = channels * 2**stage
            if stage > 0:
                plan.append((f"reduction_cell_{stage - 1}", wide, True, "pointwise"))
            for i in range(cells):
                plan.append((f"cell_{6 * stage + i}", wide, False, "pointwise" if i else "halve"))
        self.names = [name for name, *_ in plan]
        self.skip_reduction = skip_reduction
        previous = current = stem
        for depth, (name, inside, reduction, fit) in enumerate(plan, 1):
            probability = drop_path * depth / len(plan)
            cell = Cell(previous, current, inside, reduction, fit, probability, count_padding)
            self.add_module(name, cell)
            if not self._skips(name):
                previous = current
            current = cell.out_channels
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(current, num_classes)
        self.apply(init_weights)

    def _skips(self, name: str) -> bool:
        return self.skip_reduction and name.startswith("reduction")

    def forward(self, x: Tensor) -> Tensor:
        previous = current = self.conv0(x)
        for name in self.names:
            new = getattr(self, name)(current, previous)
            if not self._skips(name):
                previous = current
            current = new
        return self.last_linear(self.dropout(F.relu(current, inplace=True).mean((2, 3))))


FACTS = {"interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


# The names are those of the port from TensorFlow that people have, of https://github.com/Cadene.
@register_model(
    names_follow="paper",
    **FACTS,
)
def nasnetamobile(num_classes: int = 1000, drop_path: float = 0.0) -> NASNet:
    """NASNet-A (4 @ 1056)."""
    return NASNet(4, 44, 32, num_classes, dropout=0.5, drop_path=drop_path)


@register_model(
    names_follow="timm",
    input_size=331,
    crop=0.911,
    weights_url=TIMM + "v0.1-weights/nasnetalarge-dc4a7b8b.pth",
    **FACTS,
)
def nasnetalarge(num_classes: int = 1000, drop_path: float = 0.0) -> NASNet:
    """NASNet-A (6 @ 4032) with timm's ``nasnetalarge`` state_dict."""
    return NASNet(6, 168, 96, num_classes, skip_reduction=True, count_padding=True, drop_path=drop_path)

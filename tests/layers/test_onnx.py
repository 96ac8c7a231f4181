"""Layers on our ops, exported to ONNX with batch, height and width free."""

from __future__ import annotations

import pytest
import torch
from check_op import check_onnx_module

from fastnets.layers import (
    BottomRightCornerPool,
    Conv2d,
    CornerPool,
    DepthwiseConv2d,
    GroupedConv2d,
    PrecisionGateConv2d,
    SPBlock,
    StripPooling,
    SyncBatchNorm,
    TopLeftCornerPool,
)

LAYERS = {
    "Conv2d, one group": Conv2d(4, 6, 3, padding=1),
    "Conv2d, groups": Conv2d(4, 6, 3, stride=2, padding="valid", groups=2),
    "Conv2d, depthwise": Conv2d(4, 4, 3, padding="same", groups=4),
    "Conv2d, reflected": Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"),
    "DepthwiseConv2d": DepthwiseConv2d(4, (3, 2), stride=(2, 1), padding=1, multiplier=2, activation="relu6"),
    "GroupedConv2d": GroupedConv2d(4, 6, 3, padding=1, groups=2, activation="hardswish"),
    "PrecisionGateConv2d": PrecisionGateConv2d(4, 6, 3, padding=1),
    "SyncBatchNorm": SyncBatchNorm(4),
    "CornerPool": CornerPool("top"),
    "TopLeftCornerPool": TopLeftCornerPool(4, 3),
    "BottomRightCornerPool": BottomRightCornerPool(4, 3),
    "SPBlock": SPBlock(4, 4),
    "StripPooling": StripPooling(4, (5, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_onnx(name, tmp_path):
    x = torch.randn(2, 4, 9, 8)
    LAYERS[name](x)  # in training: what is learnt of a batch is exported
    check_onnx_module(LAYERS[name], x, tmp_path)

"""Every shape that is timed: network, paper, layer. Layers are named as in torchvision (MobileNetV2, ResNet, ResNeXt,
ShuffleNetV2) and timm (EfficientNet-Lite0); photos are 224 x 224 unless a table says otherwise."""

from __future__ import annotations

# M. Sandler et al. 2018, arXiv:1801.04381, table 2. channels, height and width, kernel, stride
MOBILENET_V2_DEPTHWISE = {
    "features.1": (32, 112, 3, 1),
    "features.2": (96, 112, 3, 2),
    "features.3": (144, 56, 3, 1),
    "features.4": (144, 56, 3, 2),
    "features.5-6": (192, 28, 3, 1),
    "features.7": (192, 28, 3, 2),
    "features.8-11": (384, 14, 3, 1),
    "features.12-13": (576, 14, 3, 1),
    "features.14": (576, 14, 3, 2),
    "features.15-17": (960, 7, 3, 1),
}
# The same of photos of 320 x 320, whose maps are no multiples of seven.
MOBILENET_V2_320_DEPTHWISE = {
    "features.1": (32, 160, 3, 1),
    "features.3": (144, 80, 3, 1),
    "features.5-6": (192, 40, 3, 1),
    "features.12-13": (576, 20, 3, 1),
    "features.15-17": (960, 10, 3, 1),
}
# Fewer channels than a vector has lanes: a photo blurred, and blurred to half its size (R. Zhang 2019, arXiv:1904.11486); a
# quarter of MobileNet's width (A. Howard et al. 2017, arXiv:1704.04861); K. Han et al. 2020, arXiv:1911.11907
FEW_CHANNELS_DEPTHWISE = {
    "5x5 blur": (3, 224, 5, 1),
    "BlurPool": (3, 224, 3, 2),
    "MobileNetV1 0.25 blocks.0": (8, 112, 3, 1),
    "GhostNet blocks.1-2": (12, 56, 3, 1),
}
# Other kernels: Z. Liu et al. 2022, arXiv:2201.03545; L.-C. Chen et al. 2018, arXiv:1802.02611, photos of 513 x 513, the
# rates of its pyramid; X. Ding et al. 2022, arXiv:2203.06717. The last number is the dilation.
OTHER_DEPTHWISE = {
    "ConvNeXt-T stage 1": (96, 56, 7, 1),
    "ConvNeXt-T stage 2": (192, 28, 7, 1),
    "ConvNeXt-T stage 3": (384, 14, 7, 1),
    "ConvNeXt-T stage 4": (768, 7, 7, 1),
    "DeepLabv3+ on MobileNetV2, features.15-17": (960, 33, 3, 1, 2),
    "DeepLabv3+ ASPP, rate 6": (256, 33, 3, 1, 6),
    "DeepLabv3+ ASPP, rate 12": (256, 33, 3, 1, 12),
    "RepLKNet-31B stage 2": (256, 28, 29, 1),
}
# MobileNetV2 again: channels, hidden channels, results, height and width, stride
MOBILENET_V2_BLOCKS = {
    "features.2": (16, 96, 24, 112, 2),
    "features.3": (24, 144, 24, 56, 1),
    "features.5-6": (32, 192, 32, 28, 1),
    "features.12-13": (96, 576, 96, 14, 1),
    "features.15-16": (160, 960, 160, 7, 1),
}
# EfficientNet-B0's inverted residuals: channels, hidden channels, results, height and width, kernel, stride, channels
# that squeeze and excitation has in between. M. Tan, Q. Le 2019, arXiv:1905.11946, table 1
MB_CONV = {
    "blocks.1.0": (16, 96, 24, 112, 3, 2, 4),
    "blocks.1.1": (24, 144, 24, 56, 3, 1, 6),
    "blocks.2.1": (40, 240, 40, 28, 5, 1, 10),
    "blocks.3.1-2": (80, 480, 80, 14, 3, 1, 20),
    "blocks.4.1-2": (112, 672, 112, 14, 5, 1, 28),
    "blocks.5.1-3": (192, 1152, 192, 7, 5, 1, 48),
}
# Linear layers: features in and out. K. Simonyan, A. Zisserman 2014, arXiv:1409.1556, table 1; MobileNetV3-Large's
# A. Howard et al. 2019, arXiv:1905.02244, table 1; DeiT-Tiny's H. Touvron et al. 2020, arXiv:2012.12877, table 1
LINEAR = {
    "VGG fc7": (4096, 4096),
    "MobileNetV3-Large classifier": (1280, 1000),
    "DeiT-Tiny mlp.fc1": (192, 768),
}
# Pointwise convolutions with no depthwise one before them: channels, results, height and width. MobileNetV2 as above;
# F. Iandola et al. 2016, arXiv:1602.07360, table 1; K. He et al. 2015, arXiv:1512.03385, table 1
POINTWISE = {
    "MobileNetV2 features.18": (320, 1280, 7),
    "SqueezeNet 1.1 features.9.expand1x1": (48, 192, 13),
    "ResNet-50 layer1.0.conv3": (64, 256, 56),
}
# 3x3 convolutions of stride 1: input and output channels, height and width. K. He et al. 2015, arXiv:1512.03385; G. Huang
# et al. 2016, arXiv:1608.06993; F. Iandola et al. 2016, arXiv:1602.07360
DENSE_3X3 = {
    "ResNet-50 layer1.*.conv2": (64, 64, 56),
    "ResNet-50 layer2.*.conv2": (128, 128, 28),
    "ResNet-50 layer3.*.conv2": (256, 256, 14),
    "ResNet-50 layer4.*.conv2": (512, 512, 7),
    "DenseNet-121 denseblock2.*.conv2": (128, 32, 28),
    "SqueezeNet 1.1 features.3-4.expand3x3": (16, 64, 55),
}
# Behind BatchNorm and ReLU, before pooling: channels, results, height and width. G. Huang et al. 2016, arXiv:1608.06993,
# table 1, DenseNet-121
TRANSITIONS = {"transition1": (256, 128, 56), "transition2": (512, 256, 28), "transition3": (1024, 512, 14)}
# First convolutions of photos: results, kernel, stride, padding. The same two papers
STEMS = {"MobileNetV2": (32, 3, 2, 1), "ResNet": (64, 7, 2, 3)}
# The same and the windows of 3 by 3 and stride 2 behind them: results, kernel and padding, padding and ceil_mode. N. Ma et
# al. 2018, arXiv:1807.11164; F. Iandola et al. 2016, arXiv:1602.07360, as version 1.1.
POOLED_STEMS = {
    "ShuffleNetV2": (24, 3, 1, 1, False),
    "SqueezeNet 1.1": (64, 3, 0, 0, True),
    "ResNet": (64, 7, 3, 1, False),
}
# Before a shuffle of pixels: channels, kernel's results, factor, height and width. W. Shi et al. 2016, arXiv:1609.05158, to
# 1080p; B. Lim et al. 2017, arXiv:1707.02921; X. Wang et al. 2021, arXiv:2107.10833, the compact network.
SUB_PIXEL = {
    "ESPCN": (32, 9, 3, 360, 640),
    "EDSR": (64, 256, 2, 135, 240),
    "EDSR, patches": (64, 256, 2, 48, 48),
    "Real-ESRGAN, compact": (64, 48, 4, 180, 320),
}
# Poolings: kind, channels, size, stride, padding, of windows of 3 by 3. K. He et al. 2015, arXiv:1512.03385; C. Szegedy
# et al. 2014, arXiv:1409.4842 and 2015, arXiv:1512.00567.
POOLS = {
    "ResNet": ("max", 64, 112, 2, 1),
    "GoogLeNet 3b": ("max", 256, 28, 1, 1),
    "Inception v3 5c": ("avg", 256, 35, 1, 1),
}
# M. Tan, Q. Le 2019, arXiv:1905.11946, without squeeze-and-excitation; those that MobileNetV2 does not have.
EFFICIENTNET_LITE0_DEPTHWISE = {
    "blocks.2.0": (144, 56, 5, 2),
    "blocks.2.1": (240, 28, 5, 1),
    "blocks.3.0": (240, 28, 3, 2),
    "blocks.3.1-2": (480, 14, 3, 1),
    "blocks.4.0": (480, 14, 5, 1),
    "blocks.4.1-2": (672, 14, 5, 1),
    "blocks.5.0": (672, 14, 5, 2),
    "blocks.5.1-3": (1152, 7, 5, 1),
    "blocks.6.0": (1152, 7, 3, 1),
}

# S. Xie et al. 2017, arXiv:1611.05431, table 1: the 3x3 convolutions in 32 groups. channels, height and width, stride
RESNEXT50_32X4D = {
    "layer1.*.conv2": (128, 56, 1),
    "layer2.0.conv2": (256, 56, 2),
    "layer2.1-3.conv2": (256, 28, 1),
    "layer3.0.conv2": (512, 28, 2),
    "layer3.1-5.conv2": (512, 14, 1),
    "layer4.0.conv2": (1024, 14, 2),
    "layer4.1-2.conv2": (1024, 7, 1),
}

# X. Zhang et al. 2018, arXiv:1707.01083, table 1 (1x): groups -> channels of stage 2 at 28 pixels; stage 3 has twice as
# many at 14, stage 4 twice again at 7. The 1x1 convolutions go to a quarter of the channels and back.
SHUFFLENET_STAGE2 = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
# groups, channels, channels of the result, height and width
SHUFFLENET_POINTWISE = {
    f"stage{stage + 2} {'reduce' if narrows else 'expand'}, {groups} groups": (
        groups,
        *((wide, wide // 4) if narrows else (wide // 4, wide)),
        28 >> stage,
    )
    for groups, first in SHUFFLENET_STAGE2.items()
    for stage, wide in enumerate((first, 2 * first, 4 * first))
    for narrows in (True, False)
}
# Between its grouped convolutions, a quarter of the stage's channels. channels, height and width, groups
SHUFFLENET_SHUFFLE = {
    "stage2, 2 groups": (50, 28, 2),
    "stage2, 3 groups": (60, 28, 3),
    "stage3, 3 groups": (120, 14, 3),
    "stage4, 3 groups": (240, 7, 3),
    "stage2, 4 groups": (68, 28, 4),
    "stage2, 8 groups": (96, 28, 8),
    "stage3, 8 groups": (192, 14, 8),
}
# N. Ma et al. 2018, arXiv:1807.11164, x1.0: after the concatenation that ends a unit
SHUFFLENET_V2_SHUFFLE = {"stage2": (116, 28, 2), "stage3": (232, 14, 2), "stage4": (464, 7, 2)}

# input channels, output channels, height and width, kernel. K. He et al. 2015, arXiv:1512.03385
RESNET_CONVOLUTIONS = {
    "18 layer1.*.conv*": (64, 64, 56, 3),
    "18 layer2.1.conv*": (128, 128, 28, 3),
    "18 layer3.1.conv*": (256, 256, 14, 3),
    "18 layer4.1.conv*": (512, 512, 7, 3),
    "50 layer1.*.conv3": (64, 256, 56, 1),
    "50 layer2.1-3.conv1": (512, 128, 28, 1),
    "50 layer3.1-5.conv1": (1024, 256, 14, 1),
    "50 layer4.*.conv3": (512, 2048, 7, 1),
}
SHUFFLENET_V2_POINTWISE = {
    "stage2.1-3.branch2.0": (58, 58, 28, 1),
    "stage3.1-7.branch2.0": (116, 116, 14, 1),
    "stage4.1-3.branch2.0": (232, 232, 7, 1),
    "conv5": (464, 1024, 7, 1),
}
# The 50-layer network's maps that are normalised. channels, height and width
RESNET50_NORMALISED = {
    "bn1": (64, 112),
    "layer1.*.bn1-2": (64, 56),
    "layer1.*.bn3": (256, 56),
    "layer2.0.bn1": (128, 56),
    "layer2.*.bn2": (128, 28),
    "layer2.*.bn3": (512, 28),
    "layer3.0.bn1": (256, 28),
    "layer3.*.bn2": (256, 14),
    "layer3.*.bn3": (1024, 14),
    "layer4.0.bn1": (512, 14),
    "layer4.*.bn2": (512, 7),
    "layer4.*.bn3": (2048, 7),
}
# Few channels, as of FEW_CHANNELS_DEPTHWISE
FEW_CHANNELS_NORMALISED = {
    "MobileNetV1 0.25 blocks.0": (8, 112),
    "GhostNet blocks.1-2": (12, 56),
    "GhostNet blocks.3-4": (20, 28),
}

# W. Shi et al. 2016, arXiv:1609.05158, to 1080p; B. Lim et al. 2017, arXiv:1707.02921, which doubles 64 channels, once or
# twice, from patches of 48 pixels. n, channels of the result, its height and width, r
ESPCN = {f"{c} channels, x{r}": (1, c, 1080, 1920, r) for c in (1, 3) for r in (2, 3, 4)}
EDSR = {
    "tail.0, x2": (16, 64, 96, 96, 2),
    "tail.0, second of x4": (4, 64, 192, 192, 2),
    "tail.0, x3": (4, 64, 144, 144, 3),
}

# H. Law, J. Deng 2018, arXiv:1808.01244 (Hourglass-104, 511 x 511 pixels): the inputs of its corner pooling modules
CORNERNET_POOLED = (128, 128, 128)
# Q. Hou et al. 2020, arXiv:2003.13328 (output stride 8): the last blocks of stages 1 to 4 of SPNet-50 and its two mixed
# pooling modules, for ADE20K's crops of 473 x 473 pixels; stages 3 and 4 for Cityscapes' of 768 x 768.
SPNET_POOLED = {
    "layer1": (64, 119, 119),
    "layer2": (128, 60, 60),
    "layer3": (256, 60, 60),
    "layer4 and head": (512, 60, 60),
    "layer3 at 768": (256, 96, 96),
    "layer4 at 768": (512, 96, 96),
}

# Boxes of an 800 x 800 image: 1000 proposals (S. Ren et al. 2015, arXiv:1506.01497), and 10 000 (T.-Y. Lin et al. 2017,
# arXiv:1708.02002, before the top 1000 of a level).
PROPOSALS, ANCHORS = 1000, 10_000
CLASSES = 80  # of COCO

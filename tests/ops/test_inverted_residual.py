"""The kernels of inverted residuals, which PackedInvertedResidual calls, against three convolutions in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from convolutions import whole
from edges import check_at_once, check_refuses, check_thread_counts

import fastnets
from fastnets._backends import requested
from fastnets.layers import DepthwiseConv2d, PackedConv2d, PackedInvertedResidual, PackedSqueezeExcitation
from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops._convolution import lay_zeros
from fastnets.ops._packed import inverted_residual

LAST = torch.channels_last


def block(c, hidden, o, activations=("relu", "relu6", None), expand=True, bias=True, kernel_size=3, **geometry):
    torch.manual_seed(0)
    geometry = {"padding": 1, **geometry}
    first = PackedConv2d(c, hidden, 1, bias=bias, activation=activations[0]) if expand else None
    middle = DepthwiseConv2d(hidden, kernel_size, bias=bias, activation=activations[1], **geometry)
    last = PackedConv2d(hidden, o, 1, bias=bias, activation=activations[2])
    layer = PackedInvertedResidual(first, middle, last).eval().requires_grad_(False)
    for p in layer.parameters():
        p.copy_(whole(*p.shape))
    return layer


def squeezed(c, hidden, o, few, hard=False, activations=("silu", "silu", None), **geometry):
    """A block with squeeze and excitation, of numbers that are not whole: its gates are not."""
    plain = block(c, hidden, o, activations, **geometry)
    excite = PackedConv2d(few, hidden, 1, activation=None if hard else "sigmoid")
    squeeze = PackedSqueezeExcitation(PackedConv2d(hidden, few, 1, activation="relu"), excite, hard)
    layer = PackedInvertedResidual(plain.expand, plain.depthwise, plain.project, squeeze).eval().requires_grad_(False)
    for p in layer.parameters():
        p.copy_(torch.randn(p.shape) * p[0].numel() ** -0.5)
    return layer


def exactly(layer, x, residual=None):
    y = x.double()
    for conv in (layer.expand, layer.depthwise, layer.project):
        if conv is None:
            continue
        if conv is layer.project and layer.squeeze is not None:
            y = copy.deepcopy(layer.squeeze).double()(y)
        if conv is layer.depthwise:
            where = conv.stride, 0, conv.dilation, conv.groups
            y = lay_zeros(y, conv._zeros(y.shape[2:]))
        else:
            where = ()
        y = F.conv2d(y, conv.weight.double(), None if conv.bias is None else conv.bias.double(), *where)
        if conv is layer.project and residual is not None:
            y = y + residual.double()
        y = ACTIVATIONS[conv.activation](y)
    return y


def on_kernel(layer, *tensors):
    """The result, which is the kernel's and not that of the three layers."""
    fastnets.backend_report(reset=True)
    y = layer(*tensors)
    assert fastnets.backend_report(reset=True)["inverted_residual"]["calls"] == {requested.get(): 1}
    return y


def check(layer, x, residual=None):
    """Of whole numbers: each sum is exact, and a result is rounded once."""
    x = x.contiguous(memory_format=LAST)
    if residual is not None:
        residual = residual.contiguous(memory_format=LAST)
    copies = x.clone(), None if residual is None else residual.clone()
    got, exact = on_kernel(layer, x, residual), exactly(layer, x, residual)
    assert got.is_contiguous(memory_format=LAST) and torch.equal(got, exact.to(x.dtype))
    assert torch.equal(x, copies[0]) and (residual is None or torch.equal(residual, copies[1]))


SMALL = "relu6", "relu6", None  # keep hidden numbers below the 256 up to which whole ones are exact in bfloat16
cpu_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def check_in(dtype, layer, x, residual=None):
    check(layer.to(dtype), x.to(dtype), None if residual is None else residual.to(dtype))


# Hidden channels around the 16 and the 32 of a panel; results around the lanes; pixels around the rows of a tile.
@cpu_types
@pytest.mark.parametrize("hidden", (1, 16, 17, 32, 48, 70))
@pytest.mark.parametrize("o", (1, 15, 17, 33))
@pytest.mark.parametrize("size", ((1, 1), (3, 5), (7, 7), (13, 15)))
def test_cpu_edges(walled_cpu_kernels, size, o, hidden, dtype):
    check_in(dtype, block(5, hidden, o), whole(1, 5, *size), whole(1, o, *size))


GEOMETRIES = (
    {"stride": 2},
    {"kernel_size": 5, "padding": 2},
    {"kernel_size": 5, "padding": 2, "stride": 2},
    {"padding": 0},
)


@cpu_types
@pytest.mark.parametrize("expand", (True, False))
@pytest.mark.parametrize(
    "geometry",
    (
        *GEOMETRIES,
        {"kernel_size": (3, 1), "stride": (1, 3), "padding": (2, 0), "dilation": (2, 1)},
        {"kernel_size": 7, "padding": 3},
        {"padding": 4},
    ),
    ids=str,
)
def test_cpu_geometries(walled_cpu_kernels, geometry, expand, dtype):
    check_in(dtype, block(48, 48, 20, SMALL, expand=expand, **geometry), whole(2, 48, 11, 9))


UNEVEN = (0, 0, 1, 1), (0, 1, 2, 0), (3, 0, 0, 2), (0, 4, 9, 0), (9, 0, 0, 4)  # the last two: more than a kernel


@cpu_types
@pytest.mark.parametrize("padding", UNEVEN)
@pytest.mark.parametrize("kernel_size", (3, 5, 7))
@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("size", ((8, 9), (9, 8)))
def test_cpu_padding_that_differs_by_side(walled_cpu_kernels, size, stride, kernel_size, padding, dtype):
    geometry = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    x = whole(2, 48, *size)
    for expand in (True, False):
        layer = block(48, 48, 20, SMALL, expand=expand, **geometry)
        check_in(dtype, layer, x, whole(*exactly(layer, x).shape))
        check_squeezed(squeezed(48, 48, 20, 12, expand=expand, **geometry), 2, 48, 20, size, dtype)


# Between the products hidden channels lie panel by panel, of 256 on pixel by pixel, with a panel left empty where their
# number is even. With few weights each thread takes all steps, with over 1 MB the threads share the panels; or several
# images go to each.
@cpu_types
@pytest.mark.parametrize("n", (3, 5))
@pytest.mark.parametrize(("c", "o"), ((5, 17), (140, 140), (700, 700)))
@pytest.mark.parametrize("hidden", (240, 256, 257, 290))
def test_cpu_many_hidden_channels(walled_cpu_kernels, hidden, c, o, n, dtype):
    check_in(dtype, block(c, hidden, o, SMALL), whole(n, c, 7, 9), whole(n, o, 7, 9))


# Wide maps are cut into strips, which share rows of x; several images go to a thread each.
@cpu_types
@pytest.mark.parametrize("n", (1, 3, 9))
@pytest.mark.parametrize(("stride", "kernel_size"), ((1, 3), (2, 3), (1, 5), (2, 5)))
def test_cpu_strips(walled_cpu_kernels, kernel_size, stride, n, dtype):
    for padding in (kernel_size // 2, (0, kernel_size // 2, kernel_size - 1, 0)):
        layer = block(8, 112, 16, SMALL, kernel_size=kernel_size, padding=padding, stride=stride)
        check_in(dtype, layer, whole(n, 8, 61, 58))


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("activations", [(a, None, None) for a in ACTIVATIONS] + [(None, a, a) for a in ACTIVATIONS])
def test_cpu_activations(cpu_kernels, activations, bias):
    layer = block(6, 24, 10, activations, bias=bias)
    for p in layer.parameters():
        p.copy_(torch.randn(p.shape))
    x, residual = (torch.randn(2, c, 6, 7).contiguous(memory_format=LAST) for c in (6, 10))
    exact = exactly(layer, x, residual)
    assert (on_kernel(layer, x, residual) - exact).abs().max() < 1e-6 * exact.abs().max()


def test_cpu_nan_stays_below_its_kernel(cpu_kernels):
    layer, x = block(4, 20, 3), whole(1, 4, 9, 9).contiguous(memory_format=LAST)
    x[0, 1, 4, 4] = float("nan")
    assert layer(x).isnan()[0, 0].nonzero().tolist() == [[i, j] for i in (3, 4, 5) for j in (3, 4, 5)]


@cpu_types
@pytest.mark.parametrize("hidden", (24, 300))
def test_cpu_an_infinity_that_activations_take_leaves_no_nan(cpu_kernels, hidden, dtype):
    """Nor in the channels of zeros that bring the hidden ones to whole vectors."""
    layer, x = block(4, hidden, 3, SMALL), whole(1, 4, 5, 5).contiguous(memory_format=LAST)
    layer.expand.weight.copy_(layer.expand.weight.abs() + 1)
    x[0, 1, 2, 2] = float("inf")
    check_in(dtype, layer, x)


# ---- squeeze and excitation ----


def check_squeezed(layer, n, c, o, size, dtype):
    """In float32 as exact as its sums; in bfloat16 judged by what its layers lose in turn."""
    layer = layer.to(dtype)
    conv = layer.depthwise
    x = torch.randn(n, c, *size).to(dtype).contiguous(memory_format=LAST)
    residual = torch.randn(exactly(layer, x).shape).to(dtype).contiguous(memory_format=LAST)
    got, exact = on_kernel(layer, x, residual), exactly(layer, x, residual)
    if dtype == torch.float32:
        assert (got - exact).abs().max() < 1e-6 * exact.abs().max()
        return
    with fastnets.use_backend("reference"):
        in_turn = layer.project(layer.squeeze(conv(x if layer.expand is None else layer.expand(x))), residual)
    assert (got - exact).norm() <= 1.25 * (in_turn - exact).norm()


# Hidden channels and the few around the lanes and the panels; one image, images for one thread each, too few for that.
@cpu_types
@pytest.mark.parametrize("hard", (False, True))
@pytest.mark.parametrize("n", (1, 3, 4))
@pytest.mark.parametrize("few", (1, 17, 40))
@pytest.mark.parametrize("hidden", (1, 16, 17, 48, 70, 257))
def test_cpu_squeeze(walled_cpu_kernels, hidden, few, n, hard, dtype):
    check_squeezed(squeezed(5, hidden, 17, few, hard), n, 5, 17, (5, 7), dtype)


# Without the first convolution; strips of wide maps; weights beyond what a thread keeps to itself.
@cpu_types
@pytest.mark.parametrize("n", (1, 2))
@pytest.mark.parametrize(
    ("c", "hidden", "o", "size", "geometry"),
    (
        (48, 48, 20, (9, 11), {"expand": False}),
        (32, 32, 16, (112, 112), {"expand": False, "stride": 2}),
        (3, 80, 24, (150, 151), {"kernel_size": 5, "padding": 2}),
        (200, 600, 200, (7, 7), {"kernel_size": 5, "padding": 2}),
        (8, 96, 24, (57, 59), {"stride": 2}),
    ),
    ids=str,
)
def test_cpu_squeeze_geometries(walled_cpu_kernels, c, hidden, o, size, geometry, n, dtype):
    check_squeezed(squeezed(c, hidden, o, 24, **geometry), n, c, o, size, dtype)


def test_cpu_squeeze_sees_each_image_alone(cpu_kernels):
    layer, x = squeezed(8, 40, 8, 4), torch.randn(4, 8, 9, 9).contiguous(memory_format=LAST)
    assert torch.equal(layer(x), torch.cat([layer(image[None].contiguous(memory_format=LAST)) for image in x]))


@pytest.mark.parametrize("wrong", range(4))
def test_cpu_wrong_squeeze_raises(cpu_kernels, wrong):
    layer = squeezed(4, 32, 6, 8)
    good = arguments(layer, *(whole(1, c, 5, 5).contiguous(memory_format=LAST) for c in (4, 6)))
    others = [t[1:].contiguous() if i == wrong else t for i, t in enumerate(good[16])]
    check_refuses(torch.ops.fastnets_cpu.inverted_residual.default, good, 16, others)
    check_refuses(torch.ops.fastnets_cpu.inverted_residual.default, good, 16, good[16][:3])


@pytest.mark.parametrize("size", (7, 40))
@pytest.mark.parametrize("make", (block, lambda *channels: squeezed(*channels, 12)), ids=("plain", "squeezed"))
def test_threads_do_not_change_a_bit(cpu_kernels, make, size):
    layer, x = make(16, 144, 40), torch.randn(4, 16, size, size).contiguous(memory_format=LAST)
    check_thread_counts(lambda: [layer(x), layer(x[:1])])


def test_threads_that_call_at_once(cpu_kernels):
    layer, x = block(16, 96, 40), torch.randn(1, 16, 9, 9).contiguous(memory_format=LAST)
    layer(x)
    check_at_once([lambda: layer(x)])


def arguments(layer, x, residual=None):
    panels, bias, kernels, results, last_bias, squeezing, in_int8 = layer._panels(requested.get())
    conv, project = layer.depthwise, layer.project
    geometry = conv.kernel_size, conv.stride, conv._zeros(x.shape[2:]), conv.dilation
    hidden = -(-conv.in_channels // 16) * 16
    first = x, panels, bias, layer.expand.activation, kernels, hidden, *geometry, conv.activation
    return *first, results, last_bias, project.out_channels, residual, project.activation, *squeezing, *in_int8


WRONG = "expand", "bias", "depthwise", "hidden", "padding", "negative", "project", "residual"


def check_wrong(run, dtype, wrong, others):
    """Refused: one argument that is too short or does not fit, or of others, which take the arguments that do."""
    layer = block(4, 32, 6).to(dtype)
    good = arguments(layer, *(whole(1, c, 5, 5).to(dtype).contiguous(memory_format=LAST) for c in (4, 6)))
    bad = {
        "expand": (1, good[1][:, 1:].contiguous()),
        "bias": (2, good[2][:31]),
        "depthwise": (4, good[4][:-1]),
        "hidden": (5, 24),
        "padding": (8, [1, 1]),
        "negative": (8, [1, 1, -1, 1]),
        "project": (11, good[11][:, : good[11].shape[1] // 2].contiguous()),
        "residual": (14, good[14][..., :4]),
        **others(*good),
    }
    check_refuses(run, good, *bad[wrong])


@cpu_types
@pytest.mark.parametrize("wrong", ("layout", "type", "other weights", *WRONG))
def test_cpu_wrong_arguments_raise(cpu_kernels, wrong, dtype):
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32

    def others(x, expand, *_):
        return {"layout": (0, x.contiguous()), "type": (0, x.double()), "other weights": (1, expand.to(other))}

    check_wrong(torch.ops.fastnets_cpu.inverted_residual.default, dtype, wrong, others)


# ---- CUDA ------------------------------------------------------------------------------------

on_cuda = pytest.mark.parametrize("backend", ["cuda"], indirect=True)
in_16_bits = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@on_cuda
@in_16_bits
def test_literal_values(backend, dtype):
    layer = block(1, 16, 16).to(dtype)
    for p in layer.parameters():
        p.fill_(1)
    # Hidden numbers are 1 + 1; a pixel's 9 neighbours give 18 + 1, in a corner 4 give 8 + 1, outside is 0 and not
    # relu(1); of both relu6 makes 6. Without it:
    layer.depthwise.activation = None
    x = torch.ones(1, 1, 3, 3, dtype=dtype).contiguous(memory_format=LAST)
    expected = [[145, 209, 145], [209, 305, 209], [145, 209, 145]]  # 16 (2 n + 1) + 1 with n = 4, 6 or 9
    rounded = torch.tensor(expected).to(dtype)
    assert all(torch.equal(y, rounded) for y in on_kernel(layer, x)[0])


# As on a CPU: around the 16 and the 32 of a panel; results around vectors of 8; pixels around runs of 7.
@on_cuda
@in_16_bits
@pytest.mark.parametrize("hidden", (1, 16, 17, 32, 48, 70))
@pytest.mark.parametrize("o", (1, 15, 16, 33))
@pytest.mark.parametrize("size", ((1, 1), (5, 9), (7, 7), (13, 15)))
def test_edges(backend, dtype, size, o, hidden):
    check_in(dtype, block(5, hidden, o), whole(1, 5, *size), whole(1, o, *size))


@on_cuda
@in_16_bits
@pytest.mark.parametrize("expand", (True, False))
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize(
    "geometry",
    (
        *GEOMETRIES,
        {},
        {"padding": (0, 2), "stride": 2},
        {"padding": (0, 0, 1, 1), "stride": 2},
        {"padding": (5, 0, 1, 8), "kernel_size": 5},
        {"padding": 7},  # tiles that see nothing of x
        {"kernel_size": 5, "padding": 0},
    ),
    ids=str,
)
def test_geometries(backend, dtype, geometry, bias, expand):
    check_in(dtype, block(48, 48, 20, expand=expand, bias=bias, **geometry), whole(2, 48, 19, 9))


# Many tiles in both directions, their number and that of the images choosing between them.
@on_cuda
@in_16_bits
@pytest.mark.parametrize("size", ((33, 17), (14, 14), (28, 56), (6, 61)))
@pytest.mark.parametrize(("n", "o"), ((1, 16), (3, 70), (40, 8)))
@pytest.mark.parametrize("stride", (1, 2))
def test_tiles(backend, dtype, stride, n, o, size):
    check_in(dtype, block(8, 32, o, kernel_size=5, padding=2, stride=stride), whole(n, 8, *size))


# Channels around vectors of 8 and up to the most, which one pixel of 5x5 still finds room for; results of two warps side
# by side, four, and more than one block's.
@on_cuda
@in_16_bits
@pytest.mark.parametrize("c", (1, 8, 24, 31, 384))
@pytest.mark.parametrize("o", (64, 96, 129, 256, 257, 320))
def test_channels(backend, dtype, c, o):
    layer = block(c, 48, o, SMALL, kernel_size=5, padding=2, stride=2)
    check_in(dtype, layer, whole(2, c, 7, 14), whole(2, o, 4, 7))


EACH_ACTIVATION = [(a, None, None) for a in ACTIVATIONS] + [(None, a, a) for a in ACTIVATIONS]


# Judged by what PyTorch's three convolutions and activations lose, each in that type.
def check_activations(dtype, activations):
    layer = block(24, 96, 16, activations)
    for p in layer.parameters():
        p.copy_(torch.randn(p.shape) * p[0].numel() ** -0.5)
    layer.to(dtype)
    x, residual = (torch.randn(2, c, 9, 8).to(dtype).contiguous(memory_format=LAST) for c in (24, 16))
    exact, got = exactly(layer, x, residual), on_kernel(layer, x, residual)
    with fastnets.use_backend("reference"):
        in_turn = layer.project(layer.depthwise(layer.expand(x)), residual)
    assert (got - exact).norm() <= (in_turn - exact).norm()


@pytest.mark.parametrize("activations", EACH_ACTIVATION)
def test_cpu_activations_in_bfloat16(cpu_kernels, activations):
    check_activations(torch.bfloat16, activations)


@on_cuda
@in_16_bits
@pytest.mark.parametrize("activations", EACH_ACTIVATION)
def test_activations(backend, dtype, activations):
    check_activations(dtype, activations)


@on_cuda
@in_16_bits
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite(backend, dtype, activation):
    layer = block(1, 16, 16, (activation, None, None), bias=False).to(dtype)
    for p in layer.parameters():
        p.fill_(1)
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 100.0, -100.0, 0.0])
    x = values.view(-1, 1, 1, 1).to(dtype).contiguous(memory_format=LAST)
    torch.testing.assert_close(on_kernel(layer, x).double(), exactly(layer, x), rtol=1e-2, atol=1e-6, equal_nan=True)


@on_cuda
@in_16_bits
@pytest.mark.parametrize("o", (16, 21))
@pytest.mark.parametrize("first", (0, 3, 8))
def test_results_in_channels(backend, dtype, o, first):
    layer, x = block(8, 32, o).to(dtype), whole(2, 8, 9, 9).to(dtype).contiguous(memory_format=LAST)
    into = torch.full((2, 40, 9, 9), torch.nan, dtype=dtype).contiguous(memory_format=LAST)
    given = arguments(layer, x)
    y = inverted_residual.run(*given, into, first)
    assert torch.equal(y[:, first : first + o], inverted_residual.run(*given))
    assert y[:, :first].isnan().all() and y[:, first + o :].isnan().all()
    check_refuses(inverted_residual.run, (*given, into, first), 22, 40)


@on_cuda
def test_no_images_give_none(backend):
    layer, x = block(8, 32, 16).bfloat16(), torch.zeros(0, 8, 9, 9).bfloat16().contiguous(memory_format=LAST)
    assert layer(x).shape == inverted_residual.run(*arguments(layer, x)).shape == (0, 16, 9, 9)


@on_cuda
def test_the_same_bits_again(backend):
    layer, x = block(24, 96, 32).bfloat16(), torch.randn(3, 24, 20, 20).bfloat16().contiguous(memory_format=LAST)
    assert torch.equal(on_kernel(layer, x), on_kernel(layer, x))


@on_cuda
@pytest.mark.parametrize(
    ("of", "dtype", "reason"),
    (
        ({}, torch.float32, "takes float16 and bfloat16, not torch.float32"),
        ({"kernel_size": 7, "padding": 3}, torch.bfloat16, "takes 3x3 and 5x5 kernels of stride 1 or 2"),
        ({"kernel_size": (3, 5)}, torch.bfloat16, "takes 3x3 and 5x5 kernels"),
        ({"stride": (1, 2)}, torch.bfloat16, "takes 3x3 and 5x5 kernels"),
        ({"dilation": 2}, torch.bfloat16, "without dilation"),
        ({"c": 385}, torch.bfloat16, "expands at most 384 channels, not 385"),
        ({"format": torch.contiguous_format}, torch.bfloat16, "takes images in channels_last"),
        ({"squeeze": True}, torch.bfloat16, "has no squeeze and excitation"),
    ),
    ids=str,
)
def test_reasons_why_not(backend, of, dtype, reason):
    c, layout = of.get("c", 4), of.get("format", LAST)
    geometry = {k: v for k, v in of.items() if k not in ("c", "format", "squeeze")}
    layer = (squeezed(c, 32, 6, 8) if "squeeze" in of else block(c, 32, 6, **geometry)).to(dtype)
    x = whole(2, c, 8, 8).to(dtype).contiguous(memory_format=layout)
    with pytest.raises(RuntimeError, match=f"cannot run on backend 'cuda': .*{reason}"):
        inverted_residual.run(*arguments(layer, x))
    fastnets.backend_report(reset=True)
    y = layer.depthwise(layer.expand(x))
    in_turn = layer.project(y if layer.squeeze is None else layer.squeeze(y))
    assert torch.equal(layer(x), in_turn) and "inverted_residual" not in fastnets.backend_report()


@on_cuda
@pytest.mark.parametrize("wrong", ("weights", "start", *WRONG))
def test_wrong_arguments_raise(backend, wrong):
    def others(x, panels, bias, activation, kernels, *_):
        elsewhere = torch.zeros(len(kernels) + 1, dtype=kernels.dtype)[1:]
        return {"weights": (1, panels.half()), "start": (4, elsewhere)}

    check_wrong(inverted_residual.run, torch.bfloat16, wrong, others)

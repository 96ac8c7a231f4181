"""What only the CUDA sources of depthwise_conv2d have: calls past the Python checks, and the boundaries of their grids."""

from __future__ import annotations

import emulate
import pytest
import torch
import torch.nn.functional as F

import fastnets

pytestmark = pytest.mark.skipif(emulate.compiler() is None, reason="no C++ compiler to build the emulation with")
PLAIN = ([1, 1], [1, 1], [1, 1])


@pytest.fixture(autouse=True, scope="module")
def emulated():
    assert emulate.emulate_cuda() is None


def direct(x, w, bias=None, geometry=PLAIN, activation=None):
    return torch.ops.fastnets_cuda.depthwise_conv2d(x, w, bias, *geometry, activation)


X, W = torch.ones(1, 2, 4, 4), torch.ones(2, 1, 3, 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X[0], W), "expected x"),
        ((X, W[:, 0]), "expected x"),
        ((X, torch.ones(3, 1, 3, 3)), "multiple of 2"),
        ((X, W.double()), "one type"),
        ((X.int(), W.int()), "expected float32"),
        ((X, W.to("meta")), "on its device|fastnets_cuda"),
        ((X, W, torch.ones(3)), "bias of 2 values"),
        ((X, W, torch.ones(2, dtype=torch.float64)), "expected bias of the input's type"),
        ((X, W, None, ([0, 1], [1, 1], [1, 1])), "must be positive"),
        ((X, W, None, ([1, 1], [0, 0], [9, 9])), "larger than the padded input"),
        ((X, W, None, ([2**30, 1], [1, 1], [1, 1])), "under 2\\^30"),
        ((X, W, None, ([1, 1], [2**30, 1], [1, 1])), "under 2\\^30"),
        ((X, W, None, ([2**62, 1], [1, 1], [1, 1])), "below 2147483648"),
        ((X, W, None, ([1, 1], [2**40, 1], [1, 1])), "below 2147483648"),
        ((X, W, None, PLAIN, "tanh"), "unknown activation"),
    ],
)
def test_nonsense_past_the_python_checks_raises(args, message):
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        direct(*args)


def test_gradient_of_the_wrong_shape_raises():
    with pytest.raises(RuntimeError, match="gradient of the output's shape"):
        torch.ops.fastnets_cuda.depthwise_conv2d_backward(X[..., :2], X, W, *PLAIN, True, True, True)


# Values are small integers: every sum is exact, whatever its order, in every type.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding"),
    [
        (4, 3, 1, 1),  # a pack of channels
        (36, 3, 2, 1),  # 9 packs: two blocks of 8 lanes, the second almost empty
        (6, 3, 1, 0),  # not a multiple of 4: no packs
        (33, 5, 2, 2),  # one lane over a warp
        (34, 5, 1, 4),  # 17 packs of two; the gradient's padding is 0
        (2, 5, 1, 6),  # the gradient's padding is negative
        (3, 4, 3, 1),  # 16 taps: one group
        (3, 7, 1, 3),  # 49 taps: four groups
    ],
)
@pytest.mark.parametrize("size", [(5, 1), (8, 13)], ids=str)  # rows: one over a run of 4, two runs
def test_boundaries_of_the_grid(dtype, layout, channels, kernel, stride, padding, size):
    torch.manual_seed(0)

    def integers(*shape):
        return torch.randint(-1, 2, shape).to(dtype)

    if size[1] + 2 * padding < kernel:
        size = (size[0], kernel)
    x = integers(3, channels, *size).contiguous(memory_format=layout).requires_grad_()
    w, b = integers(channels, 1, kernel, kernel).requires_grad_(), integers(channels).requires_grad_()
    with fastnets.use_backend("cuda"):
        y = fastnets.ops.depthwise_conv2d(x, w, b, stride, padding)
        dy = integers(*y.shape)
        gradients = torch.autograd.grad(y, (x, w, b), dy)
    doubles = [t.detach().double().requires_grad_() for t in (x, w, b)]
    expected = F.conv2d(*doubles, stride, padding, groups=channels)
    expected_gradients = torch.autograd.grad(expected, doubles, dy.double())
    for got, want in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        assert torch.equal(got.double(), want.to(dtype).double())
    for got in (y, gradients[0]):
        assert got.is_contiguous(memory_format=layout)

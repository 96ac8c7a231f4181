"""torch.func's transforms of ops give what they give of PyTorch's own; forward mode is refused, not zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

from fastnets.layers import Conv2d
from fastnets.ops import channel_shuffle, depthwise_conv2d, grouped_conv2d, pixel_shuffle

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

PAIRS = {
    "depthwise_conv2d": (lambda x, w: depthwise_conv2d(x, w), lambda x, w: F.conv2d(x, w, groups=4), (4, 1, 3, 3)),
    "grouped_conv2d": (
        lambda x, w: grouped_conv2d(x, w, groups=2),
        lambda x, w: F.conv2d(x, w, groups=2),
        (4, 2, 3, 3),
    ),
    "channel_shuffle": (
        lambda x, w: channel_shuffle(x * w, 2),
        lambda x, w: F.channel_shuffle(x * w, 2),
        (4, 1, 1),
    ),
    "pixel_shuffle": (lambda x, w: pixel_shuffle(x * w, 2), lambda x, w: F.pixel_shuffle(x * w, 2), (4, 1, 1)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_transforms_agree_with_pytorch(name):
    ours, theirs, shape = PAIRS[name]
    make = torch.Generator().manual_seed(0)
    x, w = (torch.randn(s, generator=make, dtype=torch.float64) for s in ((2, 4, 5, 6), shape))
    results = []
    for f in (ours, theirs):

        def loss(w, x, f=f):
            return f(x, w).square().sum()

        _, pull = vjp(f, x, w)
        results.append(
            [
                grad(loss)(w, x),
                jacrev(f, argnums=1)(x, w),
                vmap(grad(loss), in_dims=(None, 0))(w, x[:, None]),  # gradients of each image
                jacrev(grad(loss))(w, x),
                *pull(f(x, w)),
            ]
        )
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_of_each_image_of_a_module():
    layer = Conv2d(4, 4, 3, groups=4, dtype=torch.float64)
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)

    def loss(parameters, image):
        return functional_call(layer, parameters, (image[None],)).square().sum()

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, image in enumerate(x):
        for key, expected in grad(loss)(parameters, image).items():
            torch.testing.assert_close(each[key][i], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_forward_mode_is_refused(needs_gradient):
    x = torch.randn(1, 4, 2, 2, requires_grad=needs_gradient)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="channel_shuffle has no derivative in forw"):
        channel_shuffle(forward_ad.make_dual(x, torch.ones_like(x)), 2)
    for transform in (lambda: jvp(lambda x: channel_shuffle(x, 2), (x,), (x,)), lambda: hessian(channel_shuffle)(x, 2)):
        with pytest.raises(NotImplementedError, match="forward mode"):
            transform()

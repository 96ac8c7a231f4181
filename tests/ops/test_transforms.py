"""torch.func's transforms of ops give what torch.autograd gives; forward mode is refused, not zero."""

from __future__ import annotations

import pytest
import torch
from examples import examples
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

from fastnets import ops
from fastnets.layers import Conv2d
from fastnets.ops import channel_shuffle
from fastnets.ops._activation import ACTIVATIONS

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

IMAGES, VECTOR = (2, 4, 6, 6), (4,)
NO_GRADIENT = {"nms", "batched_nms", "soft_nms", "batched_soft_nms", "pixel_shuffle_to_uint8"}

# By op, a function of tensors, and their shapes.
CALLS = {
    "batch_moments": (lambda x: torch.stack(ops.batch_moments(x)[:2]), IMAGES),
    "channel_shuffle": (lambda x: ops.channel_shuffle(x, 2), IMAGES),
    "conv2d": (lambda x, w: ops.conv2d(x, w, groups=2), IMAGES, (4, 2, 3, 3)),
    "corner_pool": (lambda x: ops.corner_pool(x, "left"), IMAGES),
    "corner_pool_sum": (lambda x, y: ops.corner_pool_sum(x, y, "top_left"), IMAGES, IMAGES),
    "pixel_shuffle": (lambda x: ops.pixel_shuffle(x, 2), IMAGES),
    "pixel_unshuffle": (lambda x: ops.pixel_unshuffle(x, 2), IMAGES),
    "shuffle_split": (lambda x, y: torch.stack(ops.shuffle_split(x, y)), IMAGES, IMAGES),
    "strip_pool": (lambda x: torch.add(*ops.strip_pool(x)), IMAGES),
}
for scale in (None, 1.5):
    CALLS[f"precision_gate_conv2d, scale {scale}"] = (
        lambda *t, scale=scale: ops.precision_gate_conv2d(*t, groups=2, scale=scale), IMAGES, (4, 2, 3, 3), VECTOR, VECTOR,
    )  # fmt: skip
for f in ACTIVATIONS:
    CALLS[f"depthwise_conv2d, {f}"] = (
        lambda *t, f=f: ops.depthwise_conv2d(*t, activation=f), IMAGES, (4, 1, 3, 3), VECTOR,
    )  # fmt: skip
    CALLS[f"grouped_conv2d, {f}"] = (
        lambda *t, f=f: ops.grouped_conv2d(*t, groups=2, activation=f), IMAGES, (4, 2, 3, 3), VECTOR,
    )  # fmt: skip
    CALLS[f"sync_batch_norm, {f}, training"] = (
        lambda *t, f=f: ops.sync_batch_norm(t[0], None, None, *t[1:], True, activation=f), IMAGES, VECTOR, VECTOR,
    )  # fmt: skip
    CALLS[f"sync_batch_norm, {f}, eval"] = (
        lambda x, *t, f=f: ops.sync_batch_norm(x, torch.zeros_like(t[0]), torch.ones_like(t[0]), *t, activation=f),
        IMAGES, VECTOR, VECTOR,
    )  # fmt: skip


def test_every_op_with_a_gradient_is_here():
    assert {name.partition(",")[0] for name in CALLS} == set(examples(1)) - NO_GRADIENT


@pytest.mark.parametrize("name", CALLS)
def test_transforms_agree_with_autograd(name):
    f, *shapes = CALLS[name]
    make = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=make, dtype=torch.float64) for shape in shapes]
    every = tuple(range(len(tensors)))

    def loss(*tensors):
        return f(*tensors).square().sum()

    def gradients(*tensors):
        leaves = [t.detach().requires_grad_() for t in tensors]
        return torch.autograd.grad(loss(*leaves), leaves)

    def images(t, i):
        return t[i] if t.shape == IMAGES else t

    y, pull = vjp(f, *tensors)
    dims = tuple(0 if t.shape == IMAGES else None for t in tensors)
    each = vmap(grad(loss, every), dims)(*(images(t, (slice(None), None)) for t in tensors))
    one_by_one = [gradients(*(images(t, slice(i, i + 1)) for t in tensors)) for i in range(IMAGES[0])]
    for got, expected in (
        (grad(loss, every)(*tensors), gradients(*tensors)),
        (pull(2 * y), gradients(*tensors)),
        (jacrev(f, every)(*tensors), jacobian(f, tuple(tensors))),
        (each, [torch.stack(g) for g in zip(*one_by_one, strict=True)]),
    ):
        torch.testing.assert_close(tuple(got), tuple(expected), rtol=1e-12, atol=1e-12)

    def second():
        return jacrev(grad(loss))(*tensors)

    if name.startswith("precision_gate_conv2d"):
        with pytest.raises(RuntimeError, match="precision_gate_conv2d has no double backward"):
            second()
    else:
        expected = torch.autograd.functional.hessian(lambda x: loss(x, *tensors[1:]), tensors[0])
        torch.testing.assert_close(second(), expected, rtol=1e-12, atol=1e-12)


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

"""Batch normalisation, its activation and a depthwise convolution as one op: nothing else than the two ops apart."""

from __future__ import annotations

import pytest
import torch
from check_op import OF_GRAPHS, OF_RESULTS
from edges import allocated, check_at_once, check_refuses, check_thread_counts, error_of

import fastnets
from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops._norm_depthwise_conv2d import op, op_backward
from fastnets.ops.depthwise_conv2d import op as depthwise
from fastnets.ops.sync_batch_norm import op_local

LAST = torch.channels_last
# (n, c, h, w), kernel, stride, padding, dilation: channels at and past the lanes; strips that go on where the one
# before ended, and rows that no kernel meets; one and several chunks of channels.
GEOMETRIES = {
    "lanes": ((2, 16, 9, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    "more than lanes": ((2, 37, 8, 14), (3, 3), (2, 2), (1, 1), (1, 1)),
    "one image, stride 2": ((1, 70, 17, 15), (3, 3), (2, 2), (1, 1), (1, 1)),
    "5x5": ((2, 20, 11, 7), (5, 5), (1, 1), (2, 2), (1, 1)),
    "5x5 stride 2": ((2, 33, 10, 9), (5, 5), (2, 2), (2, 2), (1, 1)),
    "all asymmetric": ((2, 18, 9, 11), (2, 5), (1, 2), (1, 3), (2, 1)),
    "strides past the kernel": ((2, 18, 13, 11), (2, 1), (4, 3), (0, 1), (1, 1)),
    "rows of padding alone": ((2, 17, 2, 3), (3, 3), (1, 1), (4, 5), (1, 1)),
    "chunks of channels": ((2, 530, 14, 14), (3, 3), (1, 1), (1, 1), (1, 1)),
    "sums of many parts": ((9, 24, 28, 28), (3, 3), (1, 1), (1, 1), (1, 1)),
    "past the caches": ((3, 96, 130, 130), (3, 3), (2, 2), (1, 1), (1, 1)),
}


def arguments(geometry="more than lanes", activation="relu6"):
    size, kernel, *rest = GEOMETRIES[geometry]
    make = torch.Generator().manual_seed(sum(size))
    x = (torch.randn(size, generator=make) * 2 + 0.5).contiguous(memory_format=LAST)
    weight, bias = torch.rand(size[1], generator=make) + 0.5, torch.randn(size[1], generator=make)
    return x, weight, bias, torch.randn(size[1], 1, *kernel, generator=make), 1e-5, activation, *map(list, rest)


def apart(x, weight, bias, w, eps, activation, *geometry):
    y, mean, var = op_local(x, weight, bias, eps, activation)
    return depthwise(y, w, None, *geometry, None), mean, var


def step(fn, args):
    """Results and gradients, in the order of the arguments."""
    leaves = [t.detach().clone().requires_grad_() for t in args[:4]]
    results = fn(*leaves, *args[4:])
    dy = torch.randn(results[0].shape, generator=torch.Generator().manual_seed(1)).to(results[0].dtype)
    return [t.detach() for t in results], torch.autograd.grad(results[0], leaves, dy)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("activation", ["relu6", "silu", None])
def test_cpu_values_and_gradients(walled_cpu_kernels, geometry, activation):
    """The two ops' results to the bit; gradients as near to float64's as theirs."""
    args = arguments(geometry, activation)
    (results, gradients), (expected, others) = step(op, args), step(apart, args)
    assert all(map(torch.equal, results, expected))
    with fastnets.use_backend("reference"):
        exact = step(apart, [a.double() if isinstance(a, torch.Tensor) else a for a in args])[1]
    for got, other, right in zip(gradients, others, exact, strict=True):
        bound = 2 * (other - right).abs().max() + torch.finfo(torch.float32).eps * right.abs().max()
        assert got.stride() == other.stride() and (got - right).abs().max() <= bound


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a not in ("relu6", "silu")])
def test_cpu_other_activations(walled_cpu_kernels, activation):
    args = arguments(activation=activation)
    assert torch.equal(step(op, args)[0][0], step(apart, args)[0][0])
    torch.testing.assert_close(step(op, args)[1], step(apart, args)[1], rtol=1e-4, atol=1e-4)


def test_reference_is_the_two_ops():
    args = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments()]
    with fastnets.use_backend("reference"):
        torch.testing.assert_close(step(op, args), step(apart, args), rtol=1e-12, atol=1e-12)


def test_gradcheck():
    with fastnets.use_backend("reference"):
        small = [t.double()[:2, :2, :3, :3] if t.dim() == 4 else t.double()[:2] for t in arguments()[:4]]
        leaves = [t.detach().requires_grad_() for t in (small[0], *small[1:3], arguments()[3][:2].double())]
        rest = 1e-5, "silu", [1, 1], [1, 1], [1, 1]
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(lambda *t: op(*t, *rest)[0], leaves, fast_mode=True)


def test_cpu_only_the_gradients_asked_for(cpu_kernels):
    args = arguments()
    full = step(op, args)[1]
    for i in range(4):
        leaves = [t.detach().clone().requires_grad_(i == j) for j, t in enumerate(args[:4])]
        y = op(*leaves, *args[4:])[0]
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        y.backward(dy)
        assert torch.equal(leaves[i].grad, full[i])
        assert all(t.grad is None for j, t in enumerate(leaves) if j != i)


def test_cpu_no_weight_and_bias(cpu_kernels):
    x, _, _, *rest = arguments()
    one, zero = torch.ones(x.shape[1]), torch.zeros(x.shape[1])
    assert torch.equal(op(x, None, None, *rest)[0], op(x, one, zero, *rest)[0])


def test_tracing(cpu_kernels):
    args = arguments("lanes")
    leaves = [t.requires_grad_() for t in args[:4]]
    y, mean, var = op(*args)
    torch.library.opcheck(torch.ops.fastnets.norm_depthwise_conv2d.default, args, test_utils=OF_RESULTS + OF_GRAPHS)
    given = y.detach(), args[0].detach(), mean, var, *(t.detach() for t in leaves[1:]), *args[4:]
    torch.library.opcheck(torch.ops.fastnets.norm_depthwise_conv2d_backward.default, given, test_utils=OF_RESULTS)


def test_threads_do_not_change_a_bit(cpu_kernels):
    args = arguments("sums of many parts")
    check_thread_counts(lambda: [t for several in step(op, args) for t in several])


def test_cpu_calls_at_once(cpu_kernels):
    several = [arguments(g) for g in ("lanes", "more than lanes", "chunks of channels")]
    check_at_once([lambda args=args: op(*args) for args in several])


def test_memory(cpu_kernels):
    """Forward the result, backward two tensors like the input, of which one is the gradient."""
    args = arguments("past the caches")
    leaves = [t.requires_grad_() for t in args[:4]]
    y = op(*args)[0]
    with torch.no_grad():
        assert allocated(lambda: op(*args)) < y.nbytes * 1.1 + args[0].nbytes / 16
    dy = torch.randn_like(y)
    gradients = allocated(lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True))
    assert gradients < 2.1 * args[0].nbytes


def test_cpu_wrong_arguments_raise(cpu_kernels):
    args = arguments()
    x, weight, _, w = args[:4]
    fn = torch.ops.fastnets_cpu.norm_depthwise_conv2d
    fn(*args)  # or it would not know the operator yet
    for place, value in ((0, x.double()), (0, x.contiguous()), (0, x[:, :, 1:]), (0, x[0]), (0, x[:, :15].contiguous(memory_format=LAST)), (1, weight[1:]),
                         (1, weight.double()), (2, weight[None]), (3, w[1:]), (3, torch.cat([w, w])), (4, 0.0),
                         (6, [1]), (6, [0, 1]), (8, [0, 1])):  # fmt: skip
        check_refuses(fn, args, place, value)
    assert error_of(op, x, weight, None, torch.cat([w, w]), *args[4:])[1].startswith("norm_depthwise_conv2d expects")
    y, mean, var = op(*args)
    given = y, x, mean, var, *args[1:]
    backward = torch.ops.fastnets_cpu.norm_depthwise_conv2d_backward
    op_backward(*given)
    for place, value in ((0, y.contiguous()), (0, y[:, :, 1:]), (0, y.double()), (1, x.contiguous()), (2, mean[1:]),
                         (3, var[None]), (6, w[1:])):  # fmt: skip
        check_refuses(backward, given, place, value)

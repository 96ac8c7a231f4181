"""batch_moments and sync_batch_norm in one process, on every backend: the contract, literal values, edges, errors.

What several processes do is in test_sync_batch_norm_ranks.py.
"""

from __future__ import annotations

import math
from itertools import chain

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from check_op import DTYPES, Case, check_gradients, check_onnx, check_tracing, check_values, in_both_layouts, run
from edges import allocated, check_at_once, check_thread_counts, error_of

from fastnets._backends import INTERPRETED
from fastnets.ops import batch_moments, sync_batch_norm
from fastnets.ops._activation import ACTIVATIONS
from fastnets.ops._batch_norm import op_dx, op_local, op_local_backward
from fastnets.ops._exchange import exchange_moments
from fastnets.ops.batch_moments import channel_dims, per_channel, sum_type

LAST = torch.channels_last


def moments(x, magnitude=False):
    """batch_moments; or what bounds the magnitudes of its terms, x being absolute values."""
    if not magnitude:
        return batch_moments(x)
    mean = x.mean(channel_dims(x))
    return mean, (x + per_channel(mean, x)).square().sum(channel_dims(x)), batch_moments(x)[2]


def normalized(x, w, b, training=True, activation=None, magnitude=False, curved=False):
    """sync_batch_norm, with constants as running statistics; or what bounds the magnitudes of its terms.

    No activation is steeper than 1.1, so that those of z bound those of y. Where it is curved, its slope is off by at
    most half of what z is off by, and so are gradients, but not y.

    The variance of absolute values is at most that of the values: r is not too small.
    """
    c = x.shape[1]
    mean = torch.linspace(-1, 1, c, dtype=sum_type(x), device=x.device)
    var = torch.linspace(0.5, 2, c, dtype=sum_type(x), device=x.device)
    if not magnitude:
        running = (None, None) if training else (mean, var)
        return sync_batch_norm(x, *running, w, b, training, activation=activation)
    if not training:
        return _curved(sync_batch_norm(x, -mean.abs(), var, w, b), curved)
    r = (x.detach().var(channel_dims(x), correction=0) + 1e-5).rsqrt()
    xhat = (x + x.mean(channel_dims(x), keepdim=True)) * per_channel(r, x)
    fixed = xhat.detach()
    xhat = xhat + fixed * (fixed * xhat).mean(channel_dims(x), keepdim=True)
    return _curved(xhat * per_channel(w, x) + per_channel(b, x), curved)


def _curved(z, curved):
    square = z.square() / 4
    return z + (square - square.detach()) if curved else z


def tensors(shape, offset=0.5):
    make = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=make, dtype=torch.float64) * 2 + offset
    return [x, *torch.randn(2, shape[1], generator=make, dtype=torch.float64).unbind()]


NAMES = [name for name in ACTIVATIONS if name]

# One of each class of tile: channels below, at and past a vector of 4, 8 and 16 lanes, and past 4 vectors; planes below
# and past a vector, several of them in a block, several blocks in one; few channels, which are cut into parts.
SHAPES = [
    (2, 1, 1, 1), (3, 16, 1, 1), (2, 5, 1, 3), (4, 17, 3, 5), (2, 16, 4, 4), (3, 33, 5, 7), (9, 70, 3, 3), (2, 3, 70, 71),
    (40, 24, 2, 6), (33, 40), (5, 24, 9), (2, 20, 3, 4, 5),
]  # fmt: skip
if INTERPRETED:
    SHAPES = [(2, 1, 1, 1), (3, 16, 1, 1), (4, 17, 3, 5), (2, 3, 70, 31), (33, 40), (2, 20, 3, 4, 5)]


def count(shape):
    return math.prod(shape) // shape[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments(backend, shape, dtype):
    check_values(Case("moments", moments, tensors(shape)[:1], {}, count(shape), {"magnitude": True}, sums=True), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", (True, False), ids=("training", "eval"))
def test_norm(backend, training, shape, dtype):
    kwargs = {"training": training}
    check_values(Case("norm", normalized, tensors(shape), kwargs, count(shape), {"magnitude": True}), dtype)


@pytest.mark.parametrize("training", (True, False), ids=("training", "eval"))
@pytest.mark.parametrize("activation", NAMES)
def test_activations(backend, activation, training):
    kwargs = {"training": training, "activation": activation}
    magnitude = {"magnitude": True, "activation": None, "curved": True}
    shapes = [(3, 17, 2, 3)] if INTERPRETED else [(3, 70, 5, 7), (2, 3, 70, 71), (40, 6, 1, 1)]
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            check_values(Case("activation", normalized, tensors(shape), kwargs, count(shape), magnitude), dtype)
    check_gradients(Case("activation", normalized, tensors((3, 2, 2, 3)), kwargs))


@pytest.mark.parametrize("training", (True, False), ids=("training", "eval"))
def test_gradcheck(backend, training):
    check_gradients(Case("norm", normalized, tensors((3, 2, 2, 3)), {"training": training}))
    check_gradients(Case("moments", lambda x: batch_moments(x)[:2], tensors((3, 2, 2, 3))[:1]))


def test_tracing(backend):
    x, w, b = tensors((2, 4, 5, 6))
    dy, mean, var, sums = torch.randn_like(x), w.exp(), b.exp(), torch.stack([w, b])
    of, leaves = torch.ops.fastnets, [t.detach().clone().requires_grad_() for t in (x, w, b)]
    check_tracing(Case("moments", moments, [x]), [(of.batch_moments.default, (leaves[0],))])
    norm = of.sync_batch_norm.default, (leaves[0], mean, var, *leaves[1:], None, 1e-5, "", "", None)
    local = of.sync_batch_norm_local.default, (*leaves, 1e-5, "relu")
    parts = [
        (of.sync_batch_norm_reduce.default, (dy, x, mean, var, w, b, 1e-5, None)),
        (of.sync_batch_norm_dx.default, (dy, x, mean, var, w, b, sums, w.new_tensor(9.0), 1e-5, "silu")),
        (of.sync_batch_norm_local_backward.default, (dy, x, mean, var, w, b, 1e-5, "relu6")),
    ]
    check_tracing(Case("training", normalized, [x, w, b]), [norm, local, *parts])
    check_tracing(Case("eval", normalized, [x, w, b], {"training": False, "activation": "silu"}), [])


def test_compiled_training_step_updates_the_statistics(backend):
    x, w, b = (t.float() for t in tensors((2, 4, 5, 6)))
    results = []
    for fn in (sync_batch_norm, torch.compile(sync_batch_norm, fullgraph=True, backend="aot_eager")):
        mean, var, leaf = torch.zeros(4), torch.ones(4), x.clone().requires_grad_()
        y = fn(leaf, mean, var, w, b, True, 0.3)
        y.pow(3).sum().backward()
        results.append([y.detach(), mean, var, leaf.grad])
    torch.testing.assert_close(*results)


def test_onnx(tmp_path):
    for activation in (None, "relu6", "silu"):
        kwargs = {"training": False, "activation": activation}
        check_onnx(Case("eval", normalized, tensors((2, 4, 9, 8)), kwargs), tmp_path)
    check_onnx(Case("moments", lambda x: moments(x)[:2], tensors((2, 4, 9, 8))[:1]), tmp_path)


def test_literal_values(backend):
    x = torch.tensor([[1.0, 10.0], [2.0, 10.0], [6.0, 40.0]])
    mean, m2, n = batch_moments(x)
    assert (mean.tolist(), m2.tolist(), n.item(), n.dtype) == ([3.0, 20.0], [14.0, 600.0], 3, torch.int64)
    running = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])
    y = sync_batch_norm(x[:, :1] - 3, running[0][:1], running[1][:1], None, None, True, 0.5, 1e-12)
    torch.testing.assert_close(y[:, 0], torch.tensor([-2.0, -1.0, 3.0]) / math.sqrt(14 / 3))
    # The running variance takes the unbiased one, 14 / 2; the mean is 0.
    torch.testing.assert_close(torch.stack(running), torch.tensor([[0.5, 0.0], [4.0, 0.0]]))
    y = sync_batch_norm(
        x, torch.tensor([1.0, 10.0]), torch.tensor([3.0, 24.0]), eps=1.0, weight=torch.tensor([2.0, 5.0])
    )
    assert y.tolist() == [[0.0, 0.0], [1.0, 0.0], [5.0, 30.0]]


def test_literal_gradients(backend):
    x = torch.tensor([[1.0], [3.0]], requires_grad=True)
    w, b = torch.tensor([2.0], requires_grad=True), torch.zeros(1, requires_grad=True)
    # var = 1: xhat = (-1, 1) / 2 with eps = 3. dx = w r (dy - mean(dy) - xhat mean(dy xhat)).
    sync_batch_norm(x, None, None, w, b, True, eps=3.0).backward(torch.tensor([[1.0], [5.0]]))
    assert x.grad.flatten().tolist() == [-1.5, 1.5] and w.grad.tolist() == [2.0] and b.grad.tolist() == [6.0]
    # ReLU lets the second of z = (-1, 1) through: dz = (0, 5).
    x.grad = None
    y = sync_batch_norm(x, None, None, w, b, True, eps=3.0, activation="relu")
    dx, dw, db = torch.autograd.grad(y, (x, w, b), torch.tensor([[1.0], [5.0]]))
    assert (y.flatten().tolist(), dw.tolist(), db.tolist()) == ([0.0, 1.0], [2.5], [5.0])
    assert dx.flatten().tolist() == [-1.875, 1.875]
    mean, m2, _ = batch_moments(x)
    (10 * mean + m2).sum().backward()
    assert x.grad.flatten().tolist() == [3.0, 7.0]


# Planes that are streams, and planes too short for it; whole cache lines of channels.
@in_both_layouts
@pytest.mark.parametrize("shape", [(4, 64, 130, 135), (800, 144, 6, 7)], ids=str)
def test_cpu_results_past_the_caches(cpu_kernels, shape, layout):
    x, w, b = (t.float() for t in tensors(shape))
    x, dy = (t.contiguous(memory_format=layout) for t in (x, x.flip(0)))
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    for training in (True, False):
        mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
        leaves = [t.detach().requires_grad_() for t in (x, x.double())]
        y = sync_batch_norm(leaves[0], mean.clone(), var.clone(), w, b, training)
        exact = F.batch_norm(leaves[1], mean.double(), var.double(), w.double(), b.double(), training)
        torch.testing.assert_close(y.double(), exact, **tolerance)
        (dx,), (exact_dx,) = (
            torch.autograd.grad(*pair) for pair in ((y, leaves[0], dy), (exact, leaves[1], dy.double()))
        )
        torch.testing.assert_close(dx.double(), exact_dx, **tolerance)
    _, mean, var = op_local(x, w, b, 1e-5, None)
    dx, sums = op_local_backward(dy, x, mean, var, w, b, 1e-5, None)
    count = torch.tensor(float(x.numel() // shape[1]))
    torch.testing.assert_close(op_dx(dy, x, mean, var, w, b, sums, count, 1e-5, None), dx, **tolerance)


@in_both_layouts
@pytest.mark.parametrize("where", ("everywhere", "but at first", "drifting"))
def test_a_large_mean_costs_no_digits(backend, layout, where):
    side = 24 if INTERPRETED else 90
    x = torch.randn(4, 20, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if where == "drifting":
        x += torch.linspace(0, 1e4, 4, dtype=x.dtype).view(-1, 1, 1, 1)
    else:
        x += 1e4
    if where == "but at first":
        x[0, :, 0, 0] = 0
    x = x.float().contiguous(memory_format=layout)
    exact = x.double().var((0, 2, 3), correction=0) * x[:, 0].numel()
    torch.testing.assert_close(batch_moments(x)[1].double(), exact, rtol=1e-5, atol=0)
    y = sync_batch_norm(x, None, None, training=True)
    torch.testing.assert_close(y, F.batch_norm(x.double(), None, None, training=True).float(), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
def test_a_mean_near_zero_of_many_parts(backend, layout):
    """Whose first value, which the parts' means are told from, is far from it: the last place of 3 is 2**-22."""
    x = torch.randn(4, 64, 24, 800 if backend == "cpu" else 24, generator=torch.Generator().manual_seed(0))
    x[0, :, 0, 0] = 3
    x = x.contiguous(memory_format=layout)
    torch.testing.assert_close(batch_moments(x)[0].double(), x.double().mean((0, 2, 3)), rtol=0, atol=2**-22)


@in_both_layouts
@pytest.mark.parametrize("activation", (None, "relu6", "silu"))
@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_nan_and_infinity_stay_in_their_channel(backend, layout, activation, value):
    x = torch.ones(2, 35, 3, 5).contiguous(memory_format=layout)
    x[1, 33, 2, 4] = value
    x.requires_grad_()
    mean, m2, _ = batch_moments(x)
    y = sync_batch_norm(x, None, None, training=True, activation=activation)
    (dx,) = torch.autograd.grad(y.sum(), x)
    others = [*range(33), 34]
    assert not mean[33].isfinite() and m2[33].isnan() and y[:, 33].isnan().all() and dx[:, 33].isnan().all()
    for t in (mean[others], m2[others], y[:, others], dx[:, others]):
        assert t.isfinite().all()
    one = sync_batch_norm(x.detach(), torch.zeros(35), torch.ones(35))
    assert (~one.isfinite()).sum() == 1


@in_both_layouts
@pytest.mark.parametrize("activation", NAMES)
def test_slopes_at_infinity_are_pytorchs(backend, layout, activation):
    x = torch.linspace(-8, 8, 2 * 21 * 3 * 5).view(2, 21, 3, 5).contiguous(memory_format=layout)
    x[0, :, 1] = torch.tensor([-math.inf, math.inf, -3.0, 0.0, 6.0])
    dy, leaf = torch.arange(1.0, 1 + x.numel()).view(x.shape), x.requires_grad_()
    constants = torch.zeros(21), torch.ones(21)
    ours = sync_batch_norm(leaf, *constants, eps=0.0, activation=activation)
    # F.batch_norm refuses eps = 0 in torch 2.11.
    theirs = ACTIVATIONS[activation](torch.batch_norm(leaf, None, None, *constants, False, 0.0, 0.0, False))
    (a,), (b,) = (torch.autograd.grad(y, leaf, dy) for y in (ours, theirs))
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-3)


@in_both_layouts
def test_empty_batch(backend, layout):
    x = torch.zeros(0, 4, 5, 6).contiguous(memory_format=layout).requires_grad_()
    w, b = torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)
    mean, var = torch.zeros(4), torch.ones(4)
    for training in (True, False):
        y = sync_batch_norm(x, mean, var, w, b, training)
        assert y.shape == x.shape
        x.grad = w.grad = b.grad = None
        y.sum().backward()
        assert x.grad.shape == x.shape and not w.grad.any() and not b.grad.any()
    assert not mean.any() and torch.equal(var, torch.ones(4))
    mean, m2, n = batch_moments(x)
    assert not mean.any() and not m2.any() and n == 0


@pytest.mark.parametrize("params", (torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_parameters_in_float32_or_the_inputs_type(backend, params):
    dtype = torch.float16 if params == torch.float32 else params
    x, w, b = (t.to(dtype) for t in tensors((6, 18, 3, 4)))
    w, b = (t.to(params).requires_grad_() for t in (w, b))
    mean, var = torch.zeros(18, dtype=params), torch.ones(18, dtype=params)
    y = sync_batch_norm(x, mean, var, w, b, True)
    dw, db = torch.autograd.grad(y.float().pow(2).sum(), (w, b))
    expected_mean, expected_var = torch.zeros(18), torch.ones(18)
    expected = F.batch_norm(x.float(), expected_mean, expected_var, w.float(), b.float(), True)
    eps = torch.finfo(dtype).eps
    assert y.dtype == dtype and dw.dtype == db.dtype == params
    torch.testing.assert_close(y.float(), expected, rtol=2 * eps, atol=2 * eps)
    eps = max(1e-5, torch.finfo(params).eps)
    torch.testing.assert_close(mean.float(), expected_mean, rtol=2 * eps, atol=eps)
    torch.testing.assert_close(var.float(), expected_var, rtol=2 * eps, atol=eps)


def test_momentum_may_be_a_tensor(backend):
    x = tensors((6, 18, 3, 4))[0]
    several = []
    for momentum in (0.25, torch.tensor(0.25)):
        mean, var = torch.zeros(18, dtype=x.dtype), torch.ones(18, dtype=x.dtype)
        sync_batch_norm(x, mean, var, None, None, True, momentum)
        several.append(torch.stack([mean, var]))
    assert torch.equal(*several)


def test_strided_vectors(backend):
    x, w, b = (t.float() for t in tensors((3, 18, 2, 3)))
    apart = [torch.stack([t, torch.full_like(t, math.nan)], 1)[:, 0] for t in (w, b, w, b.exp())]
    y = sync_batch_norm(x, apart[2], apart[3], *apart[:2])
    torch.testing.assert_close(y, sync_batch_norm(x, w, b.exp(), w, b))


x4, v3, v4 = torch.ones(2, 4, 5, 5), torch.ones(3), torch.ones(4)
BAD = {
    "no statistics": (x4, None, None),
    "no variance": (x4, v4, None),
    "one of two statistics in training": (x4, v4, None, None, None, True),
    "mean too short": (x4, v3, v4),
    "mean too short in training": (x4, v3, v4, None, None, True),
    "weight too short": (x4, v4, v4, v3),
    "bias too short": (x4, None, None, None, v3, True),
    "weight of another type": (x4, v4, v4, v4.double()),
    "input in float64": (x4.double(), None, None, v4, None, True),
    "one value in a channel": (x4[:1, :, :1, :1], None, None, None, None, True),
    "one dimension": (v4, v4, v4),
    "integers": (x4.long(), None, None, None, None, True),
    "eps in training": (x4, None, None, None, None, True, 0.1, -1.0),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises_what_pytorch_raises(backend, name):
    assert error_of(sync_batch_norm, *BAD[name]) == error_of(F.batch_norm, *BAD[name])


@pytest.mark.parametrize("dtype", (torch.complex64, torch.float16, torch.float64, torch.int64), ids=str)
@pytest.mark.parametrize("x", (x4, x4.bfloat16()), ids=lambda x: str(x.dtype))
@pytest.mark.parametrize("which", ("mean", "variance"))
def test_statistics_of_another_type_raise_what_pytorch_raises(backend, which, x, dtype):
    """And before anything is written."""
    statistics = [v4.clone(), v4.to(dtype)] if which == "variance" else [v4.to(dtype), v4.clone()]
    ours, theirs = (error_of(fn, x, *statistics, training=True) for fn in (sync_batch_norm, F.batch_norm))
    assert ours == theirs and all(torch.equal(t, torch.ones_like(t)) for t in statistics)


@pytest.mark.parametrize("training", (True, False))
def test_an_unknown_activation(backend, training):
    with pytest.raises(ValueError, match="activation must be one of None, 'relu', .* but got 'tanh'"):
        sync_batch_norm(x4, v4, v4, training=training, activation="tanh")


def test_bad_input_of_moments(backend):
    assert error_of(batch_moments, v4)[1].startswith("batch_moments expects input (n, c, ...)")
    with pytest.raises(RuntimeError, match="float32, float64, bfloat16"):
        batch_moments(x4.long())


@pytest.mark.parametrize("shape", ((5, 40, 9, 11), (3, 5, 70, 80)), ids=str)
@in_both_layouts
@pytest.mark.parametrize("activation", (None, "hardswish"))
def test_threads_do_not_change_a_bit(cpu_kernels, activation, shape, layout):
    x, w, b = (t.float() for t in tensors(shape))
    c = Case("threads", normalized, [x.contiguous(memory_format=layout), w, b], {"activation": activation})
    dy = [torch.ones_like(x).cumsum(0)]
    check_thread_counts(lambda: chain(*run(c, c.tensors, dy), batch_moments(c.tensors[0])))


def test_eight_threads_at_once(cpu_kernels):
    calls = []
    for i in range(8):
        x, w, b = tensors((3, 20 + i, 9, 8))
        calls.append(lambda x=x, w=w, b=b: [sync_batch_norm(x, None, None, w, b, True), *batch_moments(x)])
    check_at_once(calls, rounds=20)


@in_both_layouts
@pytest.mark.parametrize("activation", (None, "relu6"))
def test_memory(cpu_kernels, activation, layout):
    """As the docstrings say: a sixteenth of the input for its moments; results and gradients only, beside that."""
    x = torch.randn(8, 256, 64, 64).contiguous(memory_format=layout).requires_grad_()
    w = torch.ones(256, requires_grad=True)
    assert allocated(lambda: batch_moments(x.detach())) < x.nbytes / 16
    with torch.no_grad():
        assert allocated(lambda: sync_batch_norm(x, None, None, w, w, True)) < x.nbytes * 17 / 16
    y = sync_batch_norm(x, None, None, w, w, True, activation=activation)
    dy = torch.randn_like(y)
    assert allocated(lambda: torch.autograd.grad(y, (x, w), dy, retain_graph=True)) < x.nbytes * 17 / 16


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    shape=st.tuples(st.integers(2, 20), st.integers(1, 90), st.integers(1, 20), st.integers(1, 20)),
    dtype=st.sampled_from(DTYPES),
    training=st.booleans(),
    # Those whose slope does not jump: where it does, a z that is rounded to the other side is as right.
    activation=st.sampled_from([None, "silu", "sigmoid"]),
)
def test_any_geometry(shape, dtype, training, activation):
    """Sizes that nobody thought of, on the CPU kernels."""
    kwargs = {"training": training, "activation": activation}
    magnitude = {"magnitude": True, "activation": None, "curved": activation is not None}
    case = Case("any", normalized, tensors(shape), kwargs, count(shape), magnitude)
    check_values(case, dtype)


def test_exchange_operator_has_a_fake():
    with torch.device("meta"):
        moments = torch.ones(3), torch.ones(3), torch.ones((), dtype=torch.int64)
        mean, var, n = exchange_moments(*moments, "0", "layer")
    assert mean.shape == var.shape == (3,) and n.shape == () and n.dtype == torch.float32

"""precision_gate_conv2d on every backend: exact integers, the same gates, straight-through gradients, edges, errors."""

from __future__ import annotations

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from check_op import DTYPES, Case, check_onnx, check_tracing, in_both_layouts, layouts, poisoned, same
from convolutions import BAD_GROUPS, X, bad_arguments, check_autocast, check_empty_batch, fits
from edges import allocated, check_thread_counts, error_of
from torch import Tensor
from walls import walled

import fastnets
from fastnets._backends import INTERPRETED
from fastnets.ops import precision_gate_conv2d

SHUT, WIDE_OPEN = math.inf, -math.inf


def tensors(shape, outputs, kernel=(3, 3), groups=1, signed=True, seed=0, **kwargs):
    """Input, weight, threshold (about half of the gates open) and bias, in float64, and the other arguments."""
    make = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=make, dtype=torch.float64)

    x, w = normal(*shape), normal(outputs, shape[1] // groups, *kernel)
    return [x if signed else x.relu(), w, normal(outputs), normal(outputs)], {"groups": groups, **kwargs}


# One of each class: input channels below, at and past four and a window of 64; output channels below, at and past one
# and four vectors of 4, 8 and 16 lanes; pixels below and past a tile; every geometry.
CASES = {
    "one number": tensors((1, 1, 1, 1), 1, (1, 1)),
    "few channels": tensors((2, 3, 5, 6), 5, padding=1),
    "one vector": tensors((1, 4, 4, 4), 16, signed=False),
    "past four vectors": tensors((1, 8, 3, 5), 70, (1, 1)),
    "past a window": tensors((1, 70, 3, 3), 33, padding=1, signed=False),
    "stride and dilation": tensors((2, 5, 9, 11), 7, (2, 3), stride=(2, 3), padding=(3, 1), dilation=(2, 3)),
    "grouped": tensors((2, 12, 5, 4), 18, groups=3, padding=(0, 2), stride=(1, 2)),
    "depthwise": tensors((1, 6, 5, 5), 6, groups=6, padding=1),
    "more padding than kernel": tensors((1, 3, 2, 2), 4, padding=4),
    "seven and one bits": tensors((1, 5, 4, 4), 6, activation_bits=8, high_bits=7, weight_bits=1),
    "one and seven bits": tensors((1, 5, 4, 4), 6, activation_bits=8, high_bits=1, weight_bits=5),
    "two bits": tensors((1, 5, 4, 4), 6, activation_bits=2, high_bits=1, weight_bits=2, scale=0.7),
    "frozen scale": tensors((2, 5, 4, 4), 6, scale=1.25),
}
if INTERPRETED:  # where a program takes milliseconds for each tap
    CASES = {name: CASES[name] for name in ("one number", "few channels", "grouped", "seven and one bits")}
    DTYPES = torch.float32, torch.float64


def cast(case, dtype):
    return [t.to(dtype) for t in case]


def reference(*args, **kwargs):
    with fastnets.use_backend("reference"):
        return precision_gate_conv2d(*args, **kwargs)


# ---- the meaning, against integers and against a second emulation ----------------------------


def integer_parts(x, w, kwargs):
    """y_high and y_low as integers, from loops over int64: x and w are already integers."""
    a, h = kwargs.get("activation_bits", 8), kwargs.get("high_bits", 4)
    unit = 2 ** (a - h)
    q = x.long()
    high = q.sign() * (q.abs() // unit * unit)
    geometry = {k: kwargs[k] for k in ("stride", "padding", "dilation", "groups") if k in kwargs}
    return tuple(F.conv2d(part, w.long(), **geometry) for part in (high, q - high))


@pytest.mark.parametrize("name", [n for n in CASES if "scale" not in CASES[n][1]])
def test_integer_parts_are_exact(backend, name):
    """Scales that make one unit of the sums 1, in a type that holds them all: results are the integers themselves."""
    (x, w, threshold, _), kwargs = CASES[name]
    levels, weight_levels = 2 ** kwargs.get("activation_bits", 8) - 1, 2 ** kwargs.get("weight_bits", 8) - 1
    x = (x * 100).round().clamp(-levels, levels)
    w = (w * 100).round().clamp(-weight_levels, weight_levels)
    w.view(-1)[0] = weight_levels
    high, low = integer_parts(x, w, kwargs)
    for layout, t in layouts(x).items():
        shut, none = precision_gate_conv2d(
            t, w, threshold * 0 + SHUT, **kwargs, scale=float(levels), return_density=True
        )
        both, every = precision_gate_conv2d(
            t, w, threshold * 0 + WIDE_OPEN, **kwargs, scale=float(levels), return_density=True
        )
        assert torch.equal(shut, high.double()) and torch.equal(both, (high + low).double()), layout
        assert none == 0 and every == 1


def test_literal_values(backend):
    x = torch.tensor([255.0, 31.0, 15.0, -31.0, 40.0]).view(1, 1, 1, 5)
    w = torch.full((1, 1, 1, 1), 3.0)  # of one bit: 1, worth 3
    args = x, w, torch.tensor([60.0]), torch.tensor([0.5])
    # The high parts are 240, 16, 0, -16 and 32, times 3; above 60 the low parts 15 and 8 are added.
    y, density = precision_gate_conv2d(*args, weight_bits=1, return_density=True)
    assert y.flatten().tolist() == [765.5, 48.5, 0.5, -47.5, 120.5]
    assert density.dtype == torch.float32 and density.shape == () and abs(density - 0.4) < 1e-7
    clamped = precision_gate_conv2d(*args, weight_bits=1, scale=15.0, activation_bits=4, high_bits=2)
    assert clamped.flatten().tolist() == [36.5, 36.5, 36.5, -35.5, 36.5]  # 15 = 12 + 3, and 36 is not above 60


def test_rounds_half_to_even(backend):
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -2.5, 253.5, 254.5]).view(1, 1, 1, 7)
    y = precision_gate_conv2d(x, torch.ones(1, 1, 1, 1), torch.tensor([WIDE_OPEN]), weight_bits=1, scale=255.0)
    assert y.flatten().tolist() == [0, 2, 2, 0, -2, 254, 254]


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, dy):
        return dy


class Floor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.floor()

    @staticmethod
    def backward(ctx, dy):
        return dy


class Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, sparse):
        ctx.save_for_backward(u)
        ctx.sparse = sparse
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, dy):
        (u,) = ctx.saved_tensors
        with torch.enable_grad():
            v = u.detach().requires_grad_()
            (slope,) = torch.autograd.grad(torch.sigmoid(5 * v).sum(), v)
        return dy * slope * (u > 0 if ctx.sparse else 1), None


def emulation(x, w, threshold, bias, stride=1, padding=0, dilation=1, groups=1, scale=None, sparse_backward=False,
              activation_bits=8, high_bits=4, weight_bits=8):  # fmt: skip
    """The paper's way: fake-quantised numbers, and autograd through functions of its own."""

    def quantised(t, s, bits, shift):
        sign = torch.where(t < 0, -1.0, 1.0).to(t.dtype)  # abs and sign would have slope 0 at 0
        magnitude = Round.apply((t * sign / s).clamp(0, 1) * (2**bits - 1))
        return sign * Floor.apply(magnitude / 2**shift) * 2**shift / (2**bits - 1) * s

    sx = x.detach().abs().max() if scale is None else scale
    w = quantised(w, w.detach().abs().max(), weight_bits, 0)
    x_high, x_all = quantised(x, sx, activation_bits, activation_bits - high_bits), quantised(x, sx, activation_bits, 0)
    y_high, y_low = (F.conv2d(t, w, None, stride, padding, dilation, groups) for t in (x_high, x_all - x_high))
    gate = Gate.apply(y_high - threshold.view(-1, 1, 1), sparse_backward)
    return y_high + gate * y_low + bias.view(-1, 1, 1)


@pytest.mark.parametrize("sparse", (False, True))
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_of_the_papers_way(backend, name, sparse):
    case, kwargs = CASES[name]
    kwargs = {**kwargs, "sparse_backward": sparse}
    results = []
    for fn in (precision_gate_conv2d, emulation):
        leaves = [t.clone().requires_grad_() for t in case]
        y = fn(*leaves, **kwargs)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        results.append((y, *torch.autograd.grad(y, leaves, dy)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


# ---- the contract ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_backend_gives_the_references_bits(backend, name, dtype):
    """Without a bias, whose sum may be rounded once or twice; results and density, in every layout."""
    (x, w, threshold, bias), kwargs = CASES[name]
    x, w, threshold, bias = cast((x, w, threshold, bias), dtype)
    expected, density = reference(x, w, threshold, **kwargs, return_density=True)
    with_bias = reference(x, w, threshold, bias, **kwargs)
    for layout, t in layouts(x).items():
        begun, ended = (walled((t, w, threshold, bias), side) for side in ("before", "after"))
        with poisoned():
            y, open = precision_gate_conv2d(*begun[:3], **kwargs, return_density=True)
            z = precision_gate_conv2d(*ended, **kwargs)
        assert torch.equal(y, expected) and torch.equal(open, density), layout
        bound = 2 * torch.finfo(dtype).eps * (expected.abs() + bias.view(-1, 1, 1).abs())
        assert ((z - with_bias).abs() <= bound).all(), layout
        meta = torch.empty_strided(t.shape, t.stride(), dtype=dtype, device="meta")
        fake = precision_gate_conv2d(meta, *(u.to("meta") for u in (w, threshold)), **kwargs)
        assert (y.stride(), y.dtype, y.shape) == (fake.stride(), fake.dtype, fake.shape), layout
        assert same(begun, [t, w, threshold, bias]) and same(ended, begun)


@pytest.mark.parametrize("weight", ("transposed", "channels_last", "every second", "expanded"))
def test_weight_bias_and_threshold_of_any_strides(backend, weight):
    (x, w, threshold, bias), kwargs = tensors((1, 6, 5, 5), 9, padding=1)
    x, w, threshold, bias = cast((x, w, threshold, bias), torch.float32)
    if weight == "expanded":
        threshold, bias = threshold[:1].expand(9), bias[:1].expand(9)
    else:
        w = layouts(w)[weight if weight in ("transposed", "channels_last") else "every second of the last dimension"]
        threshold = torch.stack([threshold, bias], 1)[:, 0]
    plain = [t.contiguous() for t in (x, w, threshold, bias)]
    torch.testing.assert_close(
        precision_gate_conv2d(x, w, threshold, bias, **kwargs), reference(*plain, **kwargs), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32))
def test_gradients_in_every_type(backend, dtype):
    """Those of float64, rounded; also from a gradient of stride 0; each alone."""
    case, kwargs = tensors((2, 4, 5, 6), 6, padding=1, scale=1.5)
    case = cast(case, dtype)
    exact = [t.double().requires_grad_() for t in case]
    wanted = torch.autograd.grad(reference(*exact, **kwargs).sum(), exact)
    leaves = [t.clone().requires_grad_() for t in case]
    got = torch.autograd.grad(precision_gate_conv2d(*leaves, **kwargs).sum(), leaves)
    for g, exactly in zip(got, wanted, strict=True):
        assert g.dtype == dtype
        error = (g.double() - exactly).abs().max() / exactly.abs().max()
        assert error <= 2 * torch.finfo(dtype).eps + 1e-4
    for i in range(4):
        alone = [t.clone().requires_grad_(i == j) for j, t in enumerate(case)]
        y = precision_gate_conv2d(*alone, **kwargs)
        (only,) = torch.autograd.grad(y, [alone[i]], torch.ones((), dtype=dtype).expand(y.shape))
        torch.testing.assert_close(only, got[i])


def test_second_derivative_raises_and_names_the_op(backend):
    (x, w, threshold, _), kwargs = tensors((1, 2, 3, 3), 2)
    x.requires_grad_()
    y = precision_gate_conv2d(x, w, threshold, **kwargs)
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="precision_gate_conv2d has no double backward"):
        torch.autograd.grad(dx.sum(), x)


def test_tracing(backend):
    (x, w, threshold, bias), _ = tensors((2, 4, 5, 6), 11)  # a number that is no size of x: they share no symbol
    leaves = [t.clone().requires_grad_() for t in (x, w, threshold, bias)]
    rest = [1, 1], [1, 1], [1, 1], 1, 8, 4, 8, False
    scale = torch.tensor(1.5, dtype=torch.float64)
    operator = torch.ops.fastnets.precision_gate_conv2d.default
    case = Case("tracing", precision_gate_conv2d, [x, w, threshold, bias], {"padding": 1, "scale": 2.0})
    check_tracing(case, [(operator, (*leaves, None, *rest)), (operator, (*leaves, scale, *rest))])


def test_compiled_training_step(backend):
    case, kwargs = tensors((2, 4, 5, 6), 6, padding=1, scale=1.5)
    results = []
    for fn in (precision_gate_conv2d, torch.compile(precision_gate_conv2d, backend="aot_eager", fullgraph=True)):
        leaves = [t.float().requires_grad_() for t in case]
        results.append(torch.autograd.grad(fn(*leaves, **kwargs).square().sum(), leaves))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


@pytest.mark.parametrize("scale", (None, 1.5))
def test_onnx(tmp_path, scale):
    case, kwargs = tensors((2, 4, 9, 8), 6, stride=(2, 1), padding=1, scale=scale)
    check_onnx(Case("onnx", precision_gate_conv2d, case, kwargs), tmp_path)


def test_unbatched_and_string_padding(backend):
    (x, w, threshold, bias), _ = tensors((1, 6, 7, 8), 4, (3, 4))
    for padding in ("same", "valid", 2, (1, 2)):
        batch, density = precision_gate_conv2d(x, w, threshold, bias, 1, padding, (1, 2), return_density=True)
        one, same_density = precision_gate_conv2d(x[0], w, threshold, bias, 1, padding, (1, 2), return_density=True)
        assert torch.equal(one, batch[0]) and density == same_density
        assert batch.shape == F.conv2d(x, w, None, 1, padding, (1, 2)).shape


@in_both_layouts
def test_empty_batch(backend, layout):
    check_empty_batch(lambda *args: precision_gate_conv2d(*args, stride=2), 4, layout)
    x = X[:0].contiguous(memory_format=layout)
    assert precision_gate_conv2d(x, W, T, groups=2, return_density=True)[1] == 0


@pytest.mark.parametrize("zeros", ("input", "weight", "scale"))
def test_zeros_give_the_bias(backend, zeros):
    x, w, threshold = torch.ones(1, 2, 3, 3), torch.ones(3, 2, 1, 1), torch.tensor([-1.0, 0.0, 1.0])
    x, w = x * (zeros != "input"), w * (zeros != "weight")
    scale = torch.zeros(()) if zeros == "scale" else None
    leaves = [t.requires_grad_() for t in (x, w, threshold)]
    y, density = precision_gate_conv2d(*leaves, torch.arange(3.0), scale=scale, return_density=True)
    assert y[0, :, 0, 0].tolist() == [0.0, 1.0, 2.0] and abs(density - 1 / 3) < 1e-6
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), leaves))


@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
def test_what_is_no_number(backend, value):
    x, w, threshold = torch.ones(1, 20, 3, 9), torch.ones(2, 20, 1, 1), torch.zeros(2)
    x[0, 17, 1, 2] = value
    y, density = precision_gate_conv2d(x, w, threshold, return_density=True)
    assert y.isnan().all() and density == 0
    assert precision_gate_conv2d(x.nan_to_num(), w * value, threshold).isnan().all()
    as_number = 0.0 if math.isnan(value) else math.copysign(2.0, value)
    y = precision_gate_conv2d(x, w, threshold, scale=2.0)
    x[0, 17, 1, 2] = as_number
    assert torch.equal(y, precision_gate_conv2d(x, w, threshold, scale=2.0))


def test_frozen_scale_makes_results_independent_of_the_batch(backend):
    (x, w, threshold, bias), kwargs = tensors((3, 6, 5, 5), 7, padding=1, scale=1.5)
    x[2] *= 100
    together = precision_gate_conv2d(x, w, threshold, bias, **kwargs)
    for i in range(3):
        assert torch.equal(together[i : i + 1], precision_gate_conv2d(x[i : i + 1], w, threshold, bias, **kwargs))
    as_tensor = {**kwargs, "scale": torch.tensor([1.5], dtype=x.dtype)}
    assert torch.equal(together, precision_gate_conv2d(x, w, threshold, bias, **as_tensor))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_autocast(dtype):
    check_autocast(precision_gate_conv2d, 4, dtype)


W, T = torch.ones(4, 2, 3, 3), torch.ones(4)
BAD = bad_arguments(W)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises_what_pytorch_raises(backend, name):
    x, w, *rest = BAD[name]
    assert error_of(precision_gate_conv2d, x, w, T, *rest, groups=2) == error_of(F.conv2d, x, w, *rest, groups=2)


@pytest.mark.parametrize("groups", BAD_GROUPS)
def test_bad_groups_raise_what_pytorch_raises(backend, groups):
    assert error_of(precision_gate_conv2d, X, W, T, groups=groups) == error_of(F.conv2d, X, W, groups=groups)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"threshold": torch.ones(5)}, RuntimeError, r"threshold of shape \(4,\), .* got shape \(5,\)"),
        ({"threshold": T.double()}, RuntimeError, "type torch.float32, .* type torch.float64"),
        ({"scale": torch.ones(2)}, RuntimeError, r"scale of one number, .* got shape \(2,\)"),
        ({"scale": torch.ones((), dtype=torch.float64)}, RuntimeError, "type torch.float64"),
        ({"high_bits": 8}, ValueError, "high_bits < activation_bits <= 8 .* high_bits 8"),
        ({"high_bits": 0}, ValueError, "1 <= high_bits"),
        ({"activation_bits": 9}, ValueError, "activation_bits 9"),
        *(({"weight_bits": bits}, ValueError, f"weight_bits {bits}") for bits in (9, 2**40, -20, 4.0)),
        *(({"scale": scale}, ValueError, f"finite scale, .* {scale}") for scale in (-1.0, 0.0, math.inf, math.nan)),
        ({"input": X.int(), "weight": W.int()}, RuntimeError, "expects a floating input|not torch.int32"),
    ],
)
def test_bad_input_of_our_own(backend, change, error, text):
    with pytest.raises(error, match=text):
        precision_gate_conv2d(**{"input": X, "weight": W, "threshold": T, "groups": 2, **change})


def test_sums_beyond_32_bits_go_to_the_reference(backend):
    x, w = torch.ones(1, 2**15, 1, 1), torch.ones(1, 2**15, 1, 1)
    if fastnets._op.requested.get() == "reference":
        assert abs(precision_gate_conv2d(x, w, torch.zeros(1)) - 2**15) < 1e-2
    else:
        with pytest.raises(RuntimeError, match="sums of 32768 products of 8 and 8 bits may pass 32 bits"):
            precision_gate_conv2d(x, w, torch.zeros(1))
    assert precision_gate_conv2d(x[:, :32767], w[:, :32767], torch.zeros(1)).isfinite()


# ---- the CPU kernels -------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ("all the largest", "one sign each", "many too large for a byte"))
@pytest.mark.parametrize("channels", (64, 67))
def test_weights_that_pass_a_byte(backend, weights, channels):
    """255 takes three places of a signed byte; every channel of a window may be too large."""
    if INTERPRETED:
        channels //= 8
    make = torch.Generator().manual_seed(3)
    q = torch.randint(0, 256, (18, channels, 1, 2), generator=make)
    q = {"all the largest": q * 0 + 255, "one sign each": (q % 2 * 2 - 1) * 255, "many too large for a byte": q - 511}
    q = q[weights].clamp(-255, 255)
    q[0, 0, 0, 0] = 255
    x = torch.randint(-255, 256, (1, channels, 2, 3), generator=make)
    y = precision_gate_conv2d(x.double(), q.double(), torch.full((18,), WIDE_OPEN).double(), scale=255.0)
    assert torch.equal(y, F.conv2d(x, q).double())


def test_threads_do_not_change_a_bit(cpu_kernels):
    case, kwargs = tensors((2, 20, 14, 15), 70, padding=1)
    case = cast(case, torch.float32)
    check_thread_counts(lambda: precision_gate_conv2d(*case, **kwargs, return_density=True))


@pytest.mark.parametrize("outputs", [150, 160])  # whose last vector is a part of one; whose vectors are cache lines
def test_geometry_of_several_groups_of_images_past_the_caches(cpu_kernels, outputs):
    """Two images have 2 MB of parts, the third is a group of its own; the result is over 16 MB."""
    (x, *case), kwargs = tensors((3, 48, 100, 100), outputs, (1, 1), scale=2.0)
    case = [x.contiguous(memory_format=torch.channels_last), *case[:2]]  # a bias is added with one rounding or two
    case = cast(case, torch.float32)
    y, density = precision_gate_conv2d(*case, **kwargs, return_density=True)
    expected, of_expected = reference(*case, **kwargs, return_density=True)
    assert y.nbytes > 16 << 20 and torch.equal(y, expected) and density == of_expected


def test_memory_beside_the_result_is_as_documented(cpu_kernels):
    """Two bytes for each number of the padded input, 2 MB of many images, about two for each of the weight."""
    (x, w, threshold, bias), kwargs = tensors((4, 64, 30, 30), 64, padding=1)
    case = [t.float().contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t.float()
            for t in (x, w, threshold, bias)]  # fmt: skip
    y = precision_gate_conv2d(*case, **kwargs)
    padded, weights = 4 * 64 * 32 * 32, w.numel()
    beside = allocated(lambda: precision_gate_conv2d(*case, **kwargs)) - y.nbytes
    assert 2 * padded <= beside <= 2 * padded + 2 * weights + 4096
    many = torch.cat([case[0]] * 8)
    beside = allocated(lambda: precision_gate_conv2d(many, *case[1:], **kwargs)) - 8 * y.nbytes
    assert beside <= (2 << 20) + 2 * weights + 4096


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(data=st.data())
def test_any_geometry(data):
    """Shapes, strides, paddings, dilations and groups that nobody thought of, on the CPU kernels, bit for bit."""
    draw = data.draw
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 35), st.integers(1, 9), st.integers(1, 20)))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    kwargs = {
        "stride": draw(pair),
        "padding": draw(st.tuples(st.integers(0, 5), st.integers(0, 5))),
        "dilation": draw(pair),
        "high_bits": draw(st.integers(1, 7)),
        "weight_bits": draw(st.integers(1, 8)),
    }
    channels, outputs = shape[1] * groups, draw(st.integers(1, 40)) * groups
    case, _ = tensors((shape[0], channels, *shape[2:]), outputs, kernel, groups, signed=draw(st.booleans()))
    hypothesis.assume(fits(*case[:2], kwargs))
    x, w, threshold, _ = cast(case, draw(st.sampled_from(DTYPES)))
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    got: tuple[Tensor, Tensor] = precision_gate_conv2d(x, w, threshold, groups=groups, **kwargs, return_density=True)
    expected = reference(x, w, threshold, groups=groups, **kwargs, return_density=True)
    assert all(map(torch.equal, got, expected))

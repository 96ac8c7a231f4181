"""Precision gating on packed weights: both packings, unpacked again, and run on, give what the weights themselves give."""

from __future__ import annotations

import pytest
import torch
from check_op import DTYPES, layouts, poisoned
from edges import check_refuses, check_thread_counts
from test_precision_gate_conv2d import CASES, SHUT, WIDE_OPEN, cast, tensors

import fastnets
from fastnets.ops import precision_gate_conv2d
from fastnets.ops._convolution import pair
from fastnets.ops._packed_precision_gate_conv2d import (
    LANES,
    pack_precision_gate_conv2d,
    packed_precision_gate_conv2d,
    unpack,
)
from fastnets.ops.precision_gate_conv2d import largest, quantize


def on(backend, op, *args):
    with fastnets.use_backend(backend):
        return op.run(*args)


def call(x, packed, w, threshold, bias, scale, groups=1, stride=1, padding=0, dilation=1, activation_bits=8,
         high_bits=4, weight_bits=8):  # fmt: skip
    """The arguments of the op on packed weights."""
    geometry = [list(pair(p)) for p in (stride, padding, dilation)]
    return x, packed, w.shape, threshold, bias, scale, *geometry, groups, activation_bits, high_bits, weight_bits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cpu_the_same_bits_as_on_weights(walled_cpu_kernels, name, dtype):
    case, kwargs = CASES[name]
    x, w, threshold, bias = cast(case, dtype)
    kwargs = {**kwargs, "scale": torch.tensor(kwargs.get("scale", 1.5), dtype=dtype)}
    for layout, t in layouts(x).items():
        for b in (None, bias):
            expected, density = precision_gate_conv2d(t, w, threshold, b, **kwargs, return_density=True)
            for packing in ("cpu", "reference"):
                packed = on(packing, pack_precision_gate_conv2d, w, kwargs["groups"], kwargs.get("weight_bits", 8))
                args = call(t, packed, w, threshold, b, **kwargs)
                with poisoned():
                    y, open = on("cpu", packed_precision_gate_conv2d, *args)
                assert torch.equal(y, expected) and y.stride() == expected.stride(), (layout, packing)
                assert open.dtype == torch.int64 and open / y.numel() == density, (layout, packing)
                if b is None:  # whose sum may be rounded once or twice
                    z, same = on("reference", packed_precision_gate_conv2d, *args)
                    assert torch.equal(z, expected) and same == open, (layout, packing)


def weights_of(kind, shape):
    q = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(3))
    q = {
        "any": q * 2 - 255,
        "few": (q * 2 - 255) // 2,
        "all the largest": q * 0 + 255,
        "one sign each": (q % 2 * 2 - 1) * 255,
        "many too large for a byte": q - 511,
        "at the ends of a byte": q % 5 + torch.where(q % 2 == 0, 126, -130),
        "zeros": q * 0,
    }[kind].clamp(-255, 255)
    return q if kind == "zeros" else q.index_put((torch.tensor(0),) * 4, torch.tensor(255))


@pytest.mark.parametrize("groups", (1, 3))
@pytest.mark.parametrize("channels", (1, 4, 64, 67, 130))
@pytest.mark.parametrize(
    "kind", ("any", "few", "all the largest", "one sign each", "many too large for a byte", "at the ends of a byte", "zeros")
)  # fmt: skip
def test_cpu_unpacking_gives_the_integers(walled_cpu_kernels, kind, channels, groups):
    q = weights_of(kind, (18 * groups, channels, 1, 2))
    packs = [on(backend, pack_precision_gate_conv2d, q.float(), groups, 8) for backend in ("cpu", "reference")]
    for packed in packs:
        bytes, sums, starts, excess, scale = packed
        assert bytes.shape == (2 * groups, 2, -(-channels // 4), LANES, 4) and scale == (0 if kind == "zeros" else 255)
        assert starts[0] == 0 and starts[-1] == len(excess)
        assert torch.equal(unpack(packed, q.shape, groups), q.double())
        per_lane = sums.view(groups, -1)[:, :18].flatten()
        assert torch.equal(per_lane.long(), q.sum((1, 2, 3))) and not sums.view(groups, -1)[:, 18:].any()
    for ours, theirs in zip(*packs, strict=True):  # of the excess, the order may be another one
        assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
    assert all(map(torch.equal, packs[0][:3], packs[1][:3]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cpu_packs_weights_of_any_strides(cpu_kernels, dtype):
    w = tensors((1, 70, 3, 3), 33)[0][1].to(dtype)
    for bits in (8, 3):
        expected = quantize(w, largest(w), bits).double()
        for layout, t in layouts(w).items():
            packed = on("cpu", pack_precision_gate_conv2d, t, 1, bits)
            assert torch.equal(unpack(packed, w.shape, 1), expected), layout
            assert packed[-1].dtype == dtype and packed[-1] == w.abs().max()


def test_what_is_no_number_makes_all_results_so(cpu_kernels):
    case, _ = tensors((1, 20, 3, 3), 5, (1, 1))
    x, w, threshold, _ = cast(case, torch.float32)
    w[2, 3] = torch.nan
    for backend in ("cpu", "reference"):
        packed = on(backend, pack_precision_gate_conv2d, w, 1, 8)
        y, open = on(backend, packed_precision_gate_conv2d, *call(x, packed, w, threshold, None, torch.tensor(1.0)))
        assert y.isnan().all() and open == 0


def test_threads_do_not_change_a_bit(cpu_kernels):
    case, kwargs = tensors((2, 70, 14, 15), 70, padding=1)
    x, w, threshold, bias = cast(case, torch.float32)
    check_thread_counts(lambda: pack_precision_gate_conv2d.run(w, 1, 8))
    args = call(x, pack_precision_gate_conv2d.run(w, 1, 8), w, threshold, bias, torch.tensor(2.0), **kwargs)
    check_thread_counts(lambda: packed_precision_gate_conv2d.run(*args))


def test_cpu_no_images(cpu_kernels):
    (x, w, threshold, _), kwargs = tensors((0, 4, 5, 5), 6)
    packed = pack_precision_gate_conv2d.run(w, 1, 8)
    y, open = packed_precision_gate_conv2d.run(*call(x, packed, w, threshold, None, w.new_ones(()), **kwargs))
    assert y.shape == (0, 6, 3, 3) and open == 0


def good_call():
    case, kwargs = tensors((1, 70, 6, 6), 18, padding=1, groups=2)
    x, w, threshold, bias = cast(case, torch.float32)
    packed = pack_precision_gate_conv2d.run(w, 2, 8)
    assert len(packed[3]) > 0
    return call(x, packed, w, threshold, bias, torch.tensor(2.0), **kwargs)


WRONG_PACKS = {  # which of the five tensors, and what is there instead
    "four tensors": lambda p: p[:4],
    "fewer bytes": lambda p: [p[0][:1], *p[1:]],
    "bytes of another type": lambda p: [p[0].to(torch.uint8), *p[1:]],
    "bytes in another order": lambda p: [p[0].transpose(0, 1).contiguous().transpose(0, 1), *p[1:]],
    "fewer sums": lambda p: [p[0], p[1][:1], *p[2:]],
    "fewer starts": lambda p: [*p[:2], p[2][:-1], *p[3:]],
    "starts that go back": lambda p: [*p[:2], p[2].flip(0), *p[3:]],
    "starts past the excess": lambda p: [*p[:2], p[2] + 1, *p[3:]],
    "starts before the excess": lambda p: [*p[:2], p[2] - 1, *p[3:]],
    "less excess": lambda p: [*p[:3], p[3][1:], p[4]],
    "excess of shorter rows": lambda p: [*p[:3], p[3][:, 1:].contiguous(), p[4]],
    "excess of no rows": lambda p: [*p[:3], p[3].flatten(), p[4]],
    "a tap that is not there": lambda p: [*p[:3], p[3].index_fill(1, torch.tensor(0), 9), p[4]],
    "a tap below 0": lambda p: [*p[:3], p[3].index_fill(1, torch.tensor(7), 255), p[4]],
    "a channel that is not there": lambda p: [*p[:3], p[3].index_fill(1, torch.tensor(8), 35), p[4]],
    "a channel below 0": lambda p: [*p[:3], p[3].index_fill(1, torch.tensor(15), 255), p[4]],
    "scale of another type": lambda p: [*p[:4], p[4].double()],
    "two scales": lambda p: [*p[:4], p[4].expand(2)],
}


@pytest.mark.parametrize("wrong", WRONG_PACKS)
def test_cpu_wrong_packs_raise(cpu_kernels, wrong):
    good = good_call()
    check_refuses(torch.ops.fastnets_cpu.packed_precision_gate_conv2d.default, good, 1, WRONG_PACKS[wrong](good[1]))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, torch.ones(1, 66, 6, 6)), (0, torch.ones(70, 6, 6)), (0, torch.ones(1, 70, 6, 6).double()),
        (0, torch.ones(1, 70, 6, 6).int()), (2, [18, 33, 3, 3]), (2, [20, 35, 3, 3]), (2, [18, 35, 3]), (2, [18, 35, 3, 2]),
        (2, [18, 35, 0, 3]), (2, [18, 35, 9, 9]), (3, torch.ones(50)), (3, torch.ones(18, 1)), (3, torch.ones(18).double()),
        (4, torch.ones(17)), (5, torch.ones(2)), (6, [0, 1]), (7, [-1, 0]), (8, [1, 0]), (9, 0), (9, -2), (9, 1), (10, 9),
        (11, 8), (12, 9),
    ],
)  # fmt: skip
def test_cpu_wrong_arguments_raise(cpu_kernels, place, value):
    check_refuses(torch.ops.fastnets_cpu.packed_precision_gate_conv2d.default, good_call(), place, value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, torch.ones(4, 2, 3)), (0, torch.ones(4, 2, 3, 3).int()), (0, torch.ones(5, 2, 3, 3)), (0, torch.ones(4, 0, 3, 3)),
        (0, torch.ones(4, 2, 0, 3)), (1, 0), (1, -1), (2, 0), (2, 9),
    ],
)  # fmt: skip
def test_cpu_weights_that_cannot_be_packed_raise(cpu_kernels, place, value):
    good = torch.ones(4, 2, 3, 3), 2, 8
    check_refuses(torch.ops.fastnets_cpu.pack_precision_gate_conv2d.default, good, place, value)


def test_cpu_any_bytes_of_excess_stay_in_the_window(cpu_kernels):
    """Nobody checks them: whatever they pick, nothing beside the window is read (the sanitizers would tell)."""
    x, packed, *rest = good_call()
    excess = packed[3].clone()
    excess[:, 16:] = 255
    for threshold in (SHUT, WIDE_OPEN):
        rest[1] = torch.full((18,), threshold)
        y, _ = packed_precision_gate_conv2d.run(x, [*packed[:3], excess, packed[4]], *rest)
        assert y.isfinite().all()

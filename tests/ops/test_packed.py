"""The ops on packed weights: packing and its way back, the reference beside the kernels, the record of what ran."""

from __future__ import annotations

import pytest
import torch

import fastnets
from fastnets.ops import _int8, _packed

LAST = torch.channels_last


def calls(dtype=torch.float32):
    def image(*size):
        return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype).contiguous(memory_format=LAST)

    def panels(weight):
        return _packed.pack_for_cpu(weight.to(dtype), None)[0]

    make = torch.Generator().manual_seed(1)
    expand, kernels, project = (torch.randn(s, generator=make) for s in ((48, 20), (48, 1, 3, 3), (40, 48)))
    bias = torch.randn(48, generator=make)
    pairs = [3, 3], [2, 1], [1, 1], [1, 1]
    sides = [0, 1, 2, 2]
    direct = (
        image(2, 3, 9, 8),
        _packed.pack_panels(torch.randn(40, 3 * 3 * 3, generator=make)),
        40,
        [3, 3],
        [2, 1],
        sides,
        None,
    )
    return {
        "pointwise_conv2d": (
            image(2, 20, 5, 6),
            panels(expand),
            48,
            bias,
            image(2, 48, 5, 6),
            "silu",
            [],
            None,
        ),
        "preact_conv2d": (
            torch.randn(2, 48 + 16, generator=make),
            [image(2, 37, 5, 6), image(2, 11, 5, 6)],
            2,
            panels(project),
            40,
            None,
            "silu",
        ),
        "outer_sum_conv2d": (
            image(2, 48, 5, 1),
            image(2, 48, 1, 6),
            panels(project),
            40,
            bias[:40],
            "sigmoid",
            image(2, 40, 5, 6),
        ),
        "inverted_residual": (
            image(2, 20, 8, 7),
            panels(expand),
            bias,
            "relu6",
            _packed.pack_depthwise(kernels, bias),
            48,
            *pairs[:2],
            sides,
            [1, 1],
            "hardswish",
            panels(project),
            None,
            40,
            image(2, 40, 4, 8),
            "relu",
            [panels(project[:12]), bias[:12], panels(expand[:, :12]), bias],
            "silu",
            True,
            [],
            None,
        ),
        "direct_conv2d": (*direct, None, "relu", [], None),
        "direct_max_pool2d": (*direct, "relu", [3, 2], [2, 1], [1, 0], True),
        "winograd_conv2d": (
            image(2, 20, 9, 8),
            _packed.pack_winograd(torch.randn(40, 20, 3, 3, generator=make), 4),
            40,
            [1, 0],
            bias[:40],
            image(2, 40, 9, 6),
            "relu",
            1,
        ),
        "squeeze_excitation": (
            image(2, 48, 5, 6),
            [panels(project[:12]), bias[:12], panels(expand[:, :12]), bias],
            "silu",
            False,
            image(2, 48, 5, 6),
            "relu",
        ),
        "pooled_linear": (image(3, 48, 5, 5), panels(project), 40, None, []),
        "max_pool2d": (image(2, 20, 8, 7), *pairs[:3], True),
        "avg_pool2d": (image(2, 20, 8, 7), *pairs[:3], True, False),
        "add_images": (image(2, 20, 5, 6), image(2, 20, 5, 6).flip(1).contiguous(memory_format=LAST), "silu"),
        "concat_images": (image(2, 40, 5, 6), [image(2, 20, 5, 6), image(2, 7, 5, 6)], [12, 2]),
    }


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in calls()] + [(n, torch.bfloat16) for n in calls() if n != "winograd_conv2d"],
    ids=str,
)
def test_kernel_and_reference_agree_and_are_counted(name, dtype):
    op, results = getattr(_packed, name), []
    fastnets.backend_report(reset=True)
    for backend in ("cpu", "reference"):
        if backend == "cpu" and fastnets._backends.BACKENDS["cpu"].missing():
            pytest.skip("no compiled kernels")
        with fastnets.use_backend(backend):
            results.append(op.run(*calls(dtype)[name]))
    got, expected = results
    assert got.dtype == expected.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    else:  # the reference rounds between its steps
        assert (got.float() - expected.float()).norm() < 0.01 * expected.float().norm()
    assert fastnets.backend_report(reset=True)[name]["calls"] == {"cpu": 1, "reference": 1}


def int8_calls():
    """Of the ops that multiply in int8: of numbers to numbers, and of bytes to bytes."""
    make = torch.Generator().manual_seed(0)
    levels, stored = _int8.Levels(0.02, 100), _int8.stored(_int8.Levels(0.1, 120), _int8.Levels(0.05, 90))

    def image(*size):
        return torch.randint(0, 256, size, generator=make, dtype=torch.uint8).contiguous(memory_format=LAST)

    def packed(o, c):
        return _packed.pack_int8(torch.randn(o, c, generator=make) * c**-0.5, torch.randn(o, generator=make), levels)

    def of(x, start, rest, residual, activation):
        panels, bias, quantized = rest
        for bytes in (False, True):
            one, other = (t if bytes else _int8.numbers(t, torch.tensor([50.0, 100.0])) for t in (x, residual))
            yield one, panels, *start, bias, other, activation, quantized, stored if bytes else None

    first, kernels = packed(48, 20), torch.randn(48, 1, 3, 3, generator=make) / 3
    last = packed(40, 48)
    x, residual = image(2, 20, 8, 7), image(2, 40, 8, 7)
    hidden = _packed.pack_depthwise(kernels, None), 48, *([i, i] for i in (3, 1)), [1] * 4, [1, 1], "relu"
    for bytes in (False, True):
        one, other = (t if bytes else _int8.numbers(t, torch.tensor([50.0, 100.0])) for t in (x, residual))
        block = one, *first[:2], "silu", *hidden, *last[:2], 40, other, "relu", [], None, False
        yield "inverted_residual", (*block, [*last[2], *first[2]], stored if bytes else None)
    yield from (("pointwise_conv2d", call) for call in of(x, [40], packed(40, 20), residual, "relu"))
    where = 40, [3, 3], [2, 1], [0, 1, 2, 2]
    yield from (("direct_conv2d", call) for call in of(x, where, packed(40, 180), image(2, 40, 4, 8), None))
    panels, *rest = packed(40, 20)
    yield "pooled_linear", (_int8.numbers(x, torch.tensor([50.0, 100.0])), panels, 40, *rest)


@pytest.mark.parametrize("call", range(7))
def test_kernel_and_reference_agree_in_int8(cpu_kernels, call):
    op, given = [*int8_calls()][call]
    got = getattr(_packed, op).run(*given)
    with fastnets.use_backend("reference"):
        expected = getattr(_packed, op).run(*given)
    assert got.dtype == expected.dtype
    if op == "inverted_residual":
        # The depthwise convolution's sums are rounded in another order: few are on the other side of half a level.
        off = (got.double() - expected.double()).abs() > (0 if got.dtype == torch.uint8 else 1e-5)
        assert off.double().mean() < 0.01
    else:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 if got.is_floating_point() else 0)
    assert len(got.unique()) > 50


@pytest.mark.parametrize("channels", (1, 16, 32, 33, 80))
def test_unpacking_undoes_packing(channels):
    for c in (4, 5):
        weight = torch.randn(channels, c, 1, 1)
        pairs = _packed.pack_panels(weight, 2)
        assert pairs.shape == (-(-channels // 32), -(-c // 2), 32, 2) and pairs[0, 1, 0, 0] == weight[0, 2]
        assert torch.equal(_packed.unpack_panels(pairs, channels, c), weight)
    weight, kernels, bias = torch.randn(channels, 5, 1, 1), torch.randn(channels, 1, 3, 5), torch.randn(channels)
    panels = _packed.pack_panels(weight)
    assert panels.shape == (-(-channels // 32), 5, 32)
    assert torch.equal(_packed.unpack_panels(panels, channels, 5), weight)
    weight = torch.randn(channels, 5, 3, 3)
    for side in (2, 4):
        points = _packed.pack_winograd(weight, side)
        assert points.shape == (len(panels), (side + 2) ** 2, 5, 32)
        torch.testing.assert_close(_packed.unpack_winograd(points, channels), weight)
    for b in (bias, None):
        table = _packed.unpack_depthwise(_packed.pack_depthwise(kernels, b), channels)
        assert torch.equal(table[:, :-1], kernels.flatten(1))
        assert torch.equal(table[:, -1], torch.zeros(channels) if b is None else b)


class OnGpu(torch.Tensor):
    is_cuda = True


def test_what_is_packed_while_a_graph_is_captured_is_not_kept(monkeypatch):
    packs, weight = _packed.Packs(), torch.ones(2).as_subclass(OnGpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    captured = packs._pack("panels", object, weight)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    kept = packs._pack("panels", object, weight)
    assert kept is not captured
    assert packs._pack("panels", object, weight) is kept

"""Steps: what ops hand to threads, written down and run again on other numbers in the same memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from check_op import flat, same
from edges import threads
from test_packed import calls

from fastnets.accelerate._steps import _GIVEN, _INTO
from fastnets.ops._packed import pack_panels

CPU = torch.ops.fastnets_cpu
LAST = torch.channels_last


def image(*size, dtype=torch.float32, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype).contiguous(memory_format=LAST)


def arguments(op, dtype):
    """Of every op that can be a step."""
    make = torch.Generator().manual_seed(1)
    if op == "concat_images":
        return image(2, 27, 5, 6, dtype=dtype), [image(2, c, 5, 6, dtype=dtype) for c in (20, 7)], [0, 20]
    if op in _INTO:
        return calls(dtype)[op]
    if op == "channel_shuffle":
        return image(2, 12, 9, 8, dtype=dtype), 3
    if op == "shuffle_split":
        return image(2, 12, 9, 8, dtype=dtype), image(2, 12, 9, 8, dtype=dtype, seed=2), False
    weight = torch.randn(40, 1 if op == "depthwise_conv2d" else 5, 3, 3, generator=make).to(dtype)
    groups = [] if op == "depthwise_conv2d" else [8]
    return image(2, 40, 9, 8, dtype=dtype), weight, weight[:, 0, 0, 0].clone(), [1, 1], [1, 1], [1, 1], *groups, "relu"


def tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list):
            yield from tensors(value)


def written_down(call, *results):
    """The number of the steps of a call."""
    CPU.begin_steps(results)
    try:
        call()
    finally:
        steps = CPU.end_steps()
    return steps


CASES = [(op, dtype) for op in sorted({*_INTO, *_GIVEN}) for dtype in (torch.float32, torch.bfloat16)]
CASES.remove(("winograd_conv2d", torch.bfloat16))  # which takes float32 only


@pytest.mark.parametrize("count", (1, 2, 5))
@pytest.mark.parametrize(("op", "dtype"), CASES, ids=str)
def test_cpu_steps_do_what_the_op_does(cpu_kernels, op, dtype, count):
    given, kernel = arguments(op, dtype), getattr(CPU, op).default
    writes_first = op == "concat_images"
    results = [given[0]] if writes_first else [torch.empty_like(y) for y in flat(kernel(*given))]
    into = {"into": results[0]} if op in _INTO and not writes_first else {}
    with threads(count):
        steps = written_down(lambda: kernel(*given, **into), *(results if op in _GIVEN else []))
        for x in tensors(given[writes_first:]):
            x.copy_(x.flip(1) if x.dim() == 4 else x * 0.5)
        results[0].fill_(torch.nan)
        expected = [y.clone() for y in flat(kernel(*given))]
        for y in results:
            y.fill_(torch.nan)
        CPU.run_steps(steps)
        assert same(results, expected)
    CPU.forget_steps(steps)


def chain(x, panels, *results):
    """Convolutions, each of what the one before has written."""
    for y in results:
        x = CPU.pointwise_conv2d(x, panels, 64, None, x, "relu", [], None, into=y)


@pytest.mark.parametrize("count", (2, 3, 16))
def test_cpu_each_step_waits_for_the_one_before(cpu_kernels, count):
    """Many short steps, on more threads than there are cores: whoever waits does the share of who does not come."""
    panels, ys = pack_panels(torch.randn(64, 64) / 16), [torch.empty_like(image(1, 64, 14, 14)) for _ in range(50)]
    x = image(1, 64, 14, 14)
    with threads(count):
        steps = written_down(lambda: chain(x, panels, *ys))
        for seed in range(20):
            x.copy_(image(1, 64, 14, 14, seed=seed))
            CPU.run_steps(steps)
            got = ys[-1].clone()
            chain(x, panels, *ys)
            assert torch.equal(got, ys[-1])
    CPU.forget_steps(steps)


def test_cpu_steps_of_several_threads_at_once(cpu_kernels):
    panels = pack_panels(torch.randn(64, 64) / 16)

    def run(seed):
        x, ys = image(2, 64, 14, 14, seed=seed), [torch.empty_like(image(2, 64, 14, 14)) for _ in range(10)]
        steps = written_down(lambda: chain(x, panels, *ys))
        expected = ys[-1].clone()
        for _ in range(20):
            ys[-1].fill_(torch.nan)
            CPU.run_steps(steps)
            if not torch.equal(ys[-1], expected):
                return False
        CPU.forget_steps(steps)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(16)))


def test_cpu_steps_say_what_is_wrong(cpu_kernels):
    x, y = image(1, 12, 4, 4), image(1, 12, 4, 4)
    with pytest.raises(RuntimeError, match="no steps -1"):
        CPU.run_steps(-1)
    with pytest.raises(RuntimeError, match="does not write down"):
        CPU.end_steps()
    with pytest.raises(RuntimeError, match="already"):
        written_down(lambda: CPU.begin_steps([]))
    for place in ([], [image(1, 12, 4, 5)], [y.double()], [y.contiguous()]):
        with pytest.raises(RuntimeError, match="expected a place"):
            written_down(lambda place=place: CPU.channel_shuffle(x, 3), *place)
    steps = written_down(lambda: CPU.channel_shuffle(x, 3), y)
    CPU.forget_steps(steps)
    with pytest.raises(RuntimeError, match="no steps"):
        CPU.run_steps(steps)
    assert torch.equal(CPU.channel_shuffle(x, 3), y)  # nothing is written down any more

"""What holds for every public op: in inference mode, from several threads at once, in a forked process."""

from __future__ import annotations

import ctypes

import pytest
import torch
from check_op import flat, same
from edges import check_at_once
from examples import examples
from torch.utils.data import DataLoader
from walls import walls

import fastnets
from fastnets import ops
from fastnets._backends import INTERPRETED
from fastnets._op import Op

NAMES = list(examples(1))
each = pytest.mark.parametrize("name", NAMES)


def test_there_is_an_example_of_every_op():
    assert set(NAMES) == {name for name, op in vars(ops).items() if callable(op) and not name.startswith("_")}


@each
def test_inference_mode_changes_nothing(backend, name):
    size = 2 if INTERPRETED else 4
    expected = flat(examples(size)[name]())
    with torch.inference_mode():
        got = flat(examples(size)[name]())
    assert same(got, expected) and all(y.is_inference() for y in got)
    with fastnets.use_backend("reference"):
        torch.testing.assert_close(got, flat(examples(size)[name]()))


@each
def test_cpu_memory_beside_tensors_is_left_alone(cpu_kernels, name):
    for size in (1, 2, 3, 5):
        expected = flat(examples(size)[name]())
        for side in ("before", "after"):
            with walls(side):
                assert same(flat(examples(size)[name]()), expected)


@each
def test_a_tensor_whose_memory_was_released_is_refused(cpu_kernels, name, monkeypatch):
    """As sharding and offloading leave them behind."""
    run, seen = Op.run, []
    monkeypatch.setattr(Op, "run", lambda op, *args: seen.append((op, args)) or run(op, *args))
    examples(2)[name]()
    for op, args in seen:
        for i, t in enumerate(args):
            if isinstance(t, torch.Tensor) and t.numel() > 0:
                released = t.clone()
                released.untyped_storage().resize_(0)
                with pytest.raises(RuntimeError, match=f"^{op.name}: .* its data is not allocated yet"):
                    run(op, *args[:i], released, *args[i + 1 :])
    assert seen


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs one kernel at a time")
@each
def test_eight_calls_at_once(backend, name):
    check_at_once([examples(s)[name] for s in (2, 3, 4, 5)], rounds=2 if backend == "cuda" else 16)


@each
def test_a_forked_worker_gives_what_its_parent_does(cpu_kernels, name):
    """As DataLoader starts them; the parent has threads, which the fork does not copy."""
    expected = flat(examples(6)[name]())
    workers = {"num_workers": 2, "multiprocessing_context": "fork", "timeout": 60}
    for got in DataLoader([name] * 2, batch_size=None, collate_fn=lambda name: flat(examples(6)[name]()), **workers):
        assert same(got, expected)


class _Allocated(ctypes.Structure):
    """glibc's mallinfo2."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "used", "free", "top")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def _allocated() -> int:
    """The bytes that the C library has given out."""
    count = ctypes.CDLL(None).mallinfo2
    count.restype = _Allocated
    info = count()
    return int(info.used + info.hblkhd)


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library does not count what it gives out"
)
@each
def test_calls_leave_no_memory_behind(cpu_kernels, name):
    call, calls, least = examples(2)[name], 300, 32  # bytes of the smallest allocation

    def growth():
        before = _allocated()
        for _ in range(calls):
            call()
        return _allocated() - before

    growth()  # what only first calls allocate
    # What calls leave behind is there in each round; what the C library puts into a cache of its own, in one.
    assert min(growth() for _ in range(3)) < calls * least / 2

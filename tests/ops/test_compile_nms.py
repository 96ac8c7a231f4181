"""The Triton kernels of nms and soft_nms compile to machine code for GPUs that are not here."""

from __future__ import annotations

import re

import pytest
import torch
from triton_compile import check_compiles, compiled, driver, skip_interpreted  # noqa: F401

from fastnets.kernels.nms import nms_launches
from fastnets.kernels.soft_nms import soft_nms_launches

pytestmark = [skip_interpreted, pytest.mark.usefixtures("driver")]


def tensors(n, dtype, batched):
    boxes, ids = torch.empty(4, n, dtype=dtype, device="meta"), torch.empty(n, dtype=torch.int64, device="meta")
    return boxes, torch.empty(n, dtype=dtype, device="meta"), ids, ids if batched else None


def soft(dtype=torch.float32, method="linear", compat=None, batched=False):
    boxes, scores, ids, begins = tensors(1000, dtype, batched)
    return soft_nms_launches(boxes, scores, ids, begins, ids, scores, 0.3, 0.5, 1e-3, method, 1000, compat)


def hard(dtype=torch.float32, batched=False):
    boxes, _, ids, begins = tensors(1000, dtype, batched)
    return nms_launches(boxes, begins, ids.to(torch.bool), 0.5)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("batched", (False, True))
def test_compiles(dtype, batched, tmp_path):
    check_compiles(hard(dtype, batched), tmp_path)
    for method in ("linear", "gaussian", "hard"):
        check_compiles(soft(dtype, method, None, batched), tmp_path)
    for compat in ("mmcv", "paper"):
        check_compiles(soft(dtype, "gaussian", compat, batched), tmp_path)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_every_operation_is_rounded_and_division_too(dtype):
    for launch in (*hard(dtype), *soft(dtype, "gaussian"), *soft(dtype, "linear", "paper")):
        ptx = compiled(launch).asm["ptx"]
        name = "f64" if dtype == torch.float64 else "f32"
        assert f"div.rn.{name}" in ptx and "fma." not in ptx and "div.full" not in ptx and ".ftz" not in ptx


ACCESS = re.compile(r"tt\.(load|store) (%[\w#]+).* : !tt\.ptr|\bbarrier\b")


@pytest.mark.parametrize("compat", (None, "mmcv", "paper"))
@pytest.mark.parametrize("batched", (False, True))
def test_a_barrier_lies_between_what_all_threads_load_and_one_stores(compat, batched):
    """Of one number: all threads load it, one stores it."""
    (launch,) = soft(compat=compat, batched=batched)
    since = {}  # the last barrier, what was done through a pointer
    for access in ACCESS.finditer(compiled(launch).asm["ttgir"]):
        what, pointer = access.groups()
        if what is None:
            since.clear()
        else:
            assert since.setdefault(pointer, what) == what, access[0]

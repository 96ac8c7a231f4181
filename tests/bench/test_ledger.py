"""The ledger of GPU runs: what a hash covers, what a run changes, what is malformed."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from benchmarks import _ledger
from benchmarks._ledger import FILES, ROOT, Malformed

PRESENT = _ledger.hashes()
CUDA_ONLY = {"inverted_residual"}


@pytest.fixture
def tree(tmp_path):
    """A copy of all that kernels are made of."""
    for folder in ("csrc", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def test_the_ledger_is_well_formed_and_of_kernels_that_are_there():
    assert _ledger.read().keys() <= PRESENT.keys()


def test_every_op_of_a_backend_is_a_kernel():
    names = {name.partition("/")[2] for name in PRESENT}
    assert PRESENT.keys() == {f"{b}/{op}" for b in FILES for op in names if b == "cuda" or op not in CUDA_ONLY}
    assert "corner_pool" in names and not any(name.startswith("_") for name in names)


@pytest.mark.parametrize(
    ("edited", "changed"),
    [
        ("kernels/corner_pool.py", {"triton/corner_pool"}),
        ("kernels/_soft_nms_swaps.py", {"triton/soft_nms"}),
        ("kernels/_boxes.py", {"triton/soft_nms", "triton/nms"}),
        ("kernels/_activation.py", {"triton/grouped_conv2d", "triton/depthwise_conv2d", "triton/sync_batch_norm"}),
        ("csrc/cuda/nms.cu", {"cuda/nms"}),
        ("csrc/boxes.h", {"cuda/nms", "cuda/soft_nms"}),
        ("csrc/cuda/grouped_conv2d.cu", {"cuda/grouped_conv2d", "cuda/depthwise_conv2d"}),
        ("csrc/cuda/grouped_conv2d.cuh", {"cuda/grouped_conv2d", "cuda/depthwise_conv2d"}),
        ("csrc/cuda/launch.h", {name for name in PRESENT if name.startswith("cuda/")}),
        ("kernels/_launch.py", {name for name in PRESENT if name.startswith("triton/")}),
        ("csrc/cpu/nms.cpp", set()),
    ],
)
def test_an_edit_changes_the_hashes_of_all_that_contain_it(tree, edited, changed):
    assert _ledger.hashes(tree) == PRESENT
    with (tree / edited).open("a") as file:
        file.write("\n")
    after = _ledger.hashes(tree)
    assert {name for name in PRESENT if after[name] != PRESENT[name]} == changed


def test_a_changed_source_is_unproven(entry):
    old = dataclasses.replace(entry, hash="0" * 64)
    assert _ledger.proven({"cuda/nms": entry, "triton/nms": old, "cuda/gone": old}, PRESENT) == {"cuda/nms": entry}


def test_a_run_writes_what_passed_drops_what_failed_and_keeps_the_rest(entry):
    before = {"cuda/nms": entry, "cuda/soft_nms": entry, "cuda/strip_pool": entry}
    run = {name: dataclasses.replace(entry, gpu="B GPU") for name in PRESENT}
    after = _ledger.merged(before, {"cuda/nms": 7, "cuda/soft_nms": 0, "triton/nms": 3}, run)
    assert after.keys() == {"cuda/nms", "cuda/strip_pool", "triton/nms"}
    assert (after["cuda/nms"].gpu, after["cuda/nms"].tests, after["triton/nms"].tests) == ("B GPU", 7, 3)
    assert after["cuda/strip_pool"] == entry


def test_what_is_written_is_read(entry, tmp_path):
    unmeasured = dataclasses.replace(entry, case=None, seconds=None, copy_share=None)
    ledger = {"cuda/nms": entry, "triton/nms": unmeasured}
    _ledger.write(ledger, tmp_path / "ledger")
    assert _ledger.read(tmp_path / "ledger") == ledger


@pytest.mark.parametrize(
    "change",
    [
        {"tests": 0},
        {"tests": "12"},
        {"gpu": ""},
        {"hash": "0123"},
        {"seconds": None},
        {"seconds": -1.0},
        {"copy_share": None},
        {"case": None},
        {"speed": 1},
    ],
    ids=str,
)
def test_malformed_entries_are_refused(entry, change, tmp_path):
    (tmp_path / "ledger").write_text(json.dumps({"cuda/nms": dataclasses.asdict(entry) | change}))
    with pytest.raises(Malformed):
        _ledger.read(tmp_path / "ledger")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cuda/nms": {}}', '{"cuda/nms": 1}', '{"cuda/nms": null}'])
def test_malformed_files_are_refused(text, tmp_path):
    (tmp_path / "ledger").write_text(text)
    with pytest.raises(Malformed):
        _ledger.read(tmp_path / "ledger")


def test_a_kernel_of_no_backend_is_refused(entry, tmp_path):
    _ledger.write({"rocm/nms": entry}, tmp_path / "ledger")
    with pytest.raises(Malformed, match="rocm/nms"):
        _ledger.read(tmp_path / "ledger")

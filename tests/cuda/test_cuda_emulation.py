"""The emulation itself: threads exchange as on a GPU, and what would hang or race there is reported here."""

from __future__ import annotations

import os
import threading

import emulate
import pytest
import torch

pytestmark = pytest.mark.skipif(emulate.compiler() is None, reason="no C++ compiler to build the emulation with")
KERNELS = emulate.EMULATION / "emulation_kernels.cu"


def run(name: str, x: torch.Tensor, threads: int = 64) -> torch.Tensor:
    torch.ops.load_library(emulate.build("emulation", [KERNELS]))
    y = torch.full_like(x, -1)
    torch.ops.fastnets_emulation.run(name, x, y, threads)
    return y


def rows(count: int) -> torch.Tensor:
    return torch.arange(count * 64.0).view(count, 64)


def test_shuffle_shared_memory_and_barrier():
    x = rows(3)
    torch.testing.assert_close(run("row_sum", x), x.sum(1, keepdim=True).expand(3, 64), rtol=0, atol=0)


def test_vote():
    x = torch.zeros(2, 64)
    x[0, :7] = x[0, 32:64] = x[1, 31] = 1
    assert run("count_positive", x)[:, [0, 31, 32, 63]].tolist() == [[7, 7, 32, 32], [1, 1, 0, 0]]


def test_warp_maximum():
    assert run("largest", rows(2))[:, [0, 31, 32, 63]].tolist() == [[31, 31, 63, 63], [95, 95, 127, 127]]


def test_dynamic_shared_memory():
    assert torch.equal(run("reverse", rows(2)), rows(2).flip(1))


def test_missing_barrier_shows_in_the_result():
    y = run("reverse_without_barrier", rows(2))
    assert y.isnan().any(1).tolist() == [True, True]
    assert run("row_sum_without_barrier", rows(2)).isnan().any(1).tolist() == [True, True]  # warps wait within only


def test_shared_memory_starts_as_nan_in_every_block():
    assert run("read_unwritten", rows(3)).isnan().all()


def test_copies_come_when_they_are_waited_for():
    expected = rows(3)
    expected[:, -4:] = 0  # the copy that is not live
    assert torch.equal(run("copied", rows(3)), expected)
    assert run("copied_without_wait", rows(3)).isnan().all()


def test_barrier_of_a_warp():
    assert torch.equal(run("neighbour_of_warp", rows(2)), rows(2).view(4, 32).flip(1).view(2, 64))


# Who has what of 8 x 8 numbers, by the PTX manual: lane i two neighbours of row i / 4, from column 2 (i % 4) on.
@pytest.mark.parametrize("kernel", ("fragments", "transposed_fragments"))
def test_fragments(kernel):
    x = rows(4)
    matrices = x.view(4, 8, 8)
    if kernel == "transposed_fragments":
        matrices = matrices.mT
    expected = [matrices[m, i // 4, 2 * (i % 4) + j] for i in range(32) for m in range(4) for j in range(2)]
    assert run(kernel, x).flatten().tolist() == expected


# By the manual too: number i of a lane is at (row, column), with g = lane / 4 and t = lane % 4.
@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_product_of_fragments(dtype):
    def of_lanes(matrix, count, row, column):
        return [matrix[row(n // 4, n % 4, i), column(n // 4, n % 4, i)].item() for n in range(32) for i in range(count)]

    torch.manual_seed(0)
    a, b, c = (torch.randint(-4, 5, size).float() for size in ((16, 16), (16, 8), (16, 8)))
    first = of_lanes(
        a, 8, lambda g, t, i: g if i in (0, 1, 4, 5) else g + 8, lambda g, t, i: 2 * t + i % 2 + (8 if i >= 4 else 0)
    )
    second = of_lanes(b, 4, lambda g, t, i: 2 * t + i % 2 + (8 if i >= 2 else 0), lambda g, t, i: g)
    at_sums = (lambda g, t, i: g if i < 2 else g + 8), (lambda g, t, i: 2 * t + i % 2)
    y = run(f"product_{dtype}", torch.tensor(first + second + of_lanes(c, 4, *at_sums)).view(8, 64))
    assert y.flatten()[:128].tolist() == of_lanes(a @ b + c, 4, *at_sums)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("missed_barrier", r"block \(0, 0, 0\); 63 at a barrier \(first: thread 0\); 1 at the end .*thread 5"),
        ("missing_lane", r"31 at a shuffle \(first: thread 32\); 33 at the end of the kernel"),
        ("shuffle_meets_vote", r"32 at a shuffle \(first: thread 1\); 32 at a vote \(first: thread 0\)"),
        ("too_much_shared", "more than 48 KiB of shared memory"),
    ],
)
def test_wrong_kernel_fails_and_the_next_runs(kernel, message):
    with pytest.raises(RuntimeError, match=message):
        run(kernel, rows(1))
    assert run("row_sum", rows(1))[0, 0] == 63 * 32


@pytest.mark.parametrize(("blocks", "threads"), [(0, 64), (1, 0), (1, 48), (1, 1056)])
def test_launch_that_cuda_refuses(blocks, threads):
    with pytest.raises(RuntimeError, match="invalid number of"):
        run("nothing", rows(blocks), threads)


def test_launches_from_several_threads():
    results: dict[int, torch.Tensor] = {}
    workers = [threading.Thread(target=lambda i=i: results.update({i: run("row_sum", rows(i))})) for i in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(y, rows(i).sum(1, keepdim=True).expand(i, 64)) for i, y in results.items())
    assert len(results) == 3


def test_library_is_built_again_only_when_a_source_changes(tmp_path):
    library = emulate.build("emulation", [KERNELS])
    built = os.stat(library).st_mtime_ns
    assert emulate.build("emulation", [KERNELS]) == library and os.stat(library).st_mtime_ns == built
    changed = tmp_path / KERNELS.name
    changed.write_text(KERNELS.read_text() + "// changed\n")
    assert emulate.library_path("emulation", [changed]) != library

"""sync_batch_norm over several processes on a CPU, started by torchrun; what they do is in sync_batch_norm_ranks.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from fastnets._backends import INTERPRETED

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo"),
    pytest.mark.skipif(INTERPRETED, reason="ranks choose the CPU's own backend"),
]
SCRIPT = Path(__file__).parent / "sync_batch_norm_ranks.py"


def torchrun(scenes: str, ranks: int, folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run([*command, SCRIPT, scenes, folder], capture_output=True, text=True, timeout=300, check=False)
    passed = {path.name for path in folder.glob("* *")}
    assert passed == {f"{scene} {rank}" for scene in scenes.split(",") for rank in range(ranks)}, done.stderr


@pytest.mark.parametrize("ranks", (1, 2, 3, 4))
def test_ranks_equal_one_process(ranks, tmp_path):
    torchrun(
        {2: "equal,unequal,empty,half,ddp,compile", 4: "unequal,groups"}.get(ranks, "equal,unequal,empty"),
        ranks,
        tmp_path,
    )


@pytest.mark.parametrize("scene", ("dies", "skips_to_same_size", "dies_before_backward"))
def test_a_missing_rank_ends_in_an_error_that_names_the_layer(scene, tmp_path):
    torchrun(scene, 2, tmp_path)
    assert (tmp_path / "named").exists()

"""Floors: what counts as an operation, what a machine can do, and what is said of a case that takes less."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import _ceilings
from benchmarks._ceilings import SIDES, Ceilings
from benchmarks._cost import fewest_macs
from benchmarks._live import Live
from fastnets.cli import main
from fastnets.cli.bench.run_file import read

RUN = Path(__file__).with_name("run.json")  # made up, for these tests


@pytest.mark.parametrize(
    ("layers", "macs"),
    [
        ([nn.Conv2d(4, 6, 1)], 6 * 4 * 64),
        ([nn.Conv2d(4, 6, 3, padding=1)], 6 * 4 * 64 * 9 / 4),
        ([nn.Conv2d(4, 6, 3, 2, padding=1)], 6 * 4 * 16 * 9),
        ([nn.Conv2d(4, 6, 3, padding=1, groups=2)], 6 * 2 * 64 * 9),
        ([nn.Conv2d(4, 6, 1), nn.AvgPool2d(2)], 6 * 4 * 16),
        ([nn.Conv2d(4, 6, 1), nn.ReLU(), nn.AvgPool2d(2)], 6 * 4 * 64),
        ([nn.Conv2d(4, 6, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 3)], 6 * 4 * 16 + 3 * 96),
    ],
)
@pytest.mark.parametrize("n", (1, 5))
def test_fewest_multiply_adds(n, layers, macs):
    assert fewest_macs(nn.Sequential(*layers), torch.ones(n, 4, 8, 8)) == n * macs


def test_floor_is_the_larger_of_two():
    ceilings = Ceilings({1 << 20: 1e11, 1 << 28: 1e10}, {"float32": 1e11, "int8": 4e11})
    assert ceilings.floor(1 << 20, 0) == (1 << 20) / 1e11 and ceilings.floor(1 << 27, 0) == (1 << 27) / 1e10
    assert ceilings.floor(1, 1e6) == 1e-5 and ceilings.floor(1, 1e6, "int8") == 2.5e-6


def test_the_fastest_way_is_the_ceiling(monkeypatch):
    """A type whose every way is slower than float32 has that one's ceiling; a way that takes seconds is left."""
    rates = {"float32": {1: 2e9, 2: 7e9}, "bfloat16": {1: 3e6, 2: 5e9}, "int8": {1: 9e9}}
    tried = []

    def way(i):
        return lambda side, dtype: (str(dtype).removeprefix("torch."), i, side)

    monkeypatch.setattr(_ceilings, "WAYS", {name: [way(i) for i in ways] for name, ways in rates.items()})

    def best(product, lasting):
        name, i, side = product
        tried.append(product)
        return 2 * side**3 / rates[name][i] / (1 if side == 256 else 1.5)  # larger is faster

    monkeypatch.setattr(_ceilings, "_best", best)
    assert _ceilings._rates(0) == {"float32": 1.05e10, "bfloat16": 1.05e10, "int8": 1.35e10}
    assert [side for name, i, side in tried if (name, i) == ("bfloat16", 1)] == [256]
    assert [side for name, i, side in tried if (name, i) == ("int8", 1)][:2] == [*SIDES][:2]


def test_every_way_computes():
    for name, ways in _ceilings.WAYS.items():
        for way in ways:
            with torch.no_grad():
                assert way(256, getattr(torch, name))().numel() == 256**2


@pytest.fixture
def beating(tmp_path):
    """The made-up run, one of whose cases took less than its floor, with nothing for bfloat16."""
    run = json.loads(RUN.read_text())
    run["benchmarks"][0]["extra_info"]["share"] = 1.2
    run["benchmarks"][1]["extra_info"]["share"] = 1.04
    run["fastnets"]["ceilings"]["rate"] = {"float32": 2e11, "bfloat16": 2e11, "int8": 8e11}
    (tmp_path / "run.json").write_text(json.dumps(run))
    return str(tmp_path / "run.json")


def test_report_says_that_a_ceiling_is_too_low(beating, tmp_path):
    assert main(["bench", "report", beating, "-o", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert text.count("120%, beats its floor: the ceiling is measured too low<") == 1 and ">104%<" in text
    assert "200 GFLOP/s float32, bfloat16 (as float32: it has no faster instructions), 800 GFLOP/s int8" in text
    assert "it can get no faster" not in text


def test_the_terminal_says_so_too(beating):
    run = read(beating)
    live = Live(run.provenance, len(run.cases), quick=False)
    live.cases = run.cases
    lines = live.summary()
    assert "warning: 1 of 8 cases beat their floor: the ceiling is measured too low there" in lines
    at = lines.index("beats its floor: the ceiling is measured too low:")
    assert lines[at + 1] == "   120%  depthwise_conv2d: forward, batch 1: 32x112x112 3x3/1"

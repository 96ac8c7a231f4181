"""``fastnets summary``: the table, and what is said of a wrong name or size."""

from __future__ import annotations

import re

import pytest
import torch

from fastnets.cli import main
from fastnets.models import create_model


def test_every_layer_has_a_line(capsys):
    assert main(["summary", "shufflenet_v2_x0_5"]) == 0
    header, *rows, sums = capsys.readouterr().out.splitlines()
    assert header.split() == ["layer", "kind", "output", "parameters", "MMAC"]
    table = {cells[0]: cells[1:] for row in rows if (cells := re.split("  +", row))}
    assert table["conv1.0"] == ["Conv2d", "24 x 112 x 112", "648", "8.13"]
    assert table["maxpool"] == ["MaxPool2d", "24 x 56 x 56"]
    assert table["stage2.1.shuffle"] == ["ShuffleSplit", "24 x 28 x 28, 24 x 28 x 28"]
    assert table["fc"] == ["Linear", "1000", "1,025,000", "1.02"]
    with_weights = {name.rpartition(".")[0] for name, _ in create_model("shufflenet_v2_x0_5").named_parameters()}
    assert with_weights <= set(table)
    parameters = sum(int(cells[2].replace(",", "")) for cells in table.values() if len(cells) > 2)
    assert sums.startswith("shufflenet_v2_x0_5 on 224 x 224 pixels: 1,366,792 parameters, 40.48 MMAC, 10.1 MiB kept")
    assert parameters == 1_366_792


def test_columns_line_up_and_lines_have_no_tail(capsys):
    main(["summary", "resnet18"])
    lines = capsys.readouterr().out.splitlines()[:-1]
    ends = {len(line) for line in lines if re.search(r"\d\.\d\d$", line)}
    assert ends == {max(map(len, lines))} and all(line == line.rstrip() for line in lines)


def test_another_size(capsys):
    assert main(["summary", "resnet18", "--size", "64"]) == 0
    out = capsys.readouterr().out
    assert "512 x 2 x 2" in out and "resnet18 on 64 x 64 pixels: 11,689,512 parameters" in out


def test_nothing_is_drawn_or_computed(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("memory was taken for a weight")

    monkeypatch.setattr(torch.Tensor, "cpu", fail)
    before = torch.get_rng_state()
    assert main(["summary", "densenet201"]) == 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resnet_18"], "there is no model 'resnet_18'; did you mean resnet18 .*"),
        (["zzz"], "there is no model 'zzz'; .*"),
        (["scnet50", "--size", "64"], "--size: scnet50 takes 97 pixels or more, but got 64: .*"),
        (["resnet18", "--size", "1000000000"], "--size: no memory holds what resnet18 makes of 1000000000 pixels"),
        (["resnet18", "--size", "9" * 23], f"--size: no memory holds what resnet18 makes of {'9' * 23} pixels"),
    ],
)
def test_what_cannot_be_done_is_one_line(capsys, words, said):
    assert main(["summary", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(f"fastnets summary: error: {said}\n", err)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["resnet18", "resnet34"],
        *(["resnet18", "--size", size] for size in ("a", "0", "-1", "-" + "9" * 23, "9" * 5000)),
    ],
)
def test_wrong_options_are_one_line(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(["summary", *words])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"fastnets( summary)?: error: [^\n]*--help\)\n", said) and len(said) < 200

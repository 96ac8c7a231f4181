"""fastnets tune."""

from __future__ import annotations

import json

import pytest
import torch

import fastnets
from fastnets import _tuner
from fastnets._backends import BACKENDS
from fastnets.cli import main


@pytest.fixture
def path(tmp_path):
    yield str(tmp_path / "tuned.json")
    fastnets.use_tuning(None)


def tune(path, *words):
    return main(["tune", *words, "--table", path, "--device", "cpu", "--dtype", "float32"])


@pytest.mark.skipif(BACKENDS["cpu"].missing() is not None, reason="there is no choice of backends in this process")
def test_table(capsys, path, monkeypatch):
    monkeypatch.setattr(_tuner, "race", lambda calls, _: {name: 1 / (i + 1) for i, name in enumerate(calls)})
    assert tune(path, "mobilenet_v2", "--batch", "2") == 0
    out, err = capsys.readouterr()
    *lines, last = out.splitlines()
    assert err == "mobilenet_v2: 2 x 3 x 224 x 224, float32, cpu\n"
    assert last == f"{len(lines)} calls measured, {len(lines)} of them better on another backend than the first; {path}"
    assert all(line.startswith("reference  depthwise_conv2d(float32(2 ") for line in lines)
    assert all(line.endswith(": cpu 1000000.0 µs, reference 500000.0 µs") for line in lines)
    with open(path) as file:
        (section,) = json.load(file)["machines"].values()
    assert len(section["depthwise_conv2d"]) == len(lines) == 2 * 10  # ten shapes in each layout
    model = fastnets.create_model("mobilenet_v2").eval()
    fastnets.use_tuning(path)
    fastnets.backend_report(reset=True)
    with torch.inference_mode():
        model(torch.rand(2, 3, 224, 224))
    assert fastnets.backend_report()["depthwise_conv2d"]["calls"] == {"reference": 17}


@pytest.mark.skipif(BACKENDS["cpu"].missing() is not None, reason="there is no choice of backends in this process")
def test_too_little_memory(capsys, path, monkeypatch):
    monkeypatch.setattr(_tuner, "race", lambda *_: {"cpu": float("inf"), "reference": 2e-6})
    assert tune(path, "mobilenet_v2") == 0
    assert "cpu too little memory, reference 2.0 µs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mobilenet_v9"], "mobilenet_v9"),
        (["alexnet", "--table", "{path}/no/tuned.json"], "No such file or directory"),
        (["alexnet", "--device", "meat"], "--device: 'meat' is not a device"),
        (["alexnet", "--batch", "99999999"], "alexnet cannot run here"),
    ],
    ids=["network", "folder", "device", "memory"],
)
def test_errors_are_one_line(capsys, path, words, said):
    words = [word.format(path=path) for word in words]
    words = ["tune", "--table", path, "--device", "cpu", *words]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    error = err.splitlines()[-1]
    assert error.startswith("fastnets tune: error: ")
    assert said in error

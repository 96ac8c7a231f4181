"""The commands but ``classify``, and what holds for all."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import fastnets
from fastnets import _tuning
from fastnets.cli import _environment, _terminal, info, main
from fastnets.models import _registry


def test_no_command_prints_help(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(command in err for command in ("classify", "models", "summary", "info", "tune", "bench"))


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"fastnets {fastnets.__version__}\n"


def test_unknown_command_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["clasify"])
    assert stop.value.code == 2
    assert re.fullmatch(r"fastnets: error: .*'clasify'.*\n", capsys.readouterr().err)


def test_models(capsys, monkeypatch):
    few = {name: fastnets.models.model_info(name) for name in ("mobilenet_v2", "resnet18", "shufflenet_v1_g3")}
    monkeypatch.setattr(_registry, "_MODELS", few)
    assert main(["models"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "parameters", "GMAC", "MiB", "input", "state_dict", "follows"]
    rows = {name: facts for name, *facts in map(str.split, lines)}
    assert list(rows) == list(few)
    assert rows["mobilenet_v2"] == ["3.50", "M", "0.30", "75", "224", "torchvision"]
    assert rows["shufflenet_v1_g3"][-1] == "paper"


def names(capsys, *words: str) -> list[str]:
    assert main(["models", *words]) == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]


def test_models_by_pattern(capsys):
    assert names(capsys, "efficientnet*2") == ["efficientnet_lite2"]


@pytest.mark.parametrize("words", ["NET169", "densely huang 169", "1608.06993 169"], ids=["name", "paper", "link"])
def test_models_by_words(capsys, words):
    assert names(capsys, "--search", words) == ["densenet169"]


def test_models_by_pattern_and_words(capsys):
    assert names(capsys, "*152", "--search", "squeeze") == ["legacy_seresnet152", "seresnet152"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["zz*"], "'zz*'"), (["--search", "zz z"], "'zz z'"), (["r*", "--search", "zz"], "'r*' and 'zz'")],
)
def test_models_without_a_match(capsys, words, said):
    assert main(["models", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"fastnets models: error: no network matches {said}; `fastnets models` lists all\n")


def test_info(capsys, monkeypatch):
    monkeypatch.setenv("FASTNETS_CPU_CAPABILITY", "avx2")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out
    assert "FASTNETS_CPU_CAPABILITY=avx2" in out
    for backend in ("cpu", "cuda", "triton", "reference"):
        assert re.search(rf"^ *(backends)? +{backend}: .", out, re.MULTILINE)
    assert "unknown: " not in out


def test_info_names_the_gpu_kernels_that_are_unproven(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(info, "EVIDENCE", tmp_path / "evidence")
    info.EVIDENCE.write_text("triton/a: unproven\ntriton/b: A GPU: it ran\ntriton/c: unproven\ncuda/a: A GPU\n")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "GPU kernels  2 of 4 unproven: " in out and "\n             triton: a, c\n" in out and "cuda: a" not in out


def test_info_never_fails(capsys, monkeypatch):
    def fail():
        raise OSError("a line\nanother line")

    monkeypatch.setattr(info, "_gpus", fail)
    monkeypatch.setattr(info.platform, "platform", fail)
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert out.count("unknown: OSError: a line\n") == 2


WRONG = [
    ("FASTNETS_BACKEND", "bogus", " must be one of cpu, cuda, triton, reference, but is 'bogus'"),
    ("FASTNETS_TUNING", "/none.json", ": [Errno 2] No such file or directory: '/none.json'"),
    ("FASTNETS_CPU_CAPABILITY", "avx9", " must be one of default, avx2, avx512, but is 'avx9'"),
]


@pytest.fixture(params=WRONG, ids=lambda wrong: wrong[0])
def wrong_variable(request, monkeypatch):
    """The environment has this variable; returns what is said of it."""
    name, value, said = request.param
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(_tuning.current, "is_given", False)
    at_import = SimpleNamespace(get=lambda: os.environ.get("FASTNETS_BACKEND"))
    monkeypatch.setattr(_environment, "requested", at_import)
    return name + said


@pytest.mark.parametrize("words", [["models"], ["summary", "resnet18"], ["classify", "photo.png"]])
def test_a_wrong_variable_is_one_line(capsys, wrong_variable, words):
    assert main(words) == 2
    assert capsys.readouterr() == ("", f"fastnets {words[0]}: error: {wrong_variable}\n")


def test_info_tells_of_a_wrong_variable(capsys, wrong_variable):
    assert main(["info"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.endswith(f" wrong: {wrong_variable}\n")


def test_broken_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fastnets", "info"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("streams", "code", "err"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        (">&- 2>&-", 0, ""),
        (">/dev/full", 1, "fastnets info: error: [Errno 28] No space left on device\n"),
    ],
)
def test_streams_that_take_nothing(streams, code, err):
    command = f"exec '{sys.executable}' -m fastnets info {streams}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, err)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "total", "drawn"), [(Terminal, 40, True), (Terminal, 3, False), (io.StringIO, 40, False)]
)
def test_progress_is_for_people_who_wait(monkeypatch, stream, total, drawn):
    monkeypatch.setattr(sys, "stderr", stream())
    progress = _terminal.Progress(total)
    progress.draw(total // 2)
    text = sys.stderr.getvalue()
    progress.clear()
    assert bool(text) == drawn
    if drawn:
        assert text.startswith("\r\x1b[K" + 15 * "█" + 15 * "·" + " 20/40 ")
        assert sys.stderr.getvalue().endswith("\r\x1b[K")

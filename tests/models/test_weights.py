"""Checkpoints: what is accepted, and the one line that is said about each that is not."""

from __future__ import annotations

import os
import pickle
import sys
import warnings

import pytest
import torch
from torch import nn

from fastnets.models import WeightsError, create_model, load_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def other_names(state):
    return {f"layer{i}.{name.rpartition('.')[2]}": value for i, (name, value) in enumerate(state.items())}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
        lambda state: {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
        lambda state: dict(reversed(state.items())),
        other_names,
    ],
    ids=[
        "bare",
        "state_dict",
        "model",
        "model_state_dict",
        "module",
        "both",
        "no_counters",
        "half",
        "reversed",
        "other_names",
    ],
)
def test_usual_checkpoints_load(tmp_path, wrap):
    source, target = network(), network()
    for p in source.parameters():
        p.data = p.data.half().float()  # so that the half-precision checkpoint loses nothing
    source[1].running_mean.fill_(5)
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pth")
    load_weights(target, tmp_path / "weights.pth")
    assert same(source, target) and target[1].running_mean.tolist() == [5] * 4


@pytest.mark.parametrize("names", [dict, other_names])
def test_a_round_trip_loses_nothing(tmp_path, names):
    source, target = network(), network()
    source[1].num_batches_tracked.fill_(7)
    torch.save(names(source.state_dict()), tmp_path / "weights.pth")
    load_weights(target, tmp_path / "weights.pth")
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())


def test_counters_of_another_shape_are_refused(tmp_path):
    state = network().state_dict() | {"1.num_batches_tracked": torch.ones(2, dtype=torch.int64)}
    torch.save(state, tmp_path / "weights.pth")
    assert "1.num_batches_tracked ((2,) torch.int64 in the file" in refused(network(), tmp_path / "weights.pth")


def heads_of(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_children() if name.lower().startswith("aux")}


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_files_without_auxiliary_classifiers_make_networks_without(tmp_path, name):
    whole = create_model(name, num_classes=2)
    names = heads_of(whole)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    bare = {key: value for key, value in whole.state_dict().items() if key.partition(".")[0] not in names}
    torch.save(bare, tmp_path / "bare.pth")

    for options, file, heads in [({}, "whole", names), ({}, "bare", set()), ({"aux_logits": False}, "whole", set())]:
        model = create_model(name, tmp_path / f"{file}.pth", num_classes=2, **options)
        assert heads_of(model) == heads and bare.keys() <= model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in bare.items())
    assert isinstance(model(torch.zeros(2, 3, 96, 96)), torch.Tensor)  # in training

    with pytest.raises(WeightsError, match="missing: [aA]ux"):
        create_model(name, tmp_path / "bare.pth", num_classes=2, aux_logits=True)
    with pytest.raises(WeightsError, match="missing: [aA]ux"):
        load_weights(whole, tmp_path / "bare.pth")
    torch.save({f"_orig_mod.{key}": value for key, value in whole.state_dict().items()}, tmp_path / "compiled.pth")
    assert heads_of(create_model(name, tmp_path / "compiled.pth", num_classes=2)) == names


@pytest.mark.parametrize("name", ["inception_v4", "inception_resnet_v2", "nasnetamobile", "nasnetalarge"])
def test_a_class_before_imagenets_is_left_out(tmp_path, name):
    """timm and Cadene publish these with 1001 classes, of which the first means none of ImageNet's."""
    published, file = create_model(name, num_classes=1001), tmp_path / "published.pth"
    torch.save(published.state_dict(), file)
    layer = published.classifier_with_background
    theirs, ours = (m.get_submodule(layer) for m in (published, create_model(name, weights=file)))
    assert torch.equal(ours.weight, theirs.weight[1:]) and torch.equal(ours.bias, theirs.bias[1:])
    assert torch.equal(create_model(name, weights=file, num_classes=1001).get_submodule(layer).weight, theirs.weight)
    with pytest.raises(WeightsError, match=r"2 of another shape"):
        create_model(name, weights=file, num_classes=1002)


def test_one_class_more_is_refused_elsewhere(tmp_path):
    torch.save(create_model("squeezenet1_1", num_classes=1001).state_dict(), tmp_path / "more.pth")
    with pytest.raises(WeightsError, match="of another shape"):
        create_model("squeezenet1_1", weights=tmp_path / "more.pth")


def test_safetensors_load(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    source, target = network(), network()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_weights(target, str(tmp_path / "weights.safetensors"))
    assert same(source, target)
    (tmp_path / "weights.safetensors").write_bytes(b"\x00" * 30)
    assert "damaged" in refused(target, tmp_path / "weights.safetensors")


def test_safetensors_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    assert "pip install safetensors" in refused(network(), tmp_path / "weights.safetensors")


def refused(model: nn.Module, path: str | os.PathLike[str]) -> str:
    """The message that loading raises; checks that it is one line, alone, and that nothing was loaded."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(WeightsError) as error:
            load_weights(model, path)
    assert isinstance(error.value, ValueError)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


class Attack:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("save", [torch.save, None], ids=["zip", "pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, save, protocol):
    path = tmp_path / "weights.pth"
    content = {"state_dict": Attack(tmp_path / "pwned")}
    if save:
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(content, protocol))
    message = refused(network(), path)
    assert "could run code" in message or "not a checkpoint of tensors alone" in message
    assert not (tmp_path / "pwned").exists()


def test_a_whole_model_is_refused_by_name(tmp_path):
    torch.save(network(), tmp_path / "model.pth")
    assert "Sequential" in refused(network(), tmp_path / "model.pth")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncated_files(tmp_path, part, zipped):
    path = tmp_path / "weights.pth"
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    message = refused(network(), path)
    assert str(path) in message and ("is empty" if part == 0 else "checkpoint") in message


@pytest.mark.parametrize(
    "content",
    [b"hello world\n" * 20, b"\x89PNG\r\n\x1a\n" + bytes(64), b"PK\x03\x04" + bytes(64), bytes(100), b"\x80\x02."],
    ids=["text", "png", "zip", "zeros", "pickle"],
)
def test_files_of_other_kinds(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    assert "checkpoint" in refused(network(), tmp_path / "weights.pth")


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors(tmp_path):
    torch.save({"0.weight": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="quantized"):
        load_weights(network(), tmp_path / "weights.pth")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "weights.pt")
    assert "TorchScript" in refused(network(), tmp_path / "weights.pt")


def test_what_is_not_a_file(tmp_path):
    assert "does not exist" in refused(network(), tmp_path / "nowhere.pth")
    assert "directory" in refused(network(), tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(network(), tmp_path / "pipe")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "type list"),
        (torch.ones(3), "a tensor"),
        ({}, "empty dict"),
        ({"state_dict": {}}, "empty dict"),
        ({"0.weight": 1}, "'0.weight' it holds a value of type int"),
        ({1: torch.ones(1)}, "under 1"),
        ({"0.weight": torch.ones(1, device="meta")}, "on meta"),
        ({"0.weight": torch.ones(2, 2).to_sparse()}, "sparse"),
    ],
)
def test_what_holds_no_plain_tensors(tmp_path, content, said):
    torch.save(content, tmp_path / "weights.pth")
    assert said in refused(network(), tmp_path / "weights.pth")


def test_what_does_not_fit_is_listed(tmp_path):
    state = network().state_dict()
    del state["0.bias"]
    state["extra"] = torch.ones(1)
    state["2.weight"] = torch.ones(7, 4)
    state["1.weight"] = torch.ones(4, dtype=torch.int8)
    torch.save(state, tmp_path / "weights.pth")
    message = refused(network(), tmp_path / "weights.pth")
    assert "1 missing: 0.bias" in message and "1 unexpected: extra" in message
    assert "2.weight ((7, 4) in the file, (2, 4) in the network)" in message
    assert "1.weight ((4,) torch.int8 in the file" in message


def test_long_lists_are_cut(tmp_path):
    torch.save(create_model("mobilenet_v2").state_dict(), tmp_path / "weights.pth")
    message = refused(create_model("mobilenetv1_100"), tmp_path / "weights.pth")
    assert "137 missing: conv_stem.weight, bn1.weight, bn1.bias and 134 more" in message


def test_names_are_not_guessed_where_the_order_differs(tmp_path):
    source = network()
    swapped = other_names(source.state_dict())
    keys = list(swapped)
    keys[2], keys[3] = keys[3], keys[2]  # the weight and the bias of the BatchNorm: one shape, another meaning
    torch.save({key: swapped[key] for key in keys}, tmp_path / "weights.pth")
    assert "missing" in refused(network(), tmp_path / "weights.pth")
    # One name in common is enough to take names at their word.
    torch.save({**other_names(source.state_dict()), "0.weight": torch.ones(4, 3, 3, 3)}, tmp_path / "weights.pth")
    assert "missing" in refused(network(), tmp_path / "weights.pth")


def test_matched_by_order_shapes_still_count(tmp_path):
    torch.save(other_names(network().state_dict()), tmp_path / "weights.pth")
    wider = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 9))
    assert "2.weight ((2, 4) in the file, (9, 4) in the network)" in refused(wider, tmp_path / "weights.pth")

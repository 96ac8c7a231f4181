"""Checkpoints: reading them without running code, and fitting them to a network, wholly or not at all."""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


class WeightsError(ValueError):
    """Weights that cannot be had, cannot be read, or are not those of the network; one line says why."""


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copies the weights of a checkpoint into a network, after checking that all of them fit.

    The file holds a state_dict, by itself or under 'state_dict', 'model' or 'model_state_dict'; its names may
    start with 'module.', or be older ones, which ``model.current_name`` translates. Where no name at all is the
    network's, but the last words of all names (weight, bias, running_mean ...) are, in order, the tensors are
    matched in that order. Where published weights of a network have a class before ImageNet's 1000 (in the layer
    ``model.classifier_with_background``), that one is left out. No code in the file is run.

    Args:
        model: takes the weights in place; unchanged if anything is wrong.
        path: a file of ``torch.save``, or a ``.safetensors`` file (needs the package safetensors).

    Raises:
        WeightsError: the file cannot be read, or does not fit; the message lists what is missing,
            unexpected and of the wrong shape.

    Example:
        >>> import tempfile, torch
        >>> from fastnets.models import load_weights
        >>> model = torch.nn.Linear(2, 1)
        >>> with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        ...     torch.save({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, file.name)
        ...     load_weights(model, file.name)
        >>> model(torch.ones(1, 2)).item()
        2.0
    """
    path = os.fspath(path)
    copy_weights(read_weights(path), model, path)


# ---- reading ---------------------------------------------------------------------------------


def read_weights(path: str) -> State:
    """The tensors of a checkpoint under the names that they have there."""
    return _weights_of(_read(path), path)


def _read(path: str) -> Any:
    if os.path.isdir(path):
        raise WeightsError(f"{path} is a directory, not a checkpoint")
    if not os.path.isfile(path):
        raise WeightsError(f"{path} is not a regular file" if os.path.exists(path) else f"{path} does not exist")
    safe = path.endswith(".safetensors")
    read = _safetensors() if safe else _torch_load
    try:
        return read(path)
    # What a damaged file makes of the readers has no common type: EOFError, KeyError, UnicodeDecodeError and more.
    except Exception as error:
        raise WeightsError(f"{path} {_why_unreadable(path, error)}") from error


def _torch_load(path: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What is wrong with the file is said once, in the error.
        return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors() -> Callable[[str], Any]:
    if importlib.util.find_spec("safetensors") is None:
        raise WeightsError("reading .safetensors files takes a package: pip install safetensors")
    from safetensors.torch import load_file

    return load_file


def _why_unreadable(path: str, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "cannot be opened: permission denied"
    if os.path.getsize(path) == 0:
        return "is empty"
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"is refused: beside tensors it holds {found[1]}, and loading that could run code"
    if isinstance(error, UnpicklingError):
        # Not PyTorch's text, which advises to load the file without this protection.
        return "is not a checkpoint of tensors alone"
    reason = re.split(r"\. |\n", str(error))[0][:150]
    return f"is damaged, or not a checkpoint ({type(error).__name__}: {reason})"


def _weights_of(content: Any, path: str) -> State:
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds no weights: expected a dict of tensors, but got {_describe(content)}")
    for key, value in content.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise WeightsError(f"{path} is not a state_dict: under {key!r} it holds {_describe(value)}, not a tensor")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value for key, value in content.items()}


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor on {value.device} of layout {value.layout}" + (", quantized" if value.is_quantized else "")
    return (
        f"an empty {type(value).__name__}" if isinstance(value, Mapping) else f"a value of type {type(value).__name__}"
    )


# ---- fitting ---------------------------------------------------------------------------------


def copy_weights(state: State, model: nn.Module, path: str) -> None:
    """Copies the weights into the network; raises before that if they are not all there, or others are."""
    own = model.state_dict()
    current_name = getattr(model, "current_name", str)  # of a network whose names have changed
    given = {current_name(name): tensor for name, tensor in state.items()}
    unused = tuple(f"{head}." for head in getattr(model, "optional_heads", ()) if getattr(model, head) is None)
    given = {name: tensor for name, tensor in given.items() if not name.startswith(unused)}
    for part in (dict, _without_counters):
        if not own.keys() & given.keys() and [*map(_kind, part(given))] == [*map(_kind, part(own))]:
            given = dict(zip(part(own), part(given).values(), strict=True))
    given = _without_background(given, own, getattr(model, "classifier_with_background", None))
    problems = [
        _listed("missing", [key for key in _without_counters(own) if key not in given]),
        _listed("unexpected", [key for key in _without_counters(given) if key not in own]),
        _listed(
            "of another shape or type",
            [
                f"{key} ({_shape(given[key])} in the file, {_shape(own[key])} in the network)"
                for key in own
                if key in given and _shape(given[key]) != _shape(own[key])
            ],
        ),
    ]
    if any(problems):
        raise WeightsError(f"{path} does not fit {type(model).__name__}: " + "; ".join(filter(None, problems)))
    model.load_state_dict(given, strict=False)


def _without_background(given: State, own: State, layer: str | None) -> State:
    # Weights trained in TensorFlow tell ImageNet's 1000 classes from a class 0, which means none of them.
    rows = {f"{layer}.weight", f"{layer}.bias"} & given.keys() & own.keys()
    extra = {name: given[name][1:] for name in rows if len(own[name]) == 1000 and given[name].shape[:1] == (1001,)}
    return {**given, **extra}


def _without_counters(state: State) -> State:
    # How many batches BatchNorm has seen plays no part in results, and old checkpoints lack it.
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def _kind(name: str) -> str:
    # weight, bias, running_mean, running_var: what tells the tensors of a BatchNorm apart, as their shapes do not.
    return name.rpartition(".")[2]


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}"
    return f"{tuple(tensor.shape)}{kind}"


def _listed(what: str, names: list[str], shown: int = 3) -> str:
    if not names:
        return ""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {what}: {', '.join(names[:shown])}{more}"

"""The names and shapes of a network's state_dict, in a line of JSON: what the tests compare with where no library is.

``python tests/models/manifest.py NAME ...`` writes those of the library that each network follows.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn

FOLDER = Path(__file__).parent / "manifests"
NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]

Shapes = list[tuple[str, list[int]]]


def shapes(model: nn.Module) -> Shapes:
    """Names and shapes, in the order of the state_dict: some checkpoints are matched by order."""
    return [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]


def pack(entries: Shapes) -> dict[str, Any]:
    """One entry a layer: c for a BatchNorm of c channels, the shape of a weight, with 'bias' behind it if it has one."""
    packed: dict[str, Any] = {}
    for layer, group in groupby(entries, key=lambda entry: entry[0].rpartition(".")[0]):
        tensors = {name.rpartition(".")[2]: shape for name, shape in group}
        assert layer not in packed
        packed[layer] = next(short for short in _short(tensors) if _long(short) == tensors)
    return packed


def unpack(packed: dict[str, Any]) -> Shapes:
    """What ``pack`` was given."""
    return [
        (f"{layer}.{name}".lstrip("."), shape)
        for layer, short in packed.items()
        for name, shape in _long(short).items()
    ]


def _short(tensors: dict[str, list[int]]) -> list[Any]:
    weight = tensors.get("weight", [0])
    return [weight[0], weight, [*weight, "bias"], tensors]


def _long(short: Any) -> dict[str, list[int]]:
    if isinstance(short, int):
        return {name: [] if name == "num_batches_tracked" else [short] for name in NORM}
    if isinstance(short, list):
        weight = [size for size in short if size != "bias"]
        return {"weight": weight} | ({"bias": weight[:1]} if "bias" in short else {})
    return short


def load(name: str) -> Shapes:
    """The committed names and shapes of a registered network."""
    return unpack(json.loads((FOLDER / f"{name}.json").read_text()))


def main(names: list[str]) -> None:
    from peers import build_meta

    for name in names:
        entries = shapes(build_meta(name, peer=True))
        (FOLDER / f"{name}.json").write_text(json.dumps(pack(entries), separators=(",", ":")) + "\n")
        assert load(name) == entries


if __name__ == "__main__":
    main(sys.argv[1:])

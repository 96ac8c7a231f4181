"""``fastnets summary``: a network, layer by layer."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from fastnets.cli._terminal import UsageError, one_line, positive
from fastnets.models import ModelInfo, create_model, model_info
from fastnets.models.count import Layer, Size, measure

HEADER = ("layer", "kind", "output", "parameters", "MMAC")


def add_parser(commands: Any) -> None:
    """Adds the command to ``fastnets``."""
    about = "Lists the layers of a network: what they return for one photo, and what they cost."
    parser = commands.add_parser("summary", help="list the layers of a network", description=about)
    parser.add_argument("name", metavar="NAME", help="of a network, one of `fastnets models`")
    parser.add_argument(
        "--size", type=positive, metavar="PIXELS", help="height and width of the photo (default: what it is made for)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints one line for each layer, and the sums."""
    try:
        info = model_info(args.name)
    except ValueError as error:
        raise UsageError(one_line(error)) from None
    pixels = info.input_size if args.size is None else args.size
    size = _measure(info, pixels)
    rows = [HEADER, *map(_row, size.layers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:{align}{width}}" for cell, align, width in zip(row, "<<<>>", widths, strict=True)]
        print("  ".join(cells).rstrip())
    print(
        f"{info.name} on {pixels} x {pixels} pixels: {size.parameters:,} parameters, {size.macs / 1e6:,.2f} MMAC, "
        f"{size.activation_bytes / 2**20:.1f} MiB kept for the backward pass of one photo in float32"
    )
    return 0


def _measure(info: ModelInfo, pixels: int) -> Size:
    with torch.device("meta"):
        model = create_model(info.name)
    try:
        return measure(model, pixels)
    except (RuntimeError, TypeError) as error:  # too large for a tensor, or for the integers of PyTorch
        if pixels >= info.min_size:
            raise UsageError(f"--size: no memory holds what {info.name} makes of {pixels} pixels") from None
        reason = one_line(error).partition(". ")[0]
        raise UsageError(
            f"--size: {info.name} takes {info.min_size} pixels or more, but got {pixels}: {reason}"
        ) from None


def _row(layer: Layer) -> tuple[str, ...]:
    output = ", ".join(" x ".join(map(str, shape)) for shape in layer.shapes)
    macs = f"{layer.macs / 1e6:,.2f}" if layer.macs else ""
    return layer.name, layer.kind, output, f"{layer.parameters:,}" if layer.parameters else "", macs

"""``fastnets tune``: measures which backend is the fastest for the calls of networks."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import fastnets
from fastnets._tuner import Tuner
from fastnets.accelerate import accelerate
from fastnets.cli._network import DTYPES, device_named
from fastnets.cli._terminal import UsageError, note, one_line, positive
from fastnets.models import create_model, model_info


def add_parser(commands: Any) -> None:
    """Adds the command to ``fastnets``."""
    about = (
        "Measures which backend is the fastest here for each operation that networks call, and adds it to a table, "
        "which FASTNETS_TUNING=FILE or fastnets.use_tuning deploys. For other models and for training: fastnets.tune."
    )
    parser = commands.add_parser("tune", help="measure which backends are the fastest here", description=about)
    parser.add_argument("names", nargs="+", metavar="NAME", help="of a network, one of `fastnets models`")
    parser.add_argument("--table", required=True, metavar="FILE.json", help="made if it is not there, else added to")
    parser.add_argument("--device", default="cuda", help="cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="type of the arithmetic (%(default)s)")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="photos at a time (%(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints a line for each call that was measured."""
    device, dtype = device_named(args.device), DTYPES[args.dtype]
    try:
        sizes = {name: model_info(name).input_size for name in args.names}
        with fastnets.tune(args.table) as tuner:
            for name, size in sizes.items():
                note(f"{name}: {args.batch} x 3 x {size} x {size}, {args.dtype}, {device}")
                with torch.inference_mode():
                    x = torch.rand(args.batch, 3, size, size, device=device, dtype=dtype)
                    for model, layout in _ways(create_model(name).eval().to(device, dtype)):
                        model(x.contiguous(memory_format=layout))
    except (OSError, ValueError) as error:
        raise UsageError(one_line(error)) from None
    except RuntimeError as error:
        raise UsageError(f"{name} cannot run here: {one_line(error)}") from None
    _print(tuner, args.table)
    return 0


def _ways(model: nn.Module) -> Iterator[tuple[nn.Module, torch.memory_format]]:
    """The ways to run a network whose backends are chosen; on a CPU ``accelerate`` takes our kernels only."""
    yield model, torch.contiguous_format
    yield copy.deepcopy(model).to(memory_format=torch.channels_last), torch.channels_last  # type: ignore[call-overload]
    if next(model.parameters()).device.type != "cpu":
        yield accelerate(model), torch.channels_last


def _print(tuner: Tuner, path: str) -> None:
    changed = 0
    for _, op, signature, entry in tuner.measured:
        times = ", ".join(
            f"{name} {s * 1e6:.1f} µs" if s is not None else f"{name} too little memory"
            for name, s in entry["seconds"].items()
        )
        print(f"{entry['backend']:9}  {op}({signature}): {times}")
        changed += entry["backend"] != next(iter(entry["seconds"]))
    print(f"{len(tuner.measured)} calls measured, {changed} of them better on another backend than the first; {path}")

"""``fastnets models``: the networks there are."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from fastnets.cli._terminal import UsageError
from fastnets.models import create_model, list_models, model_info
from fastnets.models.count import count


def add_parser(commands: Any) -> None:
    """Adds the command to ``fastnets``."""
    parser = commands.add_parser("models", help="list the networks", description="Lists the networks.")
    parser.add_argument(
        "pattern", nargs="?", default="*", metavar="PATTERN", help="only names like this, such as 'mobilenet*'"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints one line for each network."""
    names = list_models(args.pattern)
    if not names:
        raise UsageError(f"no network is named like {args.pattern!r}; `fastnets models` lists all")
    width = max(map(len, names))
    print(f"{'name':{width}}  parameters   GMAC  input  state_dict follows")
    for name in names:
        info = model_info(name)
        with torch.device("meta"):  # sizes without values: drawing these takes a second for some
            model = create_model(name)
        parameters, macs = count(model, info.input_size)
        print(f"{name:{width}}  {parameters / 1e6:8.2f} M  {macs / 1e9:5.2f}  {info.input_size:5}  {info.names_follow}")
    return 0

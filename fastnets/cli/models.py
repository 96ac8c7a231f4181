"""``fastnets models``: the networks there are, and what they cost."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from fastnets.cli._terminal import UsageError
from fastnets.models import create_model, list_models, model_info
from fastnets.models.count import measure

ABOUT = """Lists the networks. GMAC: billions of multiply-accumulates for one photo. MiB: what training keeps in memory
for the backward pass of one photo in float32."""


def add_parser(commands: Any) -> None:
    """Adds the command to ``fastnets``."""
    parser = commands.add_parser("models", help="list the networks", description=ABOUT)
    parser.add_argument(
        "pattern", nargs="?", default="*", metavar="PATTERN", help="only names like this, such as 'mobilenet*'"
    )
    parser.add_argument(
        "--search", default="", metavar="WORDS", help="only networks with these words in their name or their paper"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints one line for each network."""
    words = args.search.lower().split()
    names = [name for name in list_models(args.pattern) if all(word in _about(name) for word in words)]
    if not names:
        wanted = " and ".join(repr(given) for given in (args.pattern, args.search) if given not in ("*", ""))
        raise UsageError(f"no network matches {wanted}; `fastnets models` lists all")
    width = max(map(len, names))
    print(f"{'name':{width}}  parameters   GMAC    MiB  input  state_dict follows")
    for name in names:
        info = model_info(name)
        with torch.device("meta"):  # sizes without values, which take a second to draw for some
            model = create_model(name)
        size = measure(model, info.input_size)
        numbers = f"{size.parameters / 1e6:8.2f} M  {size.macs / 1e9:5.2f}  {size.activation_bytes / 2**20:5.0f}"
        print(f"{name:{width}}  {numbers}  {info.input_size:5}  {info.names_follow}", flush=True)
    return 0


def _about(name: str) -> str:
    """What is searched: the name, and the words that open the network's file, with title and authors of the paper."""
    return f"{name} {sys.modules[model_info(name).build.__module__].__doc__}".lower()

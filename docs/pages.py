"""Writes what is drawn and counted on the pages of docs/models, from the networks themselves: python -m docs.pages.

What people write on a page, the idea of the family and its example, stands only there. What stands between
``<!-- paper -->``, ``<!-- figure NETWORK.MODULE:NUMBER CLOSED ... -->``, ``<!-- networks -->`` or ``<!-- families -->``
and the next ``<!-- end -->`` is written here. Of a figure, only the network must be named; NUMBER is how many of the
modules in MODULE are kept, CLOSED are the classes whose insides are not shown.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from docs.figure import draw
from fastnets.models import ModelInfo, create_model, list_models, model_info
from fastnets.models.count import count

PAGES = Path(__file__).parent / "models"
GENERATED = re.compile(r"<!-- (paper|figure|networks|families)(.*?) -->\n.*?<!-- end -->", re.DOTALL)


def families() -> dict[str, list[ModelInfo]]:
    """The networks of each module of ``fastnets.models``, by the module's name."""
    found: dict[str, list[ModelInfo]] = {}
    for info in map(model_info, list_models()):
        found.setdefault(info.build.__module__.rpartition(".")[2], []).append(info)
    return dict(sorted(found.items()))


def refresh(family: str, page: str) -> str:
    """Writes the generated parts of a page anew; the rest remains."""

    def write(part: re.Match[str]) -> str:
        kind, arguments = part.groups()
        return f"<!-- {kind}{arguments} -->\n{WRITERS[kind](family, *arguments.split())}\n<!-- end -->"

    return GENERATED.sub(write, page)


def _paper(family: str) -> str:
    """The paragraph of the module's docstring that names the papers, and the module."""
    paragraphs = (sys.modules[f"fastnets.models.{family}"].__doc__ or "").split("\n\n")
    (papers,) = (paragraph.strip() for paragraph in paragraphs if paragraph.startswith("Paper"))
    return f"{papers}\n\nModule: [`fastnets.models.{family}`](../../fastnets/models/{family}.py)"


def _figure(_: str, where: str, *closed: str) -> str:
    """A module of a network as it is called there, and what the docstrings say of the classes it shows."""
    place, _, number = where.partition(":")
    network, _, path = place.partition(".")
    model = _on_meta(network)
    module = model.get_submodule(path)
    inputs = _inputs(model, module, model_info(network).input_size)
    caption = f"From `{place}`"
    if number:
        caption += f", the first {number} modules in it"
        for name in [name for name, _ in module.named_children()][int(number) :]:
            delattr(module, name)
    shown = (*closed, type(module).__name__) if path else closed
    kinds = {type(m).__name__: _about(m) for m in module.modules() if type(m).__name__ in shown}
    words = "".join(f"\n- `{kind}`: {about}" for kind, about in kinds.items())
    return f"```mermaid\n{draw(module, inputs, closed)}\n```\n\n{caption}.\n{words}".rstrip()


def _inputs(model: nn.Module, module: nn.Module, input_size: int) -> tuple[Tensor, ...]:
    """What a module of a network is called with when the network sees a photo."""
    calls: list[tuple[Tensor, ...]] = []
    hook = module.register_forward_pre_hook(lambda _, args: calls.append(args))
    model(torch.empty(1, 3, input_size, input_size, device="meta"))
    hook.remove()
    return calls[0]


def _about(documented: object) -> str:
    """The first paragraph of its docstring."""
    return " ".join((documented.__doc__ or "").strip().split("\n\n")[0].split()).replace("``", "`")


def _on_meta(name: str) -> nn.Module:
    with torch.device("meta"):  # shapes without values
        return create_model(name).eval()


def _networks(family: str) -> str:
    """One row for each network of the family."""
    rows = [
        "| network | parameters | GMAC | pixels | names follow | weights | what it is |",
        "|---|--:|--:|--:|---|---|---|",
    ]
    for info in families()[family]:
        parameters, macs = count(_on_meta(info.name), info.input_size)
        url = info.weights_url
        weights = f"[{urlsplit(url).hostname}]({url})" if url else "none"
        numbers = f"{parameters:,} | {macs / 1e9:.2f} | {info.input_size}"
        rows.append(f"| `{info.name}` | {numbers} | {info.names_follow} | {weights} | {_about(info.build)} |")
    return "\n".join(rows)


def _families(_: str) -> str:
    """One row for each family."""
    rows = ["| page | networks |", "|---|---|"]
    for family, infos in families().items():
        title = (PAGES / f"{family}.md").read_text().splitlines()[0].removeprefix("# ")
        rows.append(f"| [{title}]({family}.md) | {', '.join(f'`{info.name}`' for info in infos)} |")
    return "\n".join(rows)


WRITERS: dict[str, Any] = {"paper": _paper, "figure": _figure, "networks": _networks, "families": _families}


if __name__ == "__main__":
    for path in sorted(PAGES.glob("*.md")):
        path.write_text(refresh(path.stem, path.read_text()))

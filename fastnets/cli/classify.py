"""``fastnets classify``: says what photos show."""

from __future__ import annotations

import argparse
import importlib.resources
import importlib.util
import json
import math
import os
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from fastnets.cli import _files
from fastnets.cli._compare import Comparison, Eager, compare, faster_eager
from fastnets.cli._network import DTYPES, Network
from fastnets.cli._terminal import Progress, UsageError, note, positive, printable

if TYPE_CHECKING:  # Pillow is needed by this command only, so it is imported when that runs
    from fastnets.cli._photos import Photo


def add_parser(commands: Any) -> None:
    """Adds the command to ``fastnets``."""
    about = "Says what photos show: the likeliest of the 1000 ImageNet classes."
    parser = commands.add_parser("classify", help="say what photos show", description=about)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="an image file")
    parser.add_argument(
        "--model", default="efficientnet_lite0", metavar="NAME", help="see `fastnets models` (%(default)s)"
    )
    parser.add_argument(
        "--weights", default="imagenet", metavar="FILE", help="of the model (the published ones, which are fetched)"
    )
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="how many classes to print (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the arithmetic (%(default)s)")
    parser.add_argument("--batch", type=positive, metavar="N", help="photos at a time (8; with --compare 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--save", metavar="FILE.png", help="draw the photos and their classes on a contact sheet")
    parser.add_argument("--compare", action="store_true", help="time the same network in eager PyTorch as well")
    parser.set_defaults(run=run)


@dataclass
class Result:
    """What was found out about one photo; nothing, where it could not be read.

    Attributes:
        photo: the photo, or what is wrong with it.
        top: the likeliest classes, each with its name and probability.
        ms: milliseconds that the network took; those of a batch are shared evenly.
        comparison: with eager PyTorch, where one was asked for.
    """

    photo: Photo
    top: list[tuple[int, str, float]] = field(default_factory=list)
    ms: float = 0.0
    comparison: Comparison | None = None

    @property
    def failed(self) -> bool:
        """Whether the photo could not be read, or eager PyTorch gives other logits."""
        return bool(self.photo.error or self.comparison and not self.comparison.agree)


def run(args: argparse.Namespace) -> int:
    """Classifies all photos that can be read; returns 1 where one failed."""
    if importlib.util.find_spec("PIL") is None:
        raise UsageError("Pillow is not installed: pip install pillow")
    from fastnets.cli import _sheet

    if args.save:
        _check_place(args.save, args.photos)
    with warnings.catch_warnings():
        # Pillow warns of damaged EXIF data, and of photos half as large as those it refuses: a good camera's.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        network = Network(args.model, args.weights, args.device, args.dtype)
        batch = min(args.batch or (1 if args.compare else 8), len(args.photos))
        eager = faster_eager(network, batch) if args.compare else None
        entries, cards, failed = [], [], False
        for result in _classify(args, batch, network, eager):
            failed |= result.failed
            if result.photo.error:
                note(f"{printable(result.photo.path)}: {result.photo.error}")
            if args.json:
                entries.append(_entry(result))
            elif not result.photo.error:
                _print(result)
            if result.photo.thumbnail and not result.photo.error:
                name = os.path.basename(result.photo.path)
                cards.append(_sheet.Card(result.photo.thumbnail, name, [(n, p) for _, n, p in result.top]))
    if args.json:
        print(json.dumps({"model": args.model, "backends": network.backends, "photos": entries}, indent=2))
    elif eager:
        _print_backends(args, network, eager)
    if cards:
        _files.write("--save", args.save, _sheet.png(cards))
    return int(failed)


def _check_place(sheet: str, photos: list[str]) -> None:
    if os.path.realpath(sheet) in map(os.path.realpath, photos):
        raise UsageError("--save names one of the photos, which it would overwrite")
    if not sheet.lower().endswith(".png"):
        raise UsageError(f"--save: {printable(sheet)} must end in .png")
    _files.check("--save", sheet)


def _classify(args: argparse.Namespace, batch: int, network: Network, eager: Eager | None) -> Iterator[Result]:
    from fastnets.cli import _photos, _sheet

    thumbnail = _sheet.THUMBNAIL if args.save else None
    photos = _photos.load_all(args.photos, network.info, thumbnail, ahead=batch + (os.cpu_count() or 1))
    progress = Progress(len(args.photos))
    done = 0
    try:
        while chunk := [Result(photo) for photo in islice(photos, batch)]:
            _fill([result for result in chunk if result.photo.pixels is not None], args.top, network, eager)
            progress.clear()
            yield from chunk
            done += len(chunk)
            progress.draw(done)
    finally:
        progress.clear()


def _fill(results: list[Result], top: int, network: Network, eager: Eager | None) -> None:
    """Classifies one batch."""
    if not results:
        return
    pixels = torch.stack([result.photo.pixels for result in results])  # type: ignore[misc]
    logits, seconds = network.logits(pixels)
    values, classes = logits.softmax(1).topk(min(top, logits.shape[1]))
    names = _class_names()
    if logits.shape[1] != len(names):
        names = [f"class {i}" for i in range(logits.shape[1])]
    for result, row, probabilities in zip(results, classes.tolist(), values.tolist(), strict=True):
        result.top = [(i, names[i], p) for i, p in zip(row, probabilities, strict=True)]
        result.ms = 1e3 * seconds / len(results)
        if not math.isfinite(sum(probabilities)):
            result.photo.error = f"{network.info.name} gives logits that are not finite"
    if eager:
        for result, comparison in zip(results, compare(eager, pixels), strict=True):
            result.comparison = comparison


@cache
def _class_names() -> list[str]:
    # In the order of the ILSVRC-2012 indices: of each WordNet synset a lemma, in most cases the first;
    # where that names several things, a later one, or the first with a word in brackets.
    return importlib.resources.files(__package__).joinpath("imagenet_classes.txt").read_text("utf-8").splitlines()


def _entry(result: Result) -> dict[str, Any]:
    """The photo in the JSON document."""
    if result.photo.error:
        return {"path": result.photo.path, "error": result.photo.error}
    top = [{"class": i, "name": name, "probability": p} for i, name, p in result.top]
    entry = {"path": result.photo.path, "top": top, "ms": result.ms}
    return entry | ({"comparison": asdict(result.comparison)} if result.comparison else {})


def _print(result: Result) -> None:
    print(printable(result.photo.path))
    for _, name, p in result.top:
        print(f"  {p:6.1%}  {name}")
    if c := result.comparison:
        agree = "agree" if c.agree else "DISAGREE"
        top = "the same top five" if c.same_top else "ANOTHER top five"
        print(f"  eager PyTorch {c.eager_ms:.2f} ms, fastnets {c.ms:.2f} ms: {c.ratio:.2f}x as fast")
        print(f"  logits {agree} (largest difference {c.difference:.1e}), {top}")
    else:
        print(f"  {result.ms:.1f} ms")
    print(flush=True)


def _print_backends(args: argparse.Namespace, network: Network, eager: Eager) -> None:
    threads = f"{torch.get_num_threads()} threads"
    print(
        f"{args.model} in {args.dtype} on {args.device}, {threads}; eager PyTorch is fastest in {eager.layout} layout"
    )
    print("What ran in one pass here:")
    print(textwrap.indent(str(network.backends), "  "))

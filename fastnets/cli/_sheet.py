"""The contact sheet: each photo with its likeliest classes as bars, drawn with Pillow."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

from PIL import Image, ImageDraw, ImageFont

from fastnets.cli._terminal import UsageError, one_line, printable

THUMBNAIL = (320, 240)
BARS = 5
GAP = 20
# A card is drawn at SCALE times its size and then reduced, which evens out the spacing of the letters.
SCALE = 3
MARGIN, TITLE, ROW, BAR = 14 * SCALE, 38 * SCALE, 33 * SCALE, 7 * SCALE
PHOTO = (THUMBNAIL[0] * SCALE, THUMBNAIL[1] * SCALE)
CARD = (PHOTO[0] + 2 * MARGIN, PHOTO[1] + 2 * MARGIN + TITLE + ROW * BARS)

PAPER, WHITE, EDGE, FRAME = "#eef1f5", "#ffffff", "#d8dee7", "#e6e9ee"
INK, PALE, TRACK, FIRST, OTHERS = "#1b2430", "#667281", "#e9edf2", "#2563c9", "#8fb3ea"

# The default font has only Latin letters. A file name may need another, where the machine has one.
FONTS = ("DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf", "NotoSansCJK-Regular.ttc")


@dataclass
class Card:
    """One photo on the sheet: its small copy, its name, and (class name, probability) from the likeliest on."""

    thumbnail: Image.Image
    name: str
    top: Sequence[tuple[str, float]]


def png(cards: Sequence[Card]) -> bytes:
    """Draws the sheet, as the content of a PNG.

    Raises:
        UsageError: it is larger than Pillow or the memory takes.
    """
    file = io.BytesIO()
    try:
        draw(cards).save(file, "PNG")
    except (OSError, MemoryError) as error:
        raise UsageError(f"--save: the sheet cannot be drawn: {one_line(error)}") from None
    return file.getvalue()


def draw(cards: Sequence[Card]) -> Image.Image:
    """Draws all cards on one sheet, as many side by side as keep it a little wider than high."""
    columns = min(len(cards), max(4, math.ceil(math.sqrt(1.5 * len(cards)))))
    rows = math.ceil(len(cards) / columns)
    across, down = CARD[0] // SCALE + GAP, CARD[1] // SCALE + GAP
    sheet = Image.new("RGB", (columns * across + GAP, rows * down + GAP), PAPER)
    for i, card in enumerate(cards):
        row, column = divmod(i, columns)
        sheet.paste(_card(card), (GAP + column * across, GAP + row * down))
    return sheet


def _card(card: Card) -> Image.Image:
    image = Image.new("RGB", CARD, WHITE)
    pen = ImageDraw.Draw(image)
    left, right, bottom = MARGIN, MARGIN + PHOTO[0], MARGIN + PHOTO[1]
    pen.rectangle((0, 0, CARD[0] - 1, CARD[1] - 1), outline=EDGE, width=SCALE)
    pen.rectangle((left, MARGIN, right - 1, bottom - 1), fill=FRAME)
    name = printable(card.name)
    font = _font(name, 16 * SCALE)
    pen.text((left, bottom + 26 * SCALE), _fit(name, font, PHOTO[0]), INK, font, anchor="ls")
    font = _fonts(14 * SCALE)[0]
    for i, (label, probability) in enumerate(card.top[:BARS]):
        ink, fill = (INK, FIRST) if i == 0 else (PALE, OTHERS)
        line = bottom + TITLE + i * ROW + 17 * SCALE
        bar = line + 5 * SCALE
        percent = f"{probability:.1%}"
        room = PHOTO[0] - font.getlength(percent) - MARGIN
        pen.text((left, line), _fit(label, font, room), ink, font, anchor="ls")
        pen.text((right, line), percent, ink, font, anchor="rs")
        pen.rectangle((left, bar, right - 1, bar + BAR - 1), fill=TRACK)
        if length := round(PHOTO[0] * probability):
            pen.rectangle((left, bar, left + length - 1, bar + BAR - 1), fill=fill)
    image = image.reduce(SCALE)
    small = card.thumbnail
    across, down = (MARGIN // SCALE + (room - side) // 2 for room, side in zip(THUMBNAIL, small.size, strict=True))
    image.paste(small, (across, down))
    return image


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or as much of its two ends as fits with an ellipsis between them."""
    if font.getlength(text) <= width:
        return text
    keep = len(text) - 1
    while keep > 1 and font.getlength(_shorten(text, keep)) > width:
        keep -= 1
    return _shorten(text, keep)


def _shorten(text: str, keep: int) -> str:
    head = (keep + 1) // 2
    return f"{text[:head]}…{text[len(text) - (keep - head) :]}"


@cache
def _fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    fonts = [cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))]  # so it is, where a size is given
    for name in FONTS:
        with contextlib.suppress(OSError):
            fonts.append(ImageFont.truetype(name, size))
    return fonts


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The first font that has all the letters of a text, or else the default one."""
    fonts = _fonts(size)
    return next((font for font in fonts if _has_all(font, text)), fonts[0])


def _has_all(font: ImageFont.FreeTypeFont, text: str) -> bool:
    # Pillow does not say which letters a font has. One it lacks looks like U+FFFF, which none has.
    lacking = bytes(font.getmask("\uffff"))
    return all(bytes(font.getmask(letter)) != lacking for letter in set(text) - {" "})

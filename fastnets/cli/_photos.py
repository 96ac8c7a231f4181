"""From files to pixels: opens photos of any kind, and prepares them for a network."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fastnets.cli._terminal import one_line
from fastnets.models import ModelInfo

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class PhotoError(Exception):
    """A photo cannot be used; the message says why."""


@dataclass
class Photo:
    """A photo as the command needs it: the network's input, or why there is none.

    Attributes:
        path: as the user gave it.
        pixels: uint8 (size, size, 3), or None where there is an error.
        thumbnail: a small copy, where one was asked for.
        error: what is wrong with the file.
    """

    path: str
    pixels: Tensor | None = None
    thumbnail: Image.Image | None = None
    error: str | None = None


def decode(path: str) -> Image.Image:
    """Reads an image file as 8-bit RGB, upright, its first frame, on white where it is transparent.

    Args:
        path: of the file.

    Returns:
        The image, in mode RGB.

    Raises:
        PhotoError: there is no such file, or it is no image that can be decoded.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise PhotoError("is a directory, not a photo")
        if not stat.S_ISREG(status.st_mode):
            raise PhotoError("is not a regular file")  # to read a pipe or a device may never end
        if status.st_size == 0:
            raise PhotoError("is an empty file")
        with Image.open(path) as image:
            return _to_rgb(_upright(image))
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError("is not an image of a known format") from None
    except Image.DecompressionBombError:
        raise PhotoError(
            f"has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, too many to decode safely"
        ) from None
    except OSError as error:
        raise PhotoError(error.strerror or f"cannot be decoded: {one_line(error)}") from None
    except Exception as error:  # noqa: BLE001 - given damaged bytes, decoders raise errors of any type
        raise PhotoError(f"cannot be decoded: {one_line(error)}") from None


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - damaged EXIF data says nothing about the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _to_8_bit(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scales to 0 ... 255, where Pillow would clip.

    White is 65535 in a 16-bit image. For 32 bits and for floats no file says what it is: taken is
    the first usual value that no pixel exceeds, or else the brightest pixel.
    """
    white = 65535.0
    if not image.mode.startswith("I;16"):
        brightest: float = image.getextrema()[1]  # type: ignore[assignment]
        white = next((value for value in (1, 255, 65535) if brightest <= value), brightest)
    # The conversion to L truncates, so a half is added to round.
    return image.convert("F").point(lambda value: value * (255 / white) + 0.5).convert("L")


def preprocess(image: Image.Image, info: ModelInfo) -> Tensor:
    """Resizes the short side to size / crop and cuts the centre out, in one pass over the source.

    Args:
        image: RGB, of any size.
        info: says which ``input_size``, ``crop`` and ``interpolation`` the network was trained for.

    Returns:
        uint8 (input_size, input_size, 3).
    """
    size, short = info.input_size, round(info.input_size / info.crop)
    box: list[tuple[float, float]] = []
    for side in image.size:
        resized = short * side // min(image.size)
        start = round((resized - size) / 2)
        box.append((start * side / resized, (start + size) * side / resized))
    # Only the part that stays is computed. The filter reads beyond the box, so but for rounding the pixels are
    # those of a resize and a crop, and an image of 1 x 5000 never becomes one of 256 x 1280000.
    (left, right), (top, bottom) = box
    cut = image.resize((size, size), RESAMPLING[info.interpolation], (left, top, right, bottom))
    return torch.frombuffer(bytearray(cut.tobytes()), dtype=torch.uint8).view(size, size, 3)


def load(path: str, info: ModelInfo, thumbnail: tuple[int, int] | None) -> Photo:
    """Decodes and prepares one photo; what is wrong with it comes back as its error.

    Args:
        path: of the file.
        info: says how to prepare it.
        thumbnail: the largest width and height of a small copy, or None for no copy.
    """
    try:
        image = decode(path)
        photo = Photo(path, pixels=preprocess(image, info))
    except PhotoError as error:
        return Photo(path, error=str(error))
    if thumbnail:
        image.thumbnail(thumbnail, Image.Resampling.LANCZOS)
        photo.thumbnail = image
    return photo


def load_all(paths: Sequence[str], info: ModelInfo, thumbnail: tuple[int, int] | None, ahead: int) -> Iterator[Photo]:
    """Loads photos in worker threads, and yields them in order.

    Args:
        paths: of the files.
        info: says how to prepare them.
        thumbnail: see ``load``.
        ahead: how many photos at most are loaded before they are asked for.
    """
    pool = ThreadPoolExecutor(min(ahead, os.cpu_count() or 1))
    pending: deque[Future[Photo]] = deque()
    try:
        for path in paths:
            pending.append(pool.submit(load, path, info, thumbnail))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

"""Every kind of file that somebody may call a photo."""

from __future__ import annotations

import os
import struct
import zlib

import pytest
import torch

Image = pytest.importorskip("PIL.Image")

from fastnets.cli import _photos
from fastnets.cli._photos import PhotoError, decode, load, load_all, preprocess
from fastnets.models import ModelInfo, model_info

INFO = model_info("efficientnet_lite0")
RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixels(image):
    data = image.tobytes()
    return list(zip(data[::3], data[1::3], data[2::3], strict=True))


def saved(tmp_path, image, name="photo.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return str(path)


def noise(width, height):
    # Of middle brightness: what a bicubic filter overshoots is not clipped.
    values = torch.randint(64, 192, (height, width, 3), generator=torch.Generator().manual_seed(0))
    return Image.frombytes("RGB", (width, height), bytes(values.flatten().tolist()))


def png(width, height, rows=b""):
    """The bytes of an RGB PNG that says it is so large, whatever pixels follow."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# ---- what can be decoded -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("LA", (0, 51), (204, 204, 204)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
    ],
)
def test_png_modes(tmp_path, mode, value, expected):
    image = decode(saved(tmp_path, Image.new(mode, (2, 3), value)))
    assert (image.mode, image.size) == ("RGB", (2, 3))
    assert pixels(image) == [expected] * 6


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (128, 0), (129, 1), (257, 1), (255, 1), (257 * 100, 100), (65535, 255)]
)
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, value, expected):
    path = saved(tmp_path, Image.new("I;16", (2, 2), value))
    with Image.open(path) as image:
        assert image.mode == "I;16"
    assert pixels(decode(path)) == [(expected,) * 3] * 4


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.0, 0.5, 1.0), (0, 128, 255)),
        ((0.0, 100.0, 255.0), (0, 100, 255)),
        ((0.0, 25700.0, 60000.0), (0, 100, 233)),
        ((0.0, 50000.0, 100000.0), (0, 128, 255)),
        ((-1.0, 0.0, 1.0), (0, 0, 255)),
    ],
)
def test_float_tiff_is_scaled(tmp_path, values, expected):
    image = Image.new("F", (3, 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    assert pixels(decode(saved(tmp_path, image, "photo.tif"))) == [(v, v, v) for v in expected]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_float_tiff_without_a_brightest_pixel(tmp_path, value):
    assert decode(saved(tmp_path, Image.new("F", (2, 2), value), "photo.tif")).size == (2, 2)


def test_thirty_two_bit_integers(tmp_path):
    image = Image.new("I", (2, 1), 0)
    image.putpixel((1, 0), 1 << 20)
    assert pixels(decode(saved(tmp_path, image, "photo.tif"))) == [(0, 0, 0), (255, 255, 255)]


def test_cmyk(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "photo.jpg", quality=100)
    assert all(r > 250 and g < 5 and b < 5 for r, g, b in pixels(decode(path)))


@pytest.mark.parametrize("transparency", [None, 1])
def test_palette(tmp_path, transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    second = (0, 0, 255) if transparency is None else WHITE
    assert pixels(decode(saved(tmp_path, image, **options))) == [RED, second]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = Image.new("L", (16, 8), 0)
    upright.paste(255, (0, 0, 8, 4))  # only the upper left quarter is white
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(saved(tmp_path, stored, exif=exif))
    assert image.convert("L").tobytes() == upright.tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_ignored(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (8, 8), RED), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert pixels(decode(path)) == [RED] * 64


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 255, 0))]
    path = saved(tmp_path, frames[0], "photo.gif", save_all=True, append_images=frames[1:])
    assert pixels(decode(path)) == [RED] * 16


# ---- what cannot ---------------------------------------------------------------------------------


def jpeg_cut_short(path):
    noise(64, 64).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-700])


BAD = {
    "missing": (lambda path: None, "No such file or directory"),
    "directory": (lambda path: path.mkdir(), "is a directory, not a photo"),
    "empty": (lambda path: path.touch(), "is an empty file"),
    "text": (lambda path: path.write_text("a cat"), "is not an image of a known format"),
    "truncated": (jpeg_cut_short, r"cannot be decoded: image file is truncated \(\d+ bytes not processed\)"),
    "bomb": (lambda path: path.write_bytes(png(50_000, 50_000)), "has more than 178956970 pixels, too many .*"),
    "pixels missing": (lambda path: path.write_bytes(png(9, 9, b"\0")), "cannot be decoded: .+"),
    "pipe": (lambda path: os.mkfifo(path), "is not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_photo_says_what_is_wrong(tmp_path, make, message):
    path = tmp_path / "photo.jpg"
    make(path)
    with pytest.raises(PhotoError, match=f"^{message}$"):
        decode(str(path))


def test_unreadable(tmp_path):
    path = saved(tmp_path, noise(4, 4))
    os.chmod(path, 0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(PhotoError, match="^Permission denied$"):
        decode(path)


def test_unreadable_for_the_decoder(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(_photos.Image, "open", refuse)
    with pytest.raises(PhotoError, match="^Permission denied$"):
        decode(saved(tmp_path, noise(4, 4)))


def test_decoder_errors_of_any_type_are_one_line(tmp_path, monkeypatch):
    def fail(path):
        raise struct.error("two\nlines")

    path = saved(tmp_path, noise(4, 4))
    monkeypatch.setattr(_photos.Image, "open", fail)
    assert load(path, INFO, None).error == "cannot be decoded: two"


# ---- preprocessing -------------------------------------------------------------------------------


def resized_then_cropped(image, info):
    """What the networks were trained with, step by step."""
    short = round(info.input_size / info.crop)
    width, height = (short * side // min(image.size) for side in image.size)
    image = image.resize((width, height), _photos.RESAMPLING[info.interpolation])
    left, top = round((width - info.input_size) / 2), round((height - info.input_size) / 2)
    return image.crop((left, top, left + info.input_size, top + info.input_size))


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (1280, 853), (256, 256), (57, 31), (1, 1), (3, 200)])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v2"])
def test_one_pass_equals_resize_then_crop(size, name):
    info = model_info(name)
    image = noise(*size)
    got = preprocess(image, info)
    expected = torch.tensor(list(resized_then_cropped(image, info).tobytes())).view(got.shape)
    assert got.shape == (info.input_size, info.input_size, 3)
    assert got.dtype == torch.uint8
    # Pillow filters one axis, rounds, and filters the other, in an order that depends on the sizes. Each order is
    # within 0.5 * 1.25 + 0.5 of the exact value, 1.25 being the largest sum of a bicubic filter's absolute weights.
    assert (got.int() - expected).abs().max() <= 2


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_extreme_aspect_ratio_needs_little_memory(size, monkeypatch):
    resize, sizes = Image.Image.resize, []
    monkeypatch.setattr(Image.Image, "resize", lambda self, to, *args: sizes.append(to) or resize(self, to, *args))
    image = Image.new("RGB", size, RED)
    assert (preprocess(image, INFO) == torch.tensor(RED, dtype=torch.uint8)).all()
    assert sizes == [(224, 224)]


def test_crop_is_the_centre():
    info = ModelInfo("two", torch.nn.Identity, "paper", 2, crop=0.5, mean=(0, 0, 0), std=(1, 1, 1))
    image = Image.new("L", (4, 4), 0)
    image.paste(200, (1, 1, 3, 3))
    assert preprocess(image.convert("RGB"), info).unique().tolist() == [200]


# ---- many ----------------------------------------------------------------------------------------


def test_photos_come_in_order_whatever_is_wrong_with_some(tmp_path):
    paths = [saved(tmp_path, noise(2 + i, 2), f"{i}.png") for i in range(9)]
    paths[4] = str(tmp_path / "none.png")
    photos = list(load_all(paths, INFO, None, ahead=3))
    assert [photo.path for photo in photos] == paths
    assert [photo.error for photo in photos if photo.pixels is None] == ["No such file or directory"]
    assert all(photo.thumbnail is None for photo in photos)


def test_no_more_than_so_many_are_loaded_ahead(monkeypatch):
    loaded = []
    monkeypatch.setattr(_photos, "load", lambda path, *args: loaded.append(path))
    photos = load_all([str(i) for i in range(100)], INFO, None, ahead=4)
    for asked_for in range(1, 4):
        next(photos)
        assert len(loaded) <= asked_for + 4
    photos.close()
    assert len(loaded) <= 7


def test_thumbnail_keeps_the_shape(tmp_path):
    photo = load(saved(tmp_path, noise(640, 160)), INFO, (32, 32))
    assert photo.thumbnail.size == (32, 8)

"""Files of all kinds that pictures come in, and of some that hold none."""

import io

import numpy as np
import pytest
from PIL import Image

ORIENTATION = 0x0112


def _waves(rows, columns):
    """With some noise, as JPEG compresses photos."""
    y, x = np.mgrid[:rows, :columns]
    smooth = np.stack([100 + 90 * np.sin(x / 9 + y / 20), 128 + 100 * np.cos(y / 7), x + y], -1)
    noise = np.random.default_rng(0).integers(0, 20, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def waves():
    """A small picture: uint8[36, 53, 3]."""
    return _waves(36, 53)


@pytest.fixture(scope="session")
def photo():
    """A larger one: uint8[90, 131, 3]."""
    return _waves(90, 131)


@pytest.fixture(scope="session")
def encode():
    """Makes the bytes of a file: `encode(pixels, "JPEG")`."""
    return _encode


def _encode(picture, kind, **options):
    file = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def picture_files(waves):
    """Name -> bytes of readable files: plain ones, and odd ones ("odd-...")."""
    rgb = Image.fromarray(waves)
    turned, upright, xmp = Image.Exif(), Image.Exif(), "<x tiff:Orientation='1'>"
    turned[ORIENTATION], upright[ORIENTATION] = 6, 1
    deep = np.tile(np.arange(53, dtype=np.uint16) * 1200, (36, 1))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.tile(np.arange(53, dtype=np.uint8) * 4, (36, 1))))
    clear = rgb.convert("P")
    clear.info["transparency"] = 3
    return {
        "plain.jpg": _encode(rgb, "JPEG"),
        "progressive.jpg": _encode(rgb, "JPEG", progressive=True, subsampling=1),
        "grey.jpg": _encode(rgb.convert("L"), "JPEG"),
        "upright.jpg": _encode(rgb, "JPEG", exif=upright),
        "plain.png": _encode(rgb, "PNG"),
        "grey.png": _encode(rgb.convert("L"), "PNG"),
        "text.png": _encode(rgb, "PNG", exif=upright),
        "odd-turned.jpg": _encode(rgb, "JPEG", exif=turned),
        "odd-turned.png": _encode(rgb, "PNG", exif=turned),
        "odd-xmp.jpg": _encode(
            rgb, "JPEG", xmp=xmp.replace("'", '"').replace('"1"', '"8"').encode()
        ),
        "odd-cmyk.jpg": _encode(rgb.convert("CMYK"), "JPEG"),
        "odd-deep.png": _encode(Image.fromarray(deep), "PNG"),
        "odd-alpha.png": _encode(alpha, "PNG"),
        "odd-palette.png": _encode(rgb.convert("P"), "PNG"),
        "odd-clear.png": _encode(clear, "PNG"),
        "odd-bits.png": _encode(rgb.convert("1"), "PNG"),
        "odd-animated.gif": _encode(
            rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)], loop=0
        ),
        "odd-animated.png": _encode(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)]),
        "odd.webp": _encode(rgb, "WEBP"),
        "odd.bmp": _encode(rgb, "BMP"),
        "odd.tif": _encode(rgb, "TIFF"),
        "odd-trailer.jpg": _encode(rgb, "JPEG") + b"camera's own",
    }


@pytest.fixture(scope="session")
def broken_files(waves):
    """Name -> bytes of files that hold no picture."""
    jpeg, png = _encode(waves, "JPEG"), _encode(waves, "PNG")
    unknown = bytearray(jpeg)
    unknown[-200:-2] = b"\xff\xb5" * 99  # a marker in the middle of the pixels
    return {
        "empty.jpg": b"",
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "header.jpg": jpeg[:300],
        "short.jpg": b"\xff\xd8\xff\xd9",
        "noise.png": png[:40] + bytes(400),
        "marker.jpg": bytes(unknown),
    }

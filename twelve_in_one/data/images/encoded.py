"""Encoded pictures that graph operations decode to exactly the pixels of `load_image`.

Most files already are: their own bytes are kept. For the others, the pixels that `load_image` reads
are encoded again without loss, so training, evaluation and prediction see the same picture for any
file; a file that it cannot read is an error that names the file.
"""

import io

import numpy as np
from PIL import Image

from twelve_in_one.data.images.load import MIN_SIDE, is_usable_size, load_bytes, orientation
from twelve_in_one.data.stored.records import Picture

_PNG = b"\x89PNG\r\n\x1a\n"
_END, _SCAN, _APP1 = b"\xff\xd9", 0xDA, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that state a picture's size
_SUPPORTED_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive
_ANNOTATIONS = (b"Exif\0", b"http://ns.adobe.com/xap/")  # which may give an orientation
_PNG_ANNOTATIONS = frozenset({b"eXIf", b"iTXt", b"zTXt", b"tEXt"})
_PNG_ODD = frozenset({b"tRNS", b"acTL"})  # transparent, animated


def picture_of(
    data: bytes, where: str, *, upright: bool = True, min_side: int = MIN_SIDE
) -> tuple[Picture, tuple[int, int]]:
    """A file's own bytes, if they decode to the pixels that `load_image` reads; else these as PNG.

    Args:
      data: a whole file.
      where: begins the error's message.
      upright: turned as its EXIF data say, or as it is stored.
      min_side: smallest side, in pixels.

    Returns:
      The picture, and its width and height in pixels.

    Raises:
      DataError: see `load_image`.
    """
    pixels = load_bytes(data, where, upright=upright, min_side=min_side)
    size = pixels.shape[1], pixels.shape[0]
    decoded = _decoded(data)
    if decoded is not None and np.array_equal(decoded, pixels):
        return Picture(data), size
    return Picture(png_of(pixels), _kind(data, decoded is not None)), size


def png_of(pixels: np.ndarray, level: int = 3) -> bytes:
    """uint8[H, W, 3] as a PNG file, compressed by `level`, 0 to 9."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=level)
    return file.getvalue()


def _decoded(data: bytes) -> np.ndarray | None:
    """The result of graph operations; None if they fail."""
    import tensorflow as tf

    from twelve_in_one.data.images import pipeline

    if not data.startswith((b"\xff\xd8\xff", _PNG)):
        return None
    try:
        return pipeline.decode(tf.constant(data)).numpy()
    except tf.errors.InvalidArgumentError:
        return None


def _kind(data: bytes, decodes: bool) -> str:
    with Image.open(io.BytesIO(data)) as picture:
        kind = f"{picture.format} of mode {picture.mode}"
    turned = decodes and not _is_upright(data)
    return f"{kind}, turned as its EXIF data say" if turned else kind


def _is_upright(data: bytes) -> bool:
    return orientation(io.BytesIO(data)) == 1


def is_plain(data: bytes, min_side: int = MIN_SIDE) -> bool:
    """Returns whether graph operations and `load_image` give the same pixels, if they give any.

    Decided from the headers, which takes microseconds: an upright JPEG of one or three colours that
    is not cut off, or an opaque PNG of eight bits, of a usable size. Other files may also qualify,
    but only decoding tells (`picture_of`).
    """
    if data.startswith(_PNG):
        return _is_plain_png(data, min_side)
    return data.startswith(b"\xff\xd8\xff") and _is_plain_jpeg(data, min_side)


def _is_plain_png(data: bytes, min_side: int) -> bool:
    # Bits and kind of colour: grey or RGB, without a palette or transparency.
    if len(data) < 33 or data[24] != 8 or data[25] not in (0, 2):
        return False
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    if not is_usable_size(width, height, min_side):
        return False
    place, chunks = len(_PNG), set()
    while data[place + 4 : place + 8] not in (b"IDAT", b""):
        chunks.add(data[place + 4 : place + 8])
        place += 12 + int.from_bytes(data[place : place + 4])
    annotated = chunks & _PNG_ANNOTATIONS or data.find(b"eXIf", place) >= 0
    return not chunks & _PNG_ODD and not (annotated and not _is_upright(data))


def _is_plain_jpeg(data: bytes, min_side: int) -> bool:
    if not data.endswith(_END):
        return False
    place, colours, annotated = 2, 0, False
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return False
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        content = data[place + 4 : place + 2 + length]
        if marker == _SCAN:
            return colours in (1, 3) and not (annotated and not _is_upright(data))
        annotated |= marker == _APP1 and content.startswith(_ANNOTATIONS)
        if marker in _FRAMES:
            if marker not in _SUPPORTED_FRAMES or len(content) < 6 or content[0] != 8:
                return False
            colours = content[5]
            height, width = int.from_bytes(content[1:3]), int.from_bytes(content[3:5])
            if not is_usable_size(width, height, min_side):
                return False
        place += 2 + length
    return False

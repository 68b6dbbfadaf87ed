"""The frames of clips: video files, or folders with a picture a frame, in the order of their names.

A clip that holds fewer frames than are wanted repeats some; one that ends early, as a file that was
cut off does, repeats its last one, and is named in the log. Of long files only the parts around the
wanted frames are decoded. PyAV decodes outside Python's lock, and so may threads do in parallel.

Letters: T frames that are wanted, N frames of the clip.
"""

import functools
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one import extras
from twelve_in_one.data.formats.files import PICTURE_SUFFIXES
from twelve_in_one.data.images.encoded import png_of
from twelve_in_one.data.images.image_set import ImageExample
from twelve_in_one.data.images.load import read_file
from twelve_in_one.data.stored.records import DataError

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".flv"})
# Frames; a longer file is not decoded from its beginning, but from before each wanted frame.
LONG = 3000
_log = logging.getLogger(__name__)


def is_clip(path: Path) -> bool:
    """Whether a path is that of a clip rather than of a picture."""
    return path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES


def pick(total: int, count: int, stride: int, rng: np.random.Generator | None) -> np.ndarray:
    """int64[T], numbers of the frames to take of N, none descending.

    Args:
      total: N, at least 1.
      count: T.
      stride: 0 takes one frame of each of T equal parts; else every stride-th frame, and the last
        one again where the clip ends.
      rng: draws the frame of each part, or the first frame; None takes the middle.
    """
    if not stride:
        within = np.full(count, 0.5) if rng is None else rng.random(count)
        return ((np.arange(count) + within) * total / count).astype(np.int64)
    free = max(total - ((count - 1) * stride + 1), 0)
    first = free // 2 if rng is None else int(rng.integers(free + 1))
    return np.minimum(first + stride * np.arange(count), total - 1)


def frames_of(
    example: ImageExample, count: int, stride: int = 0, rng: np.random.Generator | None = None
) -> tuple[bytes, ...]:
    """Encoded pictures of T frames of an example's clip; its picture T times if it has no clip.

    Args:
      example: with a picture, or a clip.
      count: T.
      stride: see `pick`.
      rng: see `pick`.

    Raises:
      DataError: the clip cannot be read, or has no frame; names it.
      ImportError: it is a video file, and PyAV is missing.
    """
    if example.clip is None:
        return (example.data,) * count
    if example.clip.is_dir():
        return _of_folder(example.clip, count, stride, rng)
    return tuple(png_of(frame, 0) for frame in _of_file(example.clip, count, stride, rng))


def still_of(example: ImageExample) -> bytes:
    """The picture of an example, or the middle frame of its clip; errors as in `frames_of`."""
    return frames_of(example, 1)[0]


def _of_folder(
    folder: Path, count: int, stride: int, rng: np.random.Generator | None
) -> tuple[bytes, ...]:
    found = sorted(
        (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES),
        key=lambda path: _by_numbers(path.name),
    )
    if not found:
        raise DataError(f"{folder}: holds no picture, so the clip has no frame: leave it out")
    _note_short(folder, len(found), count)
    return tuple(read_file(found[i]) for i in pick(len(found), count, stride, rng))


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """Sorts frame2 before frame10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _of_file(
    path: Path, count: int, stride: int, rng: np.random.Generator | None
) -> list[np.ndarray]:
    """uint8[Y, X, 3] of each frame."""
    extras.require("reading video files", "video")
    import av

    try:
        with av.open(str(path)) as file:
            if not file.streams.video:
                raise DataError(f"{path}: holds no video: leave it out")
            stream = file.streams.video[0]
            total = stream.frames
            if total < 1:
                total = sum(bool(packet.size) for packet in file.demux(stream))
                file.seek(0)
            wanted = pick(max(total, 1), count, stride, rng)
            frames = (_far if total > LONG else _near)(file, stream, wanted)
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a video: {error}; replace it") from error
    if not frames:
        raise DataError(f"{path}: none of its frames can be decoded; replace it")
    _note_short(path, total, count)
    if len(frames) < len(wanted):
        _note(path, f"ends after {len(frames)} of the {len(wanted)} frames that are wanted of it")
    return frames + frames[-1:] * (len(wanted) - len(frames))


def _near(file: Any, stream: Any, wanted: np.ndarray) -> list[np.ndarray]:
    """The wanted frames up to damage, if there is any, decoding all before them."""
    found: list[np.ndarray] = []
    for number, frame in enumerate(_decoded(file, stream)):
        again = int(np.sum(wanted == number))
        if again:
            found += [_pixels(frame)] * again
        if len(found) == len(wanted):
            break
    return found


def _far(file: Any, stream: Any, wanted: np.ndarray) -> list[np.ndarray]:
    """The same, going to the time of each, which needs a steady rate."""
    found: list[np.ndarray] = []
    for number in wanted:
        time = (stream.start_time or 0) + round(
            float(number / stream.average_rate / stream.time_base)
        )
        file.seek(time, stream=stream)
        frame = next((x for x in _decoded(file, stream) if x.pts is None or x.pts >= time), None)
        if frame is None:
            break
        found.append(_pixels(frame))
    return found


def _decoded(file: Any, stream: Any) -> Iterator[Any]:
    """Frames until the file ends or cannot be decoded any more."""
    import av

    try:
        yield from file.decode(stream)
    except av.error.FFmpegError as error:
        _note(Path(file.name), f"cannot be decoded to its end: {error}")


def _pixels(frame: Any) -> np.ndarray:
    """uint8[Y, X, 3], upright."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


def _note_short(path: Path, total: int, count: int) -> None:
    if total < count:
        _note(
            path, f"has {total} frame{'s' * (total > 1)}, of which {count} are made by repetition"
        )


@functools.lru_cache(maxsize=1 << 16)
def _note(path: Path, what: str) -> None:
    """Says so once."""
    _log.warning("%s: %s", path, what)

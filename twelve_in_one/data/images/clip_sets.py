"""Sets of clips with questions or captions, from official files in one folder with the videos.

    msrvtt_qa:FOLDER[SPLIT]          msvd_qa:FOLDER[SPLIT]
    msrvtt_captions:FOLDER[SPLIT]    msvd_captions:FOLDER[SPLIT]

SPLIT is train, val or test. Videos may be anywhere below FOLDER: files such as video7.mp4, or
folders video7/ with a picture for each frame. Their texts: `data.annotations.videos`.
"""

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from twelve_in_one.data.annotations import videos
from twelve_in_one.data.annotations.videos import VideoText, VideoTexts
from twelve_in_one.data.formats import files
from twelve_in_one.data.images.clips import VIDEO_SUFFIXES
from twelve_in_one.data.images.image_set import ImageExample, ImageSet, even_shards
from twelve_in_one.data.stored.records import DataError, Skipped, shown_reasons

_READERS: Mapping[str, Callable[[Path, str], VideoTexts]] = {
    "msrvtt_qa": videos.read_msrvtt_qa,
    "msvd_qa": videos.read_msvd_qa,
    "msrvtt_captions": videos.read_msrvtt_captions,
    "msvd_captions": videos.read_msvd_captions,
}
KINDS = tuple(_READERS)
_ORDER_SEED = 1912
_SHARD_SIZE = 1024
_log = logging.getLogger(__name__)


def open_clips(kind: str, place: str, labels: Sequence[str] | None = None) -> ImageSet:
    """Opens a split; questions about one video are consecutive, and videos in a fixed random order.

    Args:
      kind: one of `KINDS`.
      place: see above.
      labels: not used; records have texts.

    Raises:
      DataError: texts cannot be read, or none of their videos is there.
    """
    match = re.fullmatch(r"(.+)\[(\w+)\]", place)
    if not match:
        raise DataError(f"{kind}:{place}: should be {kind}:FOLDER[SPLIT]")
    folder = Path(match[1])
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    texts = _READERS[kind](folder, match[2])
    there = _videos(folder, folder.stat().st_mtime_ns)
    there = {texts.names.get(name, name): path for name, path in there.items()} | there
    groups: dict[str, list[VideoText]] = {}
    missing: dict[str, Skipped] = {}
    for record in texts.records:
        if record.video in there:
            groups.setdefault(record.video, []).append(record)
        else:
            reason = f"no video {record.video} below {folder}"
            missing[record.video] = Skipped(str(folder), record.example_id, reason)
    if not groups:
        raise DataError(
            f"{kind}:{place}: none of its {len(missing)} videos is below {folder}, as "
            f"{next(iter(missing))}.mp4 (or {', '.join(sorted(VIDEO_SUFFIXES))}) or a folder of "
            "frames of this name"
        )
    skipped = (*texts.skipped, *missing.values())
    if skipped:
        _log.warning(
            "%s:%s: %d left out (records, or videos with all theirs): %s",
            *(kind, place, len(skipped), shown_reasons(skipped)),
        )
    names = list(groups)
    order = np.random.default_rng(_ORDER_SEED).permutation(len(names))
    flat = [record for i in order for record in groups[names[i]]]
    first = np.concatenate([[0], np.cumsum([len(groups[names[i]]) for i in order])])

    def read(number: int) -> ImageExample:
        record = flat[number]
        return ImageExample(
            b"",
            record.example_id,
            question=record.question,
            texts=record.texts,
            image_id=record.video,
            clip=there[record.video],
        )

    return ImageSet(
        f"{kind}:{place}",
        even_shards(len(flat), _SHARD_SIZE),
        read,
        first_of_image=first if len(first) <= len(flat) else None,
        skipped=skipped,
        pairs=sum(len(record.texts) for record in flat),
    )


@functools.lru_cache(maxsize=8)
def _videos(folder: Path, changed: int) -> dict[str, Path]:
    """Name -> file or folder of frames; `changed` tells versions apart."""
    del changed
    found: dict[str, Path] = {}
    for path in files.walk_files(folder):
        suffix = path.suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            found[path.stem] = path
        elif suffix in files.PICTURE_SUFFIXES:
            found.setdefault(path.parent.name, path.parent)
    return found

"""All captions and all images of a split, to score every caption with every image.

Retrieval is evaluated over the full set of candidates (12-in-1 section 4.2: 5,000 captions, 1,000
images), which batches of single examples cannot express. Letters: M captions, N images, T tokens,
R regions, F feature size.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from twelve_in_one.data.encode.examples import Batch, Example, encode_images, encode_texts
from twelve_in_one.data.pipeline import TaskStream
from twelve_in_one.tasks.kinds import KINDS

_CHUNK = 64  # images encoded at a time, between two lines of progress


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """Captions and images in stored order, encoded as in the batches of their task.

    Attributes:
      captions: tokens int32[M, T] and token_mask bool[M, T].
      images: regions float[N, R, F], of the encoding's dtype; boxes float32[N, R, 5] and
        region_mask bool[N, R].
      image_of_caption: int64[M], row of the image of each caption.
      task_id: int32[].
      caption_ids: M example ids.
      image_ids: N image ids.
    """

    captions: Batch
    images: Batch
    image_of_caption: np.ndarray
    task_id: np.ndarray
    caption_ids: tuple[str, ...]
    image_ids: tuple[str, ...]


def read_retrieval_set(
    stream: TaskStream,
    *,
    max_captions: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> RetrievalSet:
    """Reads all that a stream of kind "match" evaluates, in full on every process.

    At the paper's sizes 1,000 images take 0.4 GB in float16, 5,000 take 2 GB.

    Args:
      stream: its selection and its encoding are used, not its batches.
      max_captions: stop after the image that reaches this number of captions; 0 takes all.
      progress: called with the number of images read and the total.

    Raises:
      DataError: a record cannot be used; names it.
      ValueError: the stream is of another kind of task.
    """
    selection, encoding = stream.selection, stream.encoding
    if not KINDS[encoding.task.kind].ranked:
        raise ValueError(
            f"{encoding.task.name} has no captions to rank images for: it is of kind "
            f"{encoding.task.kind!r}, which is not ranked"
        )
    counts = selection.reader.index.counts[selection.records]
    records = selection.records
    if max_captions:
        records = records[: int(np.searchsorted(np.cumsum(counts), max_captions)) + 1]
    # Filled in place: joining pieces would take twice the memory.
    images = encode_images(encoding, ())
    images = {key: np.zeros((len(records), *x.shape[1:]), x.dtype) for key, x in images.items()}
    texts: list[str] = []
    caption_ids: list[str] = []
    image_of_caption: list[int] = []
    for start in range(0, len(records), _CHUNK):
        chunk = [selection.reader.record(int(i)) for i in records[start : start + _CHUNK]]
        examples = [Example(record, record.annotations[0]) for record in chunk]
        for key, rows in encode_images(encoding, examples).items():
            images[key][start : start + len(chunk)] = rows
        for row, record in enumerate(chunk, start):
            texts += [annotation.text for annotation in record.annotations]
            caption_ids += [annotation.example_id for annotation in record.annotations]
            image_of_caption += [row] * len(record.annotations)
        if progress:
            progress(start + len(chunk), len(records))
    return RetrievalSet(
        captions=encode_texts(encoding, texts, len(texts)),
        images=images,
        image_of_caption=np.array(image_of_caption, np.int64),
        task_id=np.int32(encoding.task.task_id),
        caption_ids=tuple(caption_ids),
        image_ids=tuple(map(str, selection.reader.index.image_ids[records, 0])),
    )

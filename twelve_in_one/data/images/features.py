"""Tokens of pictures by a frozen encoder, computed once and kept on disk.

A picture's tokens depend on its bytes, the encoder and the preprocessing for evaluation, so they
are filed under hashes of these: a second run computes nothing, a new or changed picture is computed
alone, a picture in several sets is there once, and another encoder has a folder of its own. Below
the folder that the user names:

    ENCODER/encoder.json        what the hash in the folder's name stands for
    ENCODER/SHARD.npy           float16[n, L, W]
    ENCODER/SHARD.json          hashes of its n pictures; written last, it makes the shard count

Letters: L tokens, W their width, B pictures encoded at once, N pictures of a set.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one import atomic
from twelve_in_one.data.images.image_set import ImageExample, ImageSet, even_shards
from twelve_in_one.data.images.pipeline import Preprocess
from twelve_in_one.data.images.selection import ImageSelection
from twelve_in_one.data.images.sources import recipe
from twelve_in_one.data.images.stream import (
    MAX_UNREADABLE_SHARE,
    ClassLabels,
    ImageStream,
    Part,
    Unreadable,
    try_some,
)
from twelve_in_one.data.stored.records import DataError, Skipped
from twelve_in_one.models.image_encoders import (
    ImageEncoderConfig,
    image_encoder,
    pixel_range,
)

SHARD_SIZE = 256  # pictures; what a killed run has to compute again
_AT_ONCE_ON_CPU = 4
_FORMAT = 1  # changes when the same inputs give other numbers
_ENCODER = "encoder.json"
_DTYPE = np.dtype(np.float16)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """An encoder whose parameters never change.

    Attributes:
      config: its sizes, a dataclass.
      params: nested dict of arrays.
      encode: (params, float32[B, S, S, 3]) -> tokens [B, L, W]; a pure function.
      preprocess: for evaluation.
    """

    config: Any
    params: Any
    encode: Callable[[Any, jax.Array], jax.Array]
    preprocess: Preprocess

    def __post_init__(self) -> None:
        if self.preprocess.is_random:
            raise ValueError(f"stored tokens need the same picture every time: {self.preprocess}")

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What a picture's tokens depend on, beside the picture."""
        weights = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(nn.unbox(self.params)):
            array = np.ascontiguousarray(leaf)
            weights.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            weights.update(array.view(np.uint8) if array.ndim else array.tobytes())
        return {
            "format": _FORMAT,
            "model": type(self.config).__name__,
            "config": dataclasses.asdict(self.config),
            "preprocess": dataclasses.asdict(self.preprocess),
            "weights": weights.hexdigest(),
        }

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """L and W."""
        side = self.preprocess.size
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        _, tokens, width = jax.eval_shape(self.encode, self.params, images).shape
        return tokens, width


def frozen_encoder(
    config: ImageEncoderConfig, params: Any, preprocess: Preprocess | None = None
) -> FrozenEncoder:
    """A model as an encoder.

    Args:
      config: of the model.
      params: of the model.
      preprocess: of the pictures; None for the usual one in evaluation.

    Raises:
      ValueError: another kind of model, or one for pictures that are not square.
    """
    if not isinstance(config, ImageEncoderConfig):
        raise ValueError(f"no image encoder: {type(config).__name__}")
    rows, columns = config.image_size
    if rows != columns:
        raise ValueError(f"pictures are cut to squares, the model is for {rows} x {columns}")
    model = image_encoder(config)
    if preprocess is None:
        low, high = pixel_range(config)
        preprocess = dataclasses.replace(recipe(rows, training=False), low=low, high=high)
    return FrozenEncoder(
        config,
        params,
        lambda params, images: model.apply({"params": params}, images)[0],
        preprocess,
    )


@dataclasses.dataclass(frozen=True)
class ImageFeatures:
    """Random access to the tokens of a set's pictures, from any thread.

    Attributes:
      images: the set.
      shape: L and W.
      shards: memory-mapped float16[n, L, W].
      places: int64[N, 2], shard and row of each picture; -1 for unreadable ones.
      unreadable: the pictures without tokens, with reasons.
      num_computed: pictures that were not there before.
    """

    images: ImageSet
    shape: tuple[int, int]
    shards: tuple[np.ndarray, ...]
    places: np.ndarray
    unreadable: tuple[Skipped, ...]
    num_computed: int

    def has(self, number: int) -> bool:
        """Returns whether a picture has tokens."""
        return bool(self.places[number, 0] >= 0)

    def read(self, number: int) -> np.ndarray:
        """The tokens of a picture, float16[L, W], read-only.

        Raises:
          DataError: the picture was unreadable.
          IndexError: there is no such picture.
        """
        self.images.locate(number)
        shard, row = self.places[number]
        if shard < 0:
            raise DataError(f"{self.images.name}: picture {number} could not be read: no tokens")
        return self.shards[shard][row]


def open_features(
    images: ImageSet,
    encoder: FrozenEncoder,
    folder: Path,
    *,
    batch_size: int = 16,
    progress: Callable[[str, int, int], None] = lambda part, done, total: None,
    max_unreadable_share: float = MAX_UNREADABLE_SHARE,
) -> ImageFeatures:
    """The tokens of all pictures of a set; computes those that are not in the folder.

    A killed run loses what it has computed since the last shard. Several processes may share the
    folder. Unreadable pictures are named in the log, counted, and tried again by the next run.

    Args:
      images: the set.
      encoder: see `frozen_encoder`.
      folder: for the tokens of any pictures by any encoder; is made.
      batch_size: B.
      progress: takes "hash" or "encode", pictures done, and all; see `builders.report.Progress`.
      max_unreadable_share: largest share of unreadable pictures among a few that are tried; more is
        an error.

    Raises:
      DataError: most pictures cannot be read, the disk has too little space, or tokens are beyond
        the range of float16.
      OSError: the folder cannot be written.
    """
    unreadable = Unreadable()
    digests = _digests(images, unreadable, progress)
    text = json.dumps(encoder.description, indent=2, sort_keys=True)
    folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
    known = _stored(folder, encoder.shape)
    first_with = {d: i for i, d in reversed(list(enumerate(digests))) if d and d not in known}
    if first_with:
        missing = sorted(first_with.values())
        if not images.is_checked:
            try_some(images, max_unreadable_share)
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, len(missing), encoder.shape)
        atomic.write(folder / _ENCODER, text + "\n", alone=False)
        rows = _encoded(images, digests, missing, encoder, batch_size, unreadable, progress)
        for shard in _in_shards(rows):
            _write(folder, *shard)
        known = _stored(folder, encoder.shape)
    used = sorted({known[d][0] for d in digests if d in known})
    shards = tuple(np.load(path, mmap_mode="r") for path in used)
    number_of = {path: i for i, path in enumerate(used)}
    places = np.full((len(digests), 2), -1, np.int64)
    for i, digest in enumerate(digests):
        if digest in known:
            path, row = known[digest]
            places[i] = number_of[path], row
    computed = sum(digest in known for digest in first_with)
    return ImageFeatures(images, encoder.shape, shards, places, unreadable.skipped(), computed)


def _digests(
    images: ImageSet, unreadable: Unreadable, progress: Callable[[str, int, int], None]
) -> list[str]:
    """Hash of each picture's bytes, "" if they cannot be read."""
    digests = []
    for number in range(images.num_examples):
        try:
            digests.append(_digest(images.read(number).data))
        except DataError as error:
            unreadable.add(images.name, str(number), error)
            digests.append("")
        progress("hash", number + 1, images.num_examples)
    return digests


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _stored(folder: Path, shape: tuple[int, int]) -> dict[str, tuple[Path, int]]:
    """Hash of a picture -> file and row of its tokens."""
    known: dict[str, tuple[Path, int]] = {}
    for listing in sorted(folder.glob("[!.]*.json")):
        if listing.name == _ENCODER:
            continue
        path = listing.with_suffix(".npy")
        try:
            digests = json.loads(listing.read_text(encoding="utf-8"))
            tokens = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            _log.warning("%s: damaged, its pictures are encoded again: %s", path, error)
            continue
        if tokens.shape != (len(digests), *shape) or tokens.dtype != _DTYPE:
            _log.warning("%s: holds %s, its pictures are encoded again", path, tokens.shape)
            continue
        known |= {digest: (path, row) for row, digest in enumerate(digests)}
    return known


def _check_space(folder: Path, count: int, shape: tuple[int, int]) -> None:
    needed, free = count * math.prod(shape) * _DTYPE.itemsize, shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: the tokens of {count:,} pictures take {needed / 1e9:,.1f} GB, "
            f"{free / 1e9:,.1f} GB are free"
        )


def _encoded(
    images: ImageSet,
    digests: Sequence[str],
    numbers: Sequence[int],
    encoder: FrozenEncoder,
    batch_size: int,
    unreadable: Unreadable,
    progress: Callable[[str, int, int], None],
) -> Iterator[tuple[str, np.ndarray]]:
    """Hash and tokens float16[L, W] of each of the pictures `numbers` that is readable."""

    def read(place: int) -> ImageExample:
        example = images.read(numbers[place])
        if _digest(example.data) != digests[numbers[place]]:
            raise DataError(f"{images.name}: {example.example_id}: changed while it was read")
        return example

    missing = ImageSet(
        images.name,
        even_shards(len(numbers), SHARD_SIZE),
        read,
        images.labels,
        images.is_checked,
    )
    selection = ImageSelection(missing, batch_size, training=False)
    part = Part(missing, encoder.preprocess, ClassLabels())
    stream = ImageStream(selection, (part,), unreadable=unreadable)
    encode = jax.jit(functools.partial(_encode, encoder.encode))
    params = jax.device_put(encoder.params)
    for batch_number, batch in enumerate(stream.as_dataset().as_numpy_iterator()):
        start = batch_number * batch_size
        with np.errstate(over="ignore"):
            tokens = np.asarray(encode(params, batch["images"]), np.float32).astype(_DTYPE)
        for row, number in enumerate(numbers[start : start + batch_size]):
            if not batch["_mask"][row]:
                continue
            if not np.isfinite(tokens[row]).all():
                raise DataError(
                    f"{images.name}: picture {number}: tokens beyond the range of float16"
                )
            yield digests[number], tokens[row]
        progress("encode", min(start + batch_size, len(numbers)), len(numbers))


def _encode(encode: Callable[[Any, jax.Array], jax.Array], params: Any, images: jax.Array) -> Any:
    """`encode`; on a CPU a few pictures at a time, so that its caches hold what layers pass on."""
    if jax.default_backend() != "cpu":
        return encode(params, images)
    one = functools.partial(_encode_one, encode, params)
    return jax.lax.map(one, images, batch_size=min(_AT_ONCE_ON_CPU, len(images)))


def _encode_one(
    encode: Callable[[Any, jax.Array], jax.Array], params: Any, image: jax.Array
) -> jax.Array:
    return encode(params, image[None])[0]


def _in_shards(
    rows: Iterator[tuple[str, np.ndarray]],
) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    digests: list[str] = []
    tokens: list[np.ndarray] = []
    for digest, row in rows:
        digests.append(digest)
        tokens.append(row)
        if len(digests) == SHARD_SIZE:
            yield digests, tokens
            digests, tokens = [], []
    if digests:
        yield digests, tokens


def _write(folder: Path, digests: list[str], tokens: list[np.ndarray]) -> None:
    """Writes a shard; its name says its pictures, so processes at the same work write the same."""
    path = folder / f"{_digest(''.join(digests).encode())}.npy"
    with atomic.replacing(path, alone=False) as temporary:
        np.save(temporary, np.stack(tokens))
    atomic.write(path.with_suffix(".json"), json.dumps(digests), alone=False)

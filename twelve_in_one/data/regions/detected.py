"""A detector's network as a `RegionExtractor`: photos are batched and shared among devices.

Letters: B photos at once, R regions of a photo, N given boxes, F features.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from twelve_in_one.data.regions.extractor import Found, check_image, within
from twelve_in_one.data.stored.records import Regions
from twelve_in_one.models.detection.detector import Canvases, Detector
from twelve_in_one.parallel.sharding import DATA, make_mesh, replicated

# Numbers of given boxes are rounded up to multiples, so that few programs are compiled.
_BOXES_STEP = 16


class DetectorExtractor:
    """See `extractor.BatchExtractor`."""

    def __init__(
        self,
        detector: Detector,
        params: Any,
        *,
        devices: Sequence[jax.Device] | None = None,
        batch_size: int = 1,
    ):
        """Puts the parameters on the devices.

        Args:
          detector: the network's settings.
          params: its parameters.
          devices: to use; all of this process if None. Each takes a part of a batch.
          batch_size: B, rounded up to a multiple of the devices.

        Raises:
          ValueError: `batch_size` is not positive.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, is {batch_size}")
        self.detector = detector
        mesh = make_mesh(devices=jax.local_devices() if devices is None else devices)
        count = mesh.shape[DATA]
        self.batch_size = -(-batch_size // count) * count
        self._smallest_batch = count
        self._params = jax.device_put(nn.unbox(params), replicated(mesh))
        whole, parts = PartitionSpec(), PartitionSpec(DATA)

        def shared(function: Any, inputs: int) -> Any:
            # Each device works for itself: its loops may take another number of rounds.
            specs = (whole, *(parts,) * inputs)
            return jax.jit(
                jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=parts, check_vma=False)
            )

        self._detect = shared(detector.detect, 1)
        self._describe = shared(detector.describe, 2)

    @property
    def name(self) -> str:
        """See `RegionExtractor`."""
        return self.detector.name

    @property
    def feature_dim(self) -> int:
        """F."""
        return self.detector.feature_dim

    @property
    def num_regions(self) -> int:
        """R, at most."""
        return self.detector.num_regions

    def extract(self, image: np.ndarray) -> Regions:
        """See `RegionExtractor`.

        Raises:
          ValueError: not uint8[H, W, 3], too small, or of a shape that fits on no canvas.
        """
        check_image(image)
        (found,) = self._run([self.detector.preprocess(image)], self._smallest_batch)
        return found.regions

    def find(self, images: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, Found | str]]:
        """See `BatchExtractor`."""
        boxless = ((name, image, np.zeros((0, 4))) for name, image in images)
        return self._in_batches(
            boxless, lambda canvases, given: self._run(canvases, self.batch_size)
        )

    def describe_each(
        self, images: Iterable[tuple[str, np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[str, np.ndarray | str]]:
        """See `BatchExtractor`."""
        return self._in_batches(
            images, lambda canvases, given: self._run_describe(canvases, given, self.batch_size)
        )

    def _in_batches(
        self,
        images: Iterable[tuple[str, np.ndarray, np.ndarray]],
        run: Callable[[Sequence[Canvases], Sequence[np.ndarray]], Iterable[Any]],
    ) -> Iterator[tuple[str, Any]]:
        """What `run` makes of photos and their boxes, of one canvas and one number of rows each."""
        groups: dict[tuple[int, ...], list[tuple[str, Canvases, np.ndarray]]]
        groups = collections.defaultdict(list)

        def results(group: list[tuple[str, Canvases, np.ndarray]]) -> Iterator[tuple[str, Any]]:
            names, canvases, boxes = zip(*group, strict=True)
            group.clear()
            yield from zip(names, run(canvases, boxes), strict=True)

        for name, image, boxes in images:
            try:
                check_image(image)
                canvas, boxes = self.detector.preprocess(image), within(boxes, image)
            except ValueError as error:
                yield name, str(error)
                continue
            group = groups[*canvas.pixels.shape, _padded_rows(boxes)]
            group.append((name, canvas, boxes))
            if len(group) == self.batch_size:
                yield from results(group)
        for group in groups.values():
            if group:
                yield from results(group)

    def describe(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """See `RegionExtractor`. Boxes are cut at the border of the image.

        Raises:
          ValueError: as `extract`; boxes that are normalised, or one that is not finite, has its
            corners in the wrong order or is outside the image.
        """
        check_image(image)
        boxes = within(boxes, image)
        canvas = self.detector.preprocess(image)
        (features,) = self._run_describe([canvas], [boxes], self._smallest_batch)
        return features

    def _run_describe(
        self, canvases: Sequence[Canvases], boxes: Sequence[np.ndarray], size: int
    ) -> list[np.ndarray]:
        """Features of the boxes of each photo; their numbers must fit the same number of rows."""
        given = np.zeros((size, _padded_rows(boxes[0]), 4), np.float32)
        for row, corners in zip(given, boxes, strict=False):  # the rest of the batch has none
            row[: len(corners)] = corners
        described = np.asarray(self._describe(self._params, _batch(canvases, size), given))
        return [rows[: len(corners)] for rows, corners in zip(described, boxes, strict=False)]

    def _run(self, canvases: Sequence[Canvases], size: int) -> list[Found]:
        found = self._detect(self._params, _batch(canvases, size))
        found = jax.tree.map(np.asarray, found)
        return [
            self._found(jax.tree.map(lambda x, i=i: x[i], found), canvas)
            for i, canvas in enumerate(canvases)
        ]

    def _found(self, rows: Any, canvas: Canvases) -> Found:
        rows = jax.tree.map(lambda x: x[rows.valid], rows)
        height, width = map(int, canvas.photo_sizes[0])
        regions = Regions(rows.boxes, rows.features, width, height, rows.class_probs)
        names = tuple(self.detector.class_names[i] for i in rows.classes)
        return Found(regions, rows.scores, names)


def _padded_rows(boxes: np.ndarray) -> int:
    return -(-max(len(boxes), 1) // _BOXES_STEP) * _BOXES_STEP


@functools.partial(jax.jit, static_argnums=1)
def _batch(canvases: Sequence[Canvases], size: int) -> Canvases:
    """Photos on canvases of one size; the last is repeated to fill a batch."""
    filled = [*canvases, *canvases[-1:] * (size - len(canvases))]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *filled)

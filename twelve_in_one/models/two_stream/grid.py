"""A picture's own pixels for the two-stream model: a grid of cells beside regions, or alone.

An image encoder turns the picture into a map. The visual rows are the whole picture, candidate
boxes with what RoIAlign finds in the map, and cells of the map as Jiang et al. (2020) use instead
of regions; each with its location as every region has, so that one model reads all three.

Shape letters as in `config.py`, and: S pixels of a side, Y and X cells of the map, W their width,
G cells that are visual rows.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models import image_encoders
from twelve_in_one.models.detection.roi import roi_mean
from twelve_in_one.models.image_encoders import ImageEncoderConfig
from twelve_in_one.models.two_stream.config import TwoStreamConfig

Array = jax.Array
PICTURE_KEYS = ("images", "picture_size")


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """How pixels become visual rows.

    Attributes:
      encoder: the image encoder; its pictures are square.
      rows: of cells, adaptive means of the encoder's map.
      columns: of cells.
      freeze_encoder: never train the encoder.
      encoder_learning_rate: factor on the learning rate of a trained encoder.
      region_features: also read the stored features of regions; otherwise only their boxes.
      letterbox: keep the picture's proportions and fill up the square below or to the right;
        otherwise squeeze it into the square.
    """

    encoder: ImageEncoderConfig
    rows: int = 10
    columns: int = 10
    freeze_encoder: bool = False
    encoder_learning_rate: float = 1.0
    region_features: bool = False
    letterbox: bool = False

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1:
            raise ValueError(f"a grid of {self.rows} x {self.columns} cells has none")
        rows, columns = self.encoder.image_size
        if rows != columns:
            raise ValueError(f"encoder.image_size {(rows, columns)}: pictures are square here")

    @property
    def side(self) -> int:
        """S."""
        return self.encoder.image_size[0]

    @property
    def num_cells(self) -> int:
        """G."""
        return self.rows * self.columns

    @property
    def picture(self) -> dict[str, Any]:
        """How pictures are made for the encoder: fields of `data.encode.pictures.PictureInput`."""
        low, high = image_encoders.pixel_range(self.encoder)
        return dict(size=self.side, low=low, high=high, letterbox=self.letterbox)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridTwoStreamConfig(TwoStreamConfig):
    """The two-stream model with a grid.

    Attributes:
      grid: how pixels become visual rows; `region_feature_dim` is 0 if it reads no stored features.
    """

    grid: GridConfig


class GridRows(NamedTuple):
    """What the map shows.

    Attributes:
      regions: [B, R, W], the mean of the picture, then of each box.
      cells: [B, G, W], row by row.
      boxes: float32[B, G, 5], locations of the cells.
      mask: bool[B, G], False for cells beside the picture.
    """

    regions: Array
    cells: Array
    boxes: Array
    mask: Array


def feature_map(config: ImageEncoderConfig, tokens: Array) -> Array:
    """[B, Y, X, W] of the tokens [B, L, W] of an encoder, without those of no place."""
    rows, columns = config.grid
    count, length, width = tokens.shape
    return tokens[:, length - rows * columns :].reshape(count, rows, columns, width)


def grid_rows(config: GridConfig, features: Array, sizes: Array, boxes: Array) -> GridRows:
    """What a map shows in the whole picture, in boxes and in cells.

    Args:
      config: of the grid.
      features: [B, Y, X, W], the map.
      sizes: int32[B, 2], rows and columns of the S x S pixels that are of the picture; they begin
        at the first.
      boxes: float32[B, R, 5], locations of the regions; the first is the whole picture.
    """
    side, lengths = config.side, features.shape[1:3]
    means, weights = [], []
    for axis, (length, number) in enumerate(
        zip(lengths, (config.rows, config.columns), strict=True)
    ):
        shows = jnp.arange(length)[None] * side < sizes[:, axis, None] * length  # [B, length]
        means.append(_shares(shows[:, None])[:, 0])
        weights.append(_shares(jnp.asarray(_bins(length, number))[None] & shows[:, None]))
    dtype = features.dtype
    exact = dict(preferred_element_type=jnp.float32)
    whole = jnp.einsum("by,bx,byxw->bw", *means, features, **exact)
    cells = jnp.einsum("bgy,bhx,byxw->bghw", *weights, features, **exact)
    # Rows and columns of the map that show some of the picture.
    shown = -(-sizes * jnp.array(lengths)[None] // side)
    scale = (sizes * jnp.array(lengths)[None])[:, ::-1].astype(jnp.float32) / side
    corners = boxes[..., :4].astype(jnp.float32) * jnp.tile(scale, (1, 2))[:, None]
    found = jax.vmap(lambda x, size, box: roi_mean(x, size, 1.0, box))(features, shown, corners)
    first = (jnp.arange(boxes.shape[1]) == 0)[None, :, None]
    return GridRows(
        jnp.where(first, whole[:, None], found).astype(dtype),
        cells.reshape(features.shape[0], config.num_cells, features.shape[3]).astype(dtype),
        *cell_places(config, sizes),
    )


def cell_places(config: GridConfig, sizes: Array) -> tuple[Array, Array]:
    """Locations float32[B, G, 5] and mask bool[B, G] of the cells, see `GridRows`.

    Locations are shares of the picture, cut at its edges.
    """
    edges, masks = [], []
    for axis, number in enumerate((config.rows, config.columns)):
        size = sizes[:, axis, None]
        steps = jnp.arange(number + 1)[None] * config.side
        edges.append(jnp.minimum(steps / (size * number), 1.0).astype(jnp.float32))
        masks.append(steps[:, :-1] < size * number)
    rows, columns = edges
    shape = (sizes.shape[0], config.rows, config.columns)
    top, bottom = (jnp.broadcast_to(x[:, :, None], shape) for x in (rows[:, :-1], rows[:, 1:]))
    left, right = (jnp.broadcast_to(x[:, None], shape) for x in (columns[:, :-1], columns[:, 1:]))
    area = (right - left) * (bottom - top)
    boxes = jnp.stack([left, top, right, bottom, area], axis=-1)
    mask = masks[0][:, :, None] & masks[1][:, None]
    flat = (sizes.shape[0], config.num_cells)
    return boxes.reshape(*flat, 5), mask.reshape(flat)


def _bins(length: int, number: int) -> np.ndarray:
    """bool[number, length], the cells of a map that each of `number` adaptive means is of."""
    place, cell = np.arange(number)[:, None], np.arange(length)[None]
    return (cell >= place * length // number) & (cell < -(-(place + 1) * length // number))


def _shares(members: Array) -> Array:
    """float32 weights of equal shares along the last axis; zeros where there is no member."""
    members = members.astype(jnp.float32)
    return members / jnp.maximum(jnp.sum(members, axis=-1, keepdims=True), 1.0)

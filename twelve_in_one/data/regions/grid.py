"""Grids of features in a folder of PyTorch files, one per image, as grid-feats-vqa writes them.

`ID.pth` holds one tensor, [C, rows, columns] or with an axis of one image before it. Each cell is a
region; its box is a share of the picture, whose size such files do not say.
"""

from pathlib import Path

import numpy as np

from twelve_in_one.data.formats import torch_file
from twelve_in_one.data.regions.store import (
    FilesStore,
    file_names,
    image_key,
    make_regions,
    unique_places,
)
from twelve_in_one.data.stored.records import DataError, Regions

GRID_SUFFIXES = (".pth", ".pt")
_MAX_CELLS = 10_000


class GridStore(FilesStore):
    """See the module. The id is the file's stem, after `image_key`.

    Images with two files are `damaged`.

    Args:
      path: the folder.

    Raises:
      DataError: no folder.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        grids = (name for name in file_names(path) if name.endswith(GRID_SUFFIXES))
        self._files, self.damaged = unique_places(
            self.name, ((image_key(Path(name).stem), name) for name in grids)
        )

    def get(self, image_id: str) -> Regions:
        path = self.path_of(image_id)
        where = f"{path}: image {image_id!r}"
        try:
            content = torch_file.load(path)
        except (ValueError, OSError) as error:
            raise DataError(f"{where}: {error}") from error
        if not isinstance(content, torch_file.Tensor):
            raise DataError(f"{where}: must hold one tensor, holds a {type(content).__name__}")
        shape = content.shape[1:] if content.shape[:1] == (1,) else content.shape
        if len(shape) != 3 or not 0 < shape[1] * shape[2] <= _MAX_CELLS:
            raise DataError(
                f"{where}: a tensor of {content.shape}, which is no grid [channels, rows, columns]"
            )
        cells = content.read().reshape(shape)
        return grid_regions(cells, where)


def grid_regions(cells: np.ndarray, where: str) -> Regions:
    """Regions of a grid real[C, rows, columns], row by row; their boxes are shares of the picture.

    Raises:
      DataError: not numbers.
    """
    channels, rows, columns = cells.shape
    y, x = np.divmod(np.arange(rows * columns), columns)
    corners = (x / columns, y / rows, (x + 1) / columns, (y + 1) / rows)
    features = cells.reshape(channels, -1).T
    return make_regions(where, boxes=np.stack(corners, 1), features=features, width=0, height=0)

"""Regions of an image as the released reader returns them: the global region first."""

import numpy as np

from twelve_in_one.data.stored.records import Regions

_WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0, 1.0)


def region_rows(regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Features and locations of an image's regions, preceded by those of the whole image.

    The arithmetic is the released reader's, in float32 step by step, so results agree to the
    last bit; `tasks.metrics.boxes.box_location` rounds once, at the end.

    Args:
      regions: N regions with features of size F.

    Returns:
      float32[N + 1, F], row 0 the mean of the others (zeros if N is 0), and
      float32[N + 1, 5], x1 / width, y1 / height, x2 / width, y2 / height and the share of the
      image's area, row 0 being 0, 0, 1, 1, 1.

    Raises:
      ValueError: there are boxes, but the image has no width or height.
    """
    features = regions.features.astype(np.float32, copy=False)
    boxes = regions.boxes.astype(np.float32, copy=False)
    count = len(features)
    mean = features.sum(axis=0, keepdims=True) / np.float32(max(count, 1))
    locations = np.empty((count + 1, 5), np.float32)
    locations[0] = _WHOLE_IMAGE
    if count:
        if regions.width <= 0 or regions.height <= 0:
            raise ValueError(f"regions of an image of {regions.width} x {regions.height} pixels")
        width, height = np.float32(regions.width), np.float32(regions.height)
        x1, y1, x2, y2 = boxes.T
        area = np.float32(float(regions.width) * float(regions.height))
        locations[1:] = np.stack(
            [x1 / width, y1 / height, x2 / width, y2 / height, (y2 - y1) * (x2 - x1) / area], axis=1
        )
    return np.concatenate([mean, features]), locations

"""Where a picture lies that was resized into a square; without libraries of pictures."""

import numpy as np


def covered(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Columns and rows of a square canvas that a picture of this width and height covers.

    As `ops.letterbox` resizes it: in float32, halves to the even pixel.
    """
    factor = np.float32(side) / np.float32(max(size))
    return tuple(max(int(np.rint(np.float32(x) * factor)), 1) for x in size)

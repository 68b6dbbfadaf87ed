"""Features of boxes without a network: shape, colour and texture of the foreground of each box.

Each box is cut out with a margin and resampled to a small square. The margin's colours describe the
surroundings; each pixel's difference from them gives a soft mask, within which colours
and textures are summed up. Letters: N boxes; F features; S side of a resampled box, with its margin
if so stated, in pixels; A axes of colour; G groups of a histogram.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

_INNER, _MARGIN = 24, 4  # pixels of a resampled box, and of the margin on each of its sides
_SIDE = _INNER + 2 * _MARGIN
_MASK_CELLS, _COLOUR_CELLS, _EDGE_CELLS = 8, 3, 3
_HUES, _LIGHTS, _DIRECTIONS = 12, 6, 6
# Boxes are resampled from the image, or from the image halved until they have at most this side.
_MAX_CROP = 128

_SRGB = np.arange(256) / 255
_LINEAR = np.where(_SRGB > 0.04045, ((_SRGB + 0.055) / 1.055) ** 2.4, _SRGB / 12.92)
_LINEAR = _LINEAR.astype(np.float32)
# Linear sRGB to XYZ (IEC 61966-2-1), each divided by that of the white point D65.
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_XYZ = (_XYZ / _XYZ.sum(1, keepdims=True)).astype(np.float32)

# Size, mean and standard deviation of each group of features, in order.
# Measured over all features of a group, on the boxes proposed for 300 generated pictures (11 each)
# and for 32 COCO photos (95 each), and rounded.
_GROUPS: dict[str, tuple[int, float, float]] = {
    "mask": (_MASK_CELLS**2, 0.4, 0.43),
    "fill": (1, 0.4, 0.3),
    "lightness": (_COLOUR_CELLS**2, 48.0, 19.0),
    "chroma": (2 * _COLOUR_CELLS**2, 6.0, 18.0),
    "mean_lightness": (1, 44.0, 16.0),
    "mean_chroma": (2, 8.0, 20.0),
    "deviation": (3, 11.0, 6.8),
    "contrast": (3, -1.0, 25.0),
    "spread": (3, 8.7, 8.4),
    "hues": (_HUES, 0.11, 0.19),
    "lights": (_LIGHTS, 0.31, 0.26),
    "edges": (_DIRECTIONS * _EDGE_CELLS**2, 1.0, 0.65),
    "inside": (_DIRECTIONS, 0.6, 0.6),
    "interior": (1, -2.4, 1.3),
    "size": (2, -1.7, 0.6),
    "aspect": (1, 0.1, 0.6),
}
FEATURE_DIM = sum(size for size, _, _ in _GROUPS.values())


def lab_from_rgb(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of sRGB: float32[..., 3] of uint8[..., 3], L* in -16..100.

    The cube root is used throughout, even near black, where the standard replaces it by a line.
    """
    x, y, z = np.moveaxis(np.cbrt(_LINEAR.take(rgb) @ _XYZ.T), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def describe_boxes(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Features of boxes.

    Args:
      image: uint8[H, W, 3].
      boxes: float32[N, 4], corners in pixels (inclusive), within the image.

    Returns:
      float32[N, FEATURE_DIM], each about zero mean and unit variance.
    """
    if not len(boxes):
        return np.zeros((0, FEATURE_DIM), np.float32)
    groups = _groups(image, boxes)
    scaled = [(groups[name] - mean) / deviation for name, (_, mean, deviation) in _GROUPS.items()]
    return np.concatenate(scaled, axis=1, dtype=np.float32)


def _groups(image: np.ndarray, boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Features before scaling, by name in `_GROUPS`: float32[N, size of the group]."""
    lab = lab_from_rgb(_crops(image, boxes))
    surroundings, spread = _margin_colours(lab)
    lab = lab[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    difference = (lab - surroundings[:, None, None]) / spread[:, None, None]
    mask = np.clip((np.sqrt(np.einsum("nija,nija->nij", difference, difference)) - 2) / 3, 0, 1)
    height, width = image.shape[:2]
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    colours = _pool(lab, _COLOUR_CELLS)
    return {
        "mask": _pool(mask[..., None], _MASK_CELLS).reshape(len(boxes), -1),
        "fill": mask.mean((1, 2))[:, None],
        "lightness": colours[..., 0],
        "chroma": colours[..., 1:].reshape(len(boxes), -1),
        "spread": spread,
        **_colours(lab, mask, surroundings),
        **_textures(lab, mask),
        "size": np.log(sides / (width, height)),
        "aspect": np.log(sides[:, :1] / sides[:, 1:]),
    }


def _crops(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """uint8[N, S, S, 3]: boxes with their margins, the image's edge pixels continued outwards."""
    starts = boxes[:, :2].astype(np.float64)
    sides = boxes[:, 2:] - starts + 1
    margins = sides * (_MARGIN / _INNER)
    corners = np.concatenate([starts - margins, starts + sides + margins], axis=1)
    halvings = np.ceil(np.log2(np.maximum(sides.max(1) / _MAX_CROP, 1))).astype(int)
    pad = _MAX_CROP * _MARGIN // _INNER + 2
    crops = np.empty((len(boxes), _SIDE, _SIDE, 3), np.uint8)
    for level in np.unique(halvings):
        smaller = np.asarray(Image.fromarray(image).reduce(2 ** int(level)))
        padded = Image.fromarray(np.pad(smaller, ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
        for n in np.flatnonzero(halvings == level):
            box = tuple(corners[n] / 2**level + pad)
            crops[n] = padded.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box)
    return crops


def _margin_colours(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Typical colour of the margins, and how far their pixels are from it: float32[N, A] each."""
    width = _MARGIN - 1  # the innermost line may show the box's own blurred edge
    strips = (lab[:, :width], lab[:, -width:], lab[:, :, :width], lab[:, :, -width:])
    margin = np.concatenate([strip.reshape(len(lab), -1, 3) for strip in strips], axis=1)
    typical = np.median(margin, axis=1)
    spread = 1.5 * np.median(np.abs(margin - typical[:, None]), axis=1)
    return typical, spread + np.array((3, 2, 2), np.float32)


def _pool(values: np.ndarray, cells: int) -> np.ndarray:
    """Means over a grid of cells: [N, cells * cells, A] of [N, S, S, A]."""
    count, side, _, axes = values.shape
    step = side // cells
    pooled = values.reshape(count, cells, step, cells, step, axes).mean((2, 4))
    return pooled.reshape(count, cells * cells, axes)


def _histogram(
    values: np.ndarray, weights: np.ndarray, group: np.ndarray, num_groups: int, bins: int
) -> np.ndarray:
    """Sums of weights by bin, shared between the two nearest bins of a circle: float32[G, bins].

    Args:
      values: float[...], 0..1 is once around.
      weights: float[...].
      group: int[...], which histogram each value belongs to.
    """
    position = values * bins
    lower = np.floor(position)
    share = position - lower
    first = lower.astype(np.int64) % bins
    total = np.zeros(num_groups * bins)
    for index, weight in ((first, 1 - share), ((first + 1) % bins, share)):
        weight = (weight * weights).ravel()
        total += np.bincount((group * bins + index).ravel(), weight, minlength=len(total))
    return total.reshape(num_groups, bins).astype(np.float32)


def _colours(lab: np.ndarray, mask: np.ndarray, surroundings: np.ndarray) -> dict[str, np.ndarray]:
    """Colours in the mask, and their difference from the margin's."""
    weight = mask + 0.01  # a box that shows only its surroundings is described by them
    weight = weight / weight.sum((1, 2), keepdims=True)
    mean = np.einsum("nij,nija->na", weight, lab)
    deviation = lab - mean[:, None, None]
    variance = np.einsum("nij,nija,nija->na", weight, deviation, deviation)
    lightness, a, b = np.moveaxis(lab, -1, 0)
    hue = np.arctan2(b, a) / (2 * np.pi)
    # Bins of lightness cover half a circle, so the darkest and the lightest do not meet.
    light = np.clip(lightness / 100, 0, 1) * (_LIGHTS - 1) / (2 * _LIGHTS)
    vivid = np.minimum(np.hypot(a, b) / 40, 1)
    row = np.broadcast_to(np.arange(len(lab))[:, None, None], mask.shape)
    hues = _histogram(hue, weight * vivid, row, len(lab), _HUES)
    lights = _histogram(light, weight, row, len(lab), 2 * _LIGHTS)[:, :_LIGHTS]
    return {
        "mean_lightness": mean[:, :1],
        "mean_chroma": mean[:, 1:],
        "deviation": np.sqrt(variance),
        "contrast": mean - surroundings,
        "hues": np.sqrt(hues),
        "lights": np.sqrt(lights),
    }


def _textures(lab: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Directions of edges by cell, and of the edges well inside the mask."""
    count = len(lab)
    down, across = np.gradient(lab, axis=(1, 2))
    strength = np.sqrt(down**2 + across**2)
    # The axis of colour that changes most: red and green may be equally light.
    axis = strength.argmax(-1)[..., None]
    down, across, strength = (
        np.take_along_axis(values, axis, axis=-1)[..., 0] for values in (down, across, strength)
    )
    direction = np.arctan2(down, across) / np.pi
    row = np.arange(count)[:, None, None]
    cell = np.arange(_INNER) * _EDGE_CELLS // _INNER
    cell = cell[:, None] * _EDGE_CELLS + cell
    cells = _EDGE_CELLS**2
    edges = _histogram(direction, strength, row * cells + cell, count * cells, _DIRECTIONS)
    interior = ndimage.minimum_filter(mask, size=(1, 5, 5), mode="constant")
    amount = interior.sum((1, 2))
    inside = _histogram(
        direction, interior * strength, np.broadcast_to(row, mask.shape), count, _DIRECTIONS
    )
    return {
        "edges": np.sqrt(edges.reshape(count, -1) * (cells / _INNER**2)),
        "inside": np.sqrt(inside / (amount[:, None] + 4)),
        "interior": np.log(amount[:, None] / _INNER**2 + 0.02),
    }

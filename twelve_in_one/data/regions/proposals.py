"""Boxes that may hold an object, from pixels alone: no network, nothing learnt.

An image is cut into small patches of even colour, and neighbours are merged, most similar first,
until none touches another; every patch that existed for a time is a candidate (in the spirit of
selective search, Uijlings et al. 2013). If an image shows things on an even ground, the ground
is found first and only areas that differ from it are cut up: a candidate is then better, the more
of its outline borders the ground. Letters: H, W size of an image; N boxes; P patches, M = 2 P at
most, patches and their mergers; E pairs of patches that touch.
"""

import dataclasses
import heapq
import math

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.sparse import coo_matrix, csgraph

from twelve_in_one.data.regions.descriptor import lab_from_rgb

# Candidates are sought in a copy of at most this many pixels per side.
_WORKING_SIDE = 320
_MAX_OVERLAP = 0.7  # IoU above which the worse of two candidates is dropped
_MAX_CANDIDATES = 600  # that are compared with each other
_MIN_SIDE = 0.05  # of the longer side of the image
_MIN_AREA = 0.002  # of the image
# Ground: the image is seen as this many cells along its longer side; distances in L*a*b*.
_CELLS = 20
_SAME_GROUND = 8.0  # difference of neighbouring cells that show one ground
_GROUND_SHARE = 0.06  # smallest share of all cells that a ground covers
_TEXTURE_FLOOR = np.array((2.0, 1.5, 1.5), np.float32)
_STANDS_OUT = 9.0  # times the ground's texture
# From this share of the image on, small size does not make a thing less likely.
_FULL_AREA = 0.015
_MIN_SCORE = 0.4


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """Patches and their mergers.

    Attributes:
      boxes: int[M, 4], first column and row, last column and row.
      area: float[M], pixels.
      outer: float[M], share of the outline beyond which there is no patch.
      absorbed: float[M], cost of the merger that ended it; infinite if there was none.
    """

    boxes: np.ndarray
    area: np.ndarray
    outer: np.ndarray
    absorbed: np.ndarray


def propose(image: np.ndarray, count: int, *, cluttered: bool = False) -> np.ndarray:
    """The best candidates, best first.

    Args:
      image: uint8[H, W, 3].
      count: how many at most.
      cluttered: look everywhere, as in a photo, not only for things on a ground.

    Returns:
      float32[N, 4], 1 <= N <= count: corners in pixels (inclusive), 0 <= x1 < x2 <= W - 1 and so
      for y. For cluttered images, and those that show nothing, tiles of ever finer grids fill the
      rest of `count`.
    """
    height, width = image.shape[:2]
    factor = max(1.0, max(height, width) / _WORKING_SIDE)
    if factor > 1:
        size = max(round(width / factor), 2), max(round(height / factor), 2)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    lab = lab_from_rgb(image)
    boxes, scores = (np.zeros((0, 4)), np.zeros(0)) if cluttered else _things_on_ground(lab)
    if not len(boxes):
        boxes, scores = _everything(lab)
    boxes = boxes[_suppressed(boxes, scores, count)]
    if cluttered or not len(boxes):
        boxes = np.concatenate([boxes, _grid(*lab.shape[:2], count - len(boxes))])
    ends = np.array((width / lab.shape[1], height / lab.shape[0]) * 2)
    boxes = (boxes + (0, 0, 1, 1)) * ends - (0, 0, 1, 1)
    return boxes.astype(np.float32)


def _things_on_ground(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes int[N, 4] of areas that differ from the ground, and scores float[N] in 0..1."""
    height, width = lab.shape[:2]
    distance = _ground_distance(ndimage.gaussian_filter(lab, (0.7, 0.7, 0), truncate=2.5))
    mask = _without_lines(distance > _STANDS_OUT)
    if not mask.any():
        return np.zeros((0, 4), np.int64), np.zeros(0)
    found = _merge(*_patches(_smooth_within(lab, mask, 2.0), mask))
    sides = found.boxes[:, 2:] - found.boxes[:, :2] + 1
    size = np.minimum(found.area / (_FULL_AREA * height * width), 1)
    squareness = sides.min(1) / sides.max(1)
    score = np.sqrt(found.outer * size * squareness)
    good = _large_enough(found, height, width) & (score > _MIN_SCORE)
    return found.boxes[good], score[good]


def _without_lines(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask that belong to a two-by-two square within it."""
    squares = mask[1:, 1:] & mask[1:, :-1] & mask[:-1, 1:] & mask[:-1, :-1]
    left = np.zeros_like(mask)
    for rows in (np.s_[1:], np.s_[:-1]):
        for columns in (np.s_[1:], np.s_[:-1]):
            left[rows, columns] |= squares
    return left


def _everything(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes int[N, 4] of all candidates, and scores float[N]: large and unlike their neighbours."""
    height, width = lab.shape[:2]
    smooth = ndimage.gaussian_filter(lab, (1, 1, 0), truncate=2.5)
    found = _merge(*_patches(smooth, np.ones((height, width), bool)))
    good = _large_enough(found, height, width) & np.isfinite(found.absorbed)
    return found.boxes[good], found.absorbed[good]


def _ground_distance(lab: np.ndarray) -> np.ndarray:
    """How much each pixel differs from the nearest ground, in units of its texture: float32[H, W].

    A ground is a group of even cells connected through similar neighbours that covers a good
    part of the image; its colour may change slowly from place to place. Without one, all are zero.
    """
    height, width = lab.shape[:2]
    side = max(max(height, width) // _CELLS, 1)
    rows, columns = height // side, width // side
    if not rows or not columns:
        return np.zeros((height, width), np.float32)
    blocks = lab[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
    colour, square = (np.einsum("iyjxa->ija", x) / side**2 for x in (blocks, blocks * blocks))
    texture = np.sqrt(np.maximum(square - colour**2, 0)).sum(-1)
    even = texture <= 1.5 * np.median(texture) + 2
    group = _linked(colour, even)
    share = np.bincount(group[even], minlength=1) / even.size
    grounds = [(group == i) & even for i in np.flatnonzero(share >= _GROUND_SHARE)]
    if not grounds:
        return np.zeros((height, width), np.float32)
    away = np.stack([ndimage.distance_transform_edt(~ground) for ground in grounds])
    # A thing is compared with the ground around it: distant ground may resemble it by chance.
    about = away <= away.min(0) + 1
    row = np.minimum(np.arange(height) // side, rows - 1)
    column = np.minimum(np.arange(width) // side, columns - 1)
    nearest = np.full((height, width), np.inf, np.float32)
    for ground, compared in zip(grounds, about, strict=True):
        local = _smooth_within(colour, ground, 2.0)
        near = ndimage.gaussian_filter(ground.astype(np.float32), 2.0)[..., None] > 0.02
        local = np.where(near, local, np.median(colour[ground], axis=0))
        difference = lab - local.astype(np.float32).take(row, 0).take(column, 1)
        texture = difference[ground.take(row, 0).take(column, 1)][::4]
        spread = 1.48 * np.median(np.abs(texture), axis=0)
        difference /= np.maximum(spread, _TEXTURE_FLOOR)
        distance = np.sqrt(np.einsum("yxa,yxa->yx", difference, difference))
        np.minimum(nearest, distance, out=nearest, where=compared.take(row, 0).take(column, 1))
    return nearest


def _linked(colour: np.ndarray, even: np.ndarray) -> np.ndarray:
    """Group number of each cell: int[rows, columns]. Similar, even neighbours share one."""
    index = np.arange(even.size).reshape(even.shape)
    starts, ends = [], []
    for a, b in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        alike = ((colour[a] - colour[b]) ** 2).sum(-1) < _SAME_GROUND**2
        alike &= even[a] & even[b]
        starts.append(index[a][alike])
        ends.append(index[b][alike])
    start, end = np.concatenate(starts), np.concatenate(ends)
    links = coo_matrix((np.ones(len(start)), (start, end)), shape=(even.size, even.size))
    return csgraph.connected_components(links, directed=False)[1].reshape(even.shape)


def _smooth_within(values: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """`values`, float32[H, W, 3], blurred among the pixels of `mask` only."""
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma, truncate=3.0)[..., None]
    inside = np.where(mask[..., None], values, np.float32(0))
    blurred = ndimage.gaussian_filter(inside, (sigma, sigma, 0), truncate=3.0)
    return blurred / (weight + np.float32(1e-3))


def _patches(lab: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Watershed of the steps of colour: int32[H, W], 1..P within the mask, 0 outside; and `lab`."""
    steps = np.zeros(mask.shape, np.float32)
    for a, b in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        step = lab[a] - lab[b]
        step = np.sqrt(np.einsum("yxa,yxa->yx", step, step)) * (mask[a] & mask[b])
        np.maximum(steps[a], step, out=steps[a])
        np.maximum(steps[b], step, out=steps[b])
    # Steps below one unit of L*a*b* cannot be seen: one flat patch, not many.
    levels = np.where(mask, np.clip(4 * steps, 4, 254), 255).astype(np.uint8)
    lowest = (levels == ndimage.minimum_filter(levels, 3)) & mask
    markers, _ = ndimage.label(lowest, np.ones((3, 3)))
    markers = np.where(mask, markers, -1).astype(np.int32)
    return np.maximum(ndimage.watershed_ift(levels, markers), 0), lab


def _merge(labels: np.ndarray, lab: np.ndarray) -> _Candidates:
    """Merges neighbouring patches, starting with those that differ least for their size.

    Args:
      labels: int32[H, W], 1..P, 0 where there is no patch.
      lab: float32[H, W, 3].
    """
    count = int(labels.max())
    flat = labels.ravel()
    pixels = np.bincount(flat, minlength=count + 1)[1:]
    colours = [
        np.bincount(flat, lab[..., axis].ravel(), minlength=count + 1)[1:] / pixels
        for axis in range(3)
    ]
    first, second, length = _borders(labels)
    # Plain lists from here on: the loop accesses single numbers, for which arrays are slow.
    area = pixels.astype(float).tolist()
    colour = list(zip(*(values.tolist() for values in colours), strict=True))
    boxes = [(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in ndimage.find_objects(labels)]
    outline, outer = [0] * count, [0] * count
    neighbours: list[dict[int, int]] = [{} for _ in range(count)]
    for i, j, pairs in zip(first.tolist(), second.tolist(), length.tolist(), strict=True):
        outline[j] += pairs
        if i < 0:
            outer[j] += pairs
        else:
            outline[i] += pairs
            neighbours[i][j] = neighbours[j][i] = pairs

    def cost(i: int, j: int) -> float:
        # Between single linkage, which chains, and Ward's criterion, which avoids large patches.
        smaller = area[i] * area[j] / (area[i] + area[j])
        return (math.dist(colour[i], colour[j]) + 3) * smaller**0.3

    queue = [(cost(i, j), i, j) for i in range(count) for j in neighbours[i] if i < j]
    heapq.heapify(queue)
    formed, absorbed = [0.0] * count, [math.inf] * count
    while queue:
        value, i, j = heapq.heappop(queue)
        if absorbed[i] < math.inf or absorbed[j] < math.inf:
            continue
        absorbed[i] = absorbed[j] = value = max(value, formed[i], formed[j])
        new, total = len(area), area[i] + area[j]
        p, q = area[i] / total, area[j] / total
        (l1, a1, b1), (l2, a2, b2) = colour[i], colour[j]
        colour.append((p * l1 + q * l2, p * a1 + q * a2, p * b1 + q * b2))
        a, b = boxes[i], boxes[j]
        boxes.append((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
        area.append(total)
        outline.append(outline[i] + outline[j] - 2 * neighbours[i][j])
        outer.append(outer[i] + outer[j])
        formed.append(value)
        absorbed.append(math.inf)
        around = dict(neighbours[i])
        for other, pairs in neighbours[j].items():
            around[other] = around.get(other, 0) + pairs
        del around[i], around[j]
        neighbours.append(around)
        for other, pairs in around.items():
            theirs = neighbours[other]
            theirs.pop(i, None)
            theirs.pop(j, None)
            theirs[new] = pairs
            heapq.heappush(queue, (cost(other, new), other, new))
    return _Candidates(
        boxes=np.array(boxes, np.int64).reshape(-1, 4),
        area=np.array(area),
        outer=np.array(outer) / np.array(outline),
        absorbed=np.array(absorbed),
    )


def _borders(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of patches that touch: int[E] (-1: no patch), int[E], and touching pixels int[E]."""
    padded = np.pad(labels, 1)
    base = int(labels.max()) + 1
    codes = []
    for a, b in ((padded[:, :-1], padded[:, 1:]), (padded[:-1], padded[1:])):
        differ = a != b
        a, b = a[differ].astype(np.int64), b[differ]
        codes.append(np.minimum(a, b) * base + np.maximum(a, b))
    pairs, length = np.unique(np.concatenate(codes), return_counts=True)
    return pairs // base - 1, pairs % base - 1, length


def _large_enough(found: _Candidates, height: int, width: int) -> np.ndarray:
    """bool[M], which candidates have the least size, which is never below two pixels."""
    sides = (found.boxes[:, 2:] - found.boxes[:, :2] + 1).min(1)
    least = max(_MIN_SIDE * max(height, width), 2)
    return (sides >= least) & (found.area >= _MIN_AREA * height * width)


def _suppressed(boxes: np.ndarray, scores: np.ndarray, count: int) -> list[int]:
    """Indices of the best boxes, best first, without those that overlap a better one much."""
    order = np.argsort(-scores, kind="stable")[:_MAX_CANDIDATES]
    low, high = boxes[order, :2], boxes[order, 2:] + 1
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    shared = np.maximum(shared, 0).prod(-1)
    area = (high - low).prod(-1)
    close = shared > _MAX_OVERLAP * (area[:, None] + area - shared)
    kept: list[int] = []
    for i in range(len(order)):
        if len(kept) < count and not close[i, kept].any():
            kept.append(i)
    return order[kept].tolist()


def _grid(height: int, width: int, count: int) -> np.ndarray:
    """The first `count` tiles of the whole image, of its quarters, of its ninths, ...: int[N, 4].

    Fewer if tiles would become narrower than two pixels.
    """
    tiles: list[tuple[int, int, int, int]] = []
    for cells in range(1, min(height, width) // 2 + 1):
        if len(tiles) >= count:
            break
        y, x = (np.linspace(0, side, cells + 1).astype(int).tolist() for side in (height, width))
        tiles += [
            (x[i], y[j], x[i + 1] - 1, y[j + 1] - 1) for j in range(cells) for i in range(cells)
        ]
    return np.array(tiles[:count], np.int64).reshape(-1, 4)

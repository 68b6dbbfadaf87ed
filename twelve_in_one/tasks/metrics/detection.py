"""Average precision of boxes by COCO's program, and by LVIS's federated protocol.

Detections of a class are matched with true boxes, best first, at ten thresholds of the overlap from
0.5 to 0.95; precision is then averaged over 101 recalls, and over classes that have a true box.

COCO: every class counts in every picture, 100 detections of a class and picture. LVIS (`Truth` with
`absent`): a picture's annotations are complete for the classes that it shows and for those that it
is known not to show; detections of others do not count. 300 detections of a picture, of all classes
together. For classes in `not_exhaustive` a detection without a match is no mistake.

Letters: I pictures, C classes, D detections and G true boxes of a class in a picture, T thresholds,
R recalls.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS: Mapping[str, tuple[float, float]] = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
COCO_DETECTIONS, LVIS_DETECTIONS = 100, 300
FREQUENCIES = ("r", "c", "f")


@dataclasses.dataclass(frozen=True)
class Truth:
    """The true boxes of a picture.

    Attributes:
      boxes: float64[G, 4], corners in pixels.
      classes: int[G].
      areas: float64[G], by which small and large ones are told apart.
      crowd: bool[G], regions of many: whatever is found in one does not count (COCO).
      absent: classes that the picture is known not to show; None if all others are (COCO).
      not_exhaustive: classes of which not all are annotated.
    """

    boxes: np.ndarray
    classes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    absent: np.ndarray | None = None
    not_exhaustive: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))


class Detections(NamedTuple):
    """Boxes float64[D, 4], corners; scores float64[D]; classes int[D] of a picture."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


class Matches(NamedTuple):
    """Detections of a class in a picture, best first.

    Attributes:
      scores: float64[D].
      right: bool[T, D].
      ignored: bool[T, D], which do not count at all.
      number: true boxes that count.
    """

    scores: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    number: int


def overlaps(boxes: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """float64[D, G], intersection over union, and over the detection's own area for a crowd."""
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    own, others = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (boxes, truth))
    union = np.where(crowd[None], own[:, None], own[:, None] + others[None] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match(
    overlap: np.ndarray,
    scores: np.ndarray,
    outside: np.ndarray,
    ignored: np.ndarray,
    crowd: np.ndarray,
) -> Matches:
    """Matches detections with true boxes, as the official programs do.

    Args:
      overlap: float64[D, G], rows best first.
      scores: float64[D].
      outside: bool[D], which do not count unless they match one that does.
      ignored: bool[G], which do not count.
      crowd: bool[G], which may be matched several times.
    """
    order = np.argsort(ignored, kind="stable")
    overlap, ignored, crowd = overlap[:, order], ignored[order], crowd[order]
    detections, truths = overlap.shape
    right = np.zeros((len(THRESHOLDS), detections), bool)
    left_out = np.zeros_like(right)
    for number, threshold in enumerate(THRESHOLDS):
        taken = np.zeros(truths, bool)
        for row in range(detections):
            best, found = min(threshold, 1 - 1e-10), -1
            for column in range(truths):
                if taken[column] and not crowd[column]:
                    continue
                if found >= 0 and not ignored[found] and ignored[column]:
                    break  # those that count come first
                if overlap[row, column] >= best:
                    best, found = overlap[row, column], column
            if found >= 0:
                taken[found] = True
                left_out[number, row] = ignored[found]
                right[number, row] = not ignored[found]
            else:
                left_out[number, row] = outside[row]
    return Matches(scores, right, left_out, int(np.sum(~ignored)))


class Evaluation:
    """Detections matched with the truth, for measures over all pictures or over some."""

    def __init__(
        self,
        truth: Sequence[Truth],
        detections: Sequence[Detections],
        num_classes: int,
        *,
        most: int | None = None,
        areas: Sequence[str] = ("all",),
    ):
        """Matches everything.

        Args:
          truth: of I pictures.
          detections: of the same.
          num_classes: C.
          most: detections that count, of a class and picture, or of a picture in LVIS's protocol;
            None for the program's own number.
          areas: keys of `AREAS`.

        Raises:
          ValueError: other numbers of pictures, or a class that does not exist.
        """
        if len(truth) != len(detections):
            raise ValueError(f"{len(truth)} pictures with truth, {len(detections)} with detections")
        for place, one in enumerate((*truth, *detections)):
            if len(one.classes) and not 0 <= one.classes.min() <= one.classes.max() < num_classes:
                raise ValueError(f"picture {place % len(truth)}: a class beyond {num_classes}")
        self.num_classes, self.num_pictures = num_classes, len(truth)
        # area -> class -> picture -> matches
        self.found: dict[str, list[dict[int, Matches]]] = {
            area: [{} for _ in range(num_classes)] for area in areas
        }
        for picture, pair in enumerate(zip(truth, detections, strict=True)):
            self._add(picture, *pair, most)

    def _add(self, picture: int, truth: Truth, found: Detections, most: int | None) -> None:
        federated = truth.absent is not None
        boxes, scores, classes = found
        order = np.argsort(-scores, kind="stable")
        if federated:
            order = order[: most or LVIS_DETECTIONS]
            known = np.union1d(truth.classes, truth.absent)
            order = order[np.isin(classes[order], known)]
        for number in np.union1d(classes[order], truth.classes).astype(int):
            own, true = order[classes[order] == number], truth.classes == number
            if not federated:
                own = own[: most or COCO_DETECTIONS]
            crowd = truth.crowd[true]
            overlap = overlaps(boxes[own], truth.boxes[true], crowd)
            sizes = np.prod(boxes[own][:, 2:] - boxes[own][:, :2], axis=1)
            incomplete = number in truth.not_exhaustive
            for area, by_class in self.found.items():
                low, high = AREAS[area]
                ignored = crowd | (truth.areas[true] < low) | (truth.areas[true] > high)
                outside = (sizes < low) | (sizes > high) | incomplete
                by_class[number][picture] = match(overlap, scores[own], outside, ignored, crowd)

    def precision(
        self, area: str = "all", pictures: np.ndarray | None = None, most: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Precision float64[T, R, C] and highest recall float64[T, C]; -1 for classes without it.

        Args:
          area: one that was matched.
          pictures: places of the pictures that count, perhaps several times; None for all.
          most: detections of a class and picture that count.
        """
        times = np.ones(self.num_pictures, int)
        if pictures is not None:
            times = np.bincount(pictures, minlength=self.num_pictures)
        curves = np.full((len(THRESHOLDS), len(RECALLS), self.num_classes), -1.0)
        recalls = np.full((len(THRESHOLDS), self.num_classes), -1.0)
        for number, by_picture in enumerate(self.found[area]):
            parts = [one for place, one in by_picture.items() for _ in range(times[place])]
            total = sum(one.number for one in parts)
            if not total:
                continue
            scores = np.concatenate([one.scores[:most] for one in parts])
            order = np.argsort(-scores, kind="stable")
            right, ignored = (
                np.concatenate([x[:, :most] for x in column], axis=1)[:, order]
                for column in zip(*((one.right, one.ignored) for one in parts), strict=True)
            )
            hits = np.cumsum(right, axis=1, dtype=float)
            misses = np.cumsum(~right & ~ignored, axis=1, dtype=float)
            for t, (hit, miss) in enumerate(zip(hits, misses, strict=True)):
                recall = hit / total
                precision = hit / (hit + miss + np.spacing(1))
                recalls[t, number] = recall[-1] if len(recall) else 0.0
                precision = np.maximum.accumulate(precision[::-1])[::-1]
                places = np.searchsorted(recall, RECALLS, side="left")
                reached = places < len(precision)
                curves[t, :, number] = 0.0
                curves[t, reached, number] = precision[places[reached]]
        return curves, recalls


def mean(values: np.ndarray) -> float:
    """The mean of what is defined, -1 if nothing is."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else -1.0


def average_precision(
    evaluation: Evaluation, frequencies: Sequence[str] = (), pictures: np.ndarray | None = None
) -> dict[str, float]:
    """Measures "AP", "AP50", "AP75", and "AP_r", "AP_c", "AP_f" of classes by their frequency.

    Args:
      evaluation: of a split.
      frequencies: "r", "c" or "f" of each class; () if they have none.
      pictures: see `Evaluation.precision`.
    """
    curves, _ = evaluation.precision(pictures=pictures)
    found = {"AP": mean(curves), "AP50": mean(curves[0]), "AP75": mean(curves[5])}
    for name in FREQUENCIES if frequencies else ():
        found[f"AP_{name}"] = mean(curves[..., np.array(tuple(frequencies)) == name])
    return found


def coco_summary(truth: Sequence[Truth], found: Sequence[Detections], classes: int) -> dict:
    """The twelve figures of COCO's program."""
    evaluation = Evaluation(truth, found, classes, areas=tuple(AREAS))
    curves, recalls = evaluation.precision()
    figures = {"AP": mean(curves), "AP50": mean(curves[0]), "AP75": mean(curves[5])}
    of_area = {area: evaluation.precision(area) for area in AREAS}
    figures |= {f"AP_{area}": mean(of_area[area][0]) for area in AREAS if area != "all"}
    figures |= {f"AR_{n}": mean(evaluation.precision(most=n)[1]) for n in (1, 10)}
    figures["AR_100"] = mean(recalls)
    return figures | {f"AR_{area}": mean(of_area[area][1]) for area in AREAS if area != "all"}


def bootstrap(
    evaluation: Evaluation, frequencies: Sequence[str], draws: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of `average_precision` over pictures drawn with replacement."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        pictures = rng.integers(0, evaluation.num_pictures, evaluation.num_pictures)
        found.append(average_precision(evaluation, frequencies, pictures))
    return {
        name: tuple(map(float, np.quantile([one[name] for one in found], (0.025, 0.975))))
        for name in found[0]
    }


def recall_of(boxes: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[int, int]:
    """How many true boxes [G, 4] some box [N, 4] overlaps by a threshold, and G."""
    if not len(truth):
        return 0, 0
    found = overlaps(boxes, truth, np.zeros(len(truth), bool))
    return int(np.sum(np.max(found, axis=0, initial=0.0) >= threshold)), len(truth)

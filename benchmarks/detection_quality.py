"""How good the boxes and features of a detector are, on photos with annotations of COCO.

    python benchmarks/detection_quality.py --detector small --photos coco/images coco/instances.json
    python benchmarks/detection_quality.py --detector pixels --photos IMAGES ANNOTATIONS

AP and AP50 by the official program (pip install pycocotools), for detectors of COCO's 80 classes;
recall of annotated boxes (without crowds) by any box; and, with --probe, the accuracy of a ridge
classifier of annotated objects from 32 x 32 pixels on by their features alone, over four folds of
photos, the mean of five divisions.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.convert import detectors
from twelve_in_one.data.images.load import load_image
from twelve_in_one.data.regions.extractor import BatchExtractor, Found, PixelExtractor
from twelve_in_one.models.detection.small import COCO_CLASSES
from twelve_in_one.tasks.metrics.boxes import corners_from_xywh, iou_matrix

_RIDGE = 1.0
_LEAST_AREA = 32**2
_FOLDS, _DIVISIONS = 4, 5


def read_annotations(pairs: list[list[Path]]) -> tuple[dict[int, Path], dict[str, Any]]:
    """File of each annotated photo by its id, and one COCO dataset of all files."""
    whole: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    files: dict[int, Path] = {}
    for folder, annotations in pairs:
        part = json.loads(annotations.read_text())
        annotated = {entry["image_id"] for entry in part["annotations"]}
        whole["annotations"] += part["annotations"]
        whole["categories"] = part["categories"]
        for image in part["images"]:
            if image["id"] in annotated:
                whole["images"].append(image)
                files[image["id"]] = folder / image["file_name"]
    return files, whole


def find(extractor: Any, files: dict[int, Path]) -> Iterator[tuple[int, Found]]:
    """What is in every photo."""
    images = ((str(number), load_image(path)) for number, path in files.items())
    if isinstance(extractor, BatchExtractor):
        for name, found in extractor.find(images):
            if isinstance(found, str):
                raise ValueError(f"photo {name}: {found}")
            yield int(name), found
        return
    for name, image in images:
        regions = extractor.extract(image)
        yield int(name), Found(regions, np.zeros(len(regions.boxes)), ("",) * len(regions.boxes))


def official_ap(whole: dict[str, Any], found: dict[int, Found]) -> tuple[float, float]:
    """AP and AP50 of COCO's own program."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = {entry["name"]: entry["id"] for entry in whole["categories"]}
    rows = [
        {
            "image_id": number,
            "category_id": ids[name],
            "score": float(score),
            "bbox": [*map(float, box[:2]), *map(float, box[2:] - box[:2])],
        }
        for number, one in found.items()
        for box, score, name in zip(one.regions.boxes, one.scores, one.names, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = whole
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def objects(whole: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Annotated objects of each photo, without crowds."""
    found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in whole["images"]}
    for entry in whole["annotations"]:
        if not entry.get("iscrowd"):
            found[entry["image_id"]].append(entry)
    return found


def recalls(whole: dict[str, Any], found: dict[int, Found], least: float) -> float:
    """Share of annotated boxes that some box overlaps by at least so much."""
    best = []
    for number, entries in objects(whole).items():
        if entries:
            boxes = corners_from_xywh(np.array([entry["bbox"] for entry in entries], np.float32))
            best += iou_matrix(boxes, found[number].regions.boxes).max(axis=1).tolist()
    return float(np.mean(np.array(best) >= least))


def probe(extractor: Any, files: dict[int, Path], whole: dict[str, Any]) -> tuple[float, int]:
    """Accuracy of a ridge classifier on features of annotated boxes, and the number of objects."""
    features, labels, photos = [], [], []
    for number, entries in objects(whole).items():
        entries = [entry for entry in entries if entry["area"] >= _LEAST_AREA]
        if entries:
            boxes = corners_from_xywh(np.array([entry["bbox"] for entry in entries], np.float32))
            features.append(extractor.describe(load_image(files[number]), boxes))
            labels += [entry["category_id"] for entry in entries]
            photos += [number] * len(entries)
    x, y, photo = np.concatenate(features).astype(np.float64), np.array(labels), np.array(photos)
    right = 0
    for seed in range(_DIVISIONS):
        order = np.random.default_rng(seed).permutation(np.unique(photo))
        for held_out in np.array_split(order, _FOLDS):
            test = np.isin(photo, held_out)
            mean, spread = x[~test].mean(0), x[~test].std(0) + 1e-3
            z = np.concatenate([(x - mean) / spread, np.ones((len(x), 1))], axis=1)
            classes = np.unique(y[~test])
            products = z[~test] @ z[~test].T + _RIDGE * x.shape[1] * np.eye((~test).sum())
            weights = z[~test].T @ np.linalg.solve(products, y[~test, None] == classes)
            right += (classes[(z[test] @ weights).argmax(1)] == y[test]).sum()
    return right / (_DIVISIONS * len(y)), len(y)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detector", required=True, help=detectors.HELP)
    parser.add_argument(
        "--photos",
        nargs=2,
        type=Path,
        action="append",
        required=True,
        metavar=("FOLDER", "JSON"),
        help="a folder of photos and its instances; may be repeated",
    )
    parser.add_argument("--num_regions", type=int, default=100, help="of pixels; default 100")
    parser.add_argument("--probe", action="store_true", help="also classify by the features")
    args = parser.parse_args()
    if args.detector == detectors.PIXELS:
        extractor: Any = PixelExtractor(args.num_regions, cluttered=True)
    else:
        extractor = detectors.open_detector(args.detector)
    files, whole = read_annotations(args.photos)
    found = dict(find(extractor, files))
    count = sum(map(len, objects(whole).values()))
    boxes = np.mean([len(one.regions.boxes) for one in found.values()])
    print(f"{extractor.name}: {len(files)} photos, {count} objects, {boxes:.1f} boxes a photo")
    names = {name for one in found.values() for name in one.names}
    if names <= set(COCO_CLASSES):
        ap, ap50 = official_ap(whole, found)
        print(f"AP {ap:.3f}, AP50 {ap50:.3f}")
    for least in (0.5, 0.7):
        print(f"recall of annotated boxes at IoU {least}: {recalls(whole, found, least):.3f}")
    if args.probe:
        accuracy, number = probe(extractor, files, whole)
        print(f"ridge classifier of {number} objects: {accuracy:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

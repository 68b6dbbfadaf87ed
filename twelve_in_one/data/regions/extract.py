"""Finds regions in a folder of images, by a detector or by rules about pixels, for training.

    python -m twelve_in_one.data.regions.extract --images photos --out regions --detector small
    python -m twelve_in_one.data.regions.extract --images photos --out regions \
        --detector x152:detectron_model.pth --batch_size 8 --picture drawn

The folder that it fills is read as records:regions, and knows the detector that filled it. --boxes
BOXES.json, {"photo": [[x1, y1, x2, y2], ...]} in pixels of upright photos, describes these boxes
instead, for `data.build --annotated_features records:OUT` (which makes such a store by itself if it
is given the detector). Run the command again to resume it, to add images, or to try those that
could not be read. A detector uses all devices of the machine, "pixels" has --jobs processes.
"""

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twelve_in_one.config.paths import local_path
from twelve_in_one.convert import detectors
from twelve_in_one.data.formats.files import read_json, shorten
from twelve_in_one.data.images.load import load_image
from twelve_in_one.data.regions.extraction import Boxes, extract_folder, find_images
from twelve_in_one.data.regions.extractor import Found, PixelExtractor
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.models.two_stream.config import DTYPES
from twelve_in_one.report.region_pictures import draw_regions

# A detector may need a minute for an image, and a run that ends early repeats a shard's images.
_DETECTOR_SHARD = 64
_PIXEL_REGIONS = 16


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.data.regions.extract",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--images",
        type=local_path,
        required=True,
        help="folder; file names without suffix are the ids",
    )
    add("--out", type=local_path, required=True, help="folder for the shards; resumed where begun")
    add("--detector", default=detectors.PIXELS, help=f"{detectors.HELP}; default %(default)s")
    add(
        "--boxes", type=local_path, metavar="FILE", help="describe these; other photos are left out"
    )
    add("--batch_size", type=int, help="images at once, of a detector; default one a device")
    add("--dtype", choices=DTYPES, help="of a detector's convolutions; default float32")
    add("--picture", type=local_path, metavar="DIR", help="draw what is found in each image")
    add("--jobs", type=int, help="processes, of pixels; default 1")
    add("--num_regions", type=int, help=f"most of an image, of pixels; default {_PIXEL_REGIONS}")
    add(
        "--cluttered",
        action="store_true",
        help="of pixels, for photos: look everywhere, not only on the ground",
    )
    add("--overwrite", action="store_true", help="read all images again")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 1 if nothing could be done."""
    args, left_out = _parser().parse_args(argv), ""
    try:
        images = find_images(args.images)
        boxes = _read_boxes(args.boxes, images) if args.boxes else None
        if boxes is not None:
            left_out = f", {len(images) - len(boxes)} without boxes left out"
            images = {image_id: images[image_id] for image_id in boxes}
        extractor, options = _extractor(args)
        if args.picture:
            args.picture.mkdir(parents=True, exist_ok=True)
            options["watch"] = functools.partial(_draw, args.picture)
        options |= {"overwrite": args.overwrite, "boxes": boxes}
        skipped = extract_folder(images, args.out, extractor, **options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for skip in skipped:
        print(f"skipped {skip.record}: {skip.reason}", file=sys.stderr)
    print(
        f"{args.out}: {len(images) - len(skipped)} images, {len(skipped)} skipped{left_out}, "
        f"{'regions' if boxes is None else 'given boxes'} of {extractor.name}"
    )
    return 0


def _read_boxes(path: Path, images: Mapping[str, Path]) -> Boxes:
    """Boxes of images, by image id; images without any are left out.

    Raises:
      DataError: not such a file, or boxes of an image that is not there; names it.
    """
    found = {}
    for image_id, rows in read_json(path, dict).items():
        if image_id not in images:
            raise DataError(f"{path}: {image_id!r} is no image of the folder: names have no suffix")
        try:
            corners = np.asarray(rows, np.float32)
        except (TypeError, ValueError, OverflowError):
            corners = np.zeros(())
        if not corners.ndim or (len(corners) and corners.shape[1:] != (4,)):
            raise DataError(f"{path}: {image_id!r}: {shorten(rows)} is no list of [x1, y1, x2, y2]")
        if len(corners):
            found[image_id] = corners
    return found


def _extractor(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The extractor, and options of `extract_folder`.

    Raises:
      ValueError: options of the other kind, or as `open_detector`.
    """
    of_pixels = {
        "--jobs": args.jobs,
        "--num_regions": args.num_regions,
        "--cluttered": args.cluttered,
    }
    of_detectors = {"--batch_size": args.batch_size, "--dtype": args.dtype}
    pixels = args.detector == detectors.PIXELS
    wrong = [name for name, value in (of_detectors if pixels else of_pixels).items() if value]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: not an option of --detector {args.detector}")
    if pixels:
        count = _PIXEL_REGIONS if args.num_regions is None else args.num_regions
        jobs = 1 if args.jobs is None else args.jobs
        return PixelExtractor(count, args.cluttered), {"jobs": jobs}
    batch_size = 1 if args.batch_size is None else args.batch_size
    extractor = detectors.open_detector(
        args.detector, dtype=args.dtype or "float32", batch_size=batch_size
    )
    return extractor, {"shard_size": _DETECTOR_SHARD}


def _draw(folder: Path, image_id: str, path: Path, found: Found) -> None:
    boxes = found.regions.boxes
    drawn = draw_regions(load_image(path), boxes, found.names, found.scores)
    drawn.save(folder / f"{image_id}.png")


if __name__ == "__main__":
    sys.exit(main())

"""Finds regions in a folder of images, by a detector or by rules about pixels, for training.

    python -m twelve_in_one.data.regions.extract --images photos --out regions --detector small
    python -m twelve_in_one.data.regions.extract --images photos --out regions \
        --detector x152:detectron_model.pth --batch_size 8 --picture drawn

The folder that it fills is read as records:regions, and knows the detector that filled it. Run the
command again to resume it, to add images, or to try those that could not be read. A detector uses
all devices of the machine, "pixels" has --jobs processes.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.config.paths import local_path
from twelve_in_one.convert import detectors
from twelve_in_one.data.images.load import load_image
from twelve_in_one.data.regions.extraction import extract_folder, find_images
from twelve_in_one.data.regions.extractor import Found, PixelExtractor
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
    args = _parser().parse_args(argv)
    try:
        images = find_images(args.images)
        extractor, options = _extractor(args)
        if args.picture:
            args.picture.mkdir(parents=True, exist_ok=True)
            options["watch"] = functools.partial(_draw, args.picture)
        skipped = extract_folder(images, args.out, extractor, overwrite=args.overwrite, **options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for skip in skipped:
        print(f"skipped {skip.record}: {skip.reason}", file=sys.stderr)
    print(
        f"{args.out}: {len(images) - len(skipped)} images, {len(skipped)} skipped, regions of "
        f"{extractor.name}"
    )
    return 0


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

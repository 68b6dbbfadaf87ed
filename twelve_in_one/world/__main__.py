"""Makes a world of pictures, with twelve datasets and captions about them in official layouts.

    python -m twelve_in_one.world --out RAW --images 2000 --seed 0

RAW then is what `python -m twelve_in_one.data.build all --manual_dir RAW` reads: a folder a
dataset, `images/` with a folder a collection of pictures, `contact_sheet.png` to look at, and
`world.json` with arguments and sizes. The same arguments make the same files, with any number of
jobs.

For text decoders there are further sets, which leave the others as they are: with --class_pictures,
`classes/`, whose folders a set of pictures is opened from ("folder:RAW/classes/things/train"),
with --covers, `ocr_vqa/`, for `python -m twelve_in_one.data.build ocr_vqa`, and with --clips,
`msrvtt/`, short videos with questions and captions ("msrvtt_qa:RAW/msrvtt[train]").
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from twelve_in_one import extras
from twelve_in_one.config.paths import local_path


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    from twelve_in_one.world import make

    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.world",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=local_path, required=True, help="RAW, a new or empty folder")
    parser.add_argument(
        "--images",
        type=int,
        default=2000,
        help=f"number of different pictures, {make.MIN_IMAGES} to {make.MAX_IMAGES:,}; "
        "default %(default)s",
    )
    parser.add_argument(
        "--more_captions",
        type=int,
        default=0,
        help="further pictures with captions for pretraining; default %(default)s",
    )
    sets = make.DecoderSets()
    parser.add_argument(
        "--class_pictures",
        type=int,
        default=sets.class_pictures,
        help="pictures of each image class, in classes/SET/{train,val,test}/CLASS: things (40 "
        "classes: colour and shape of the largest thing) and grounds (10: the ground, and whether "
        "there is a curtain); default %(default)s",
    )
    parser.add_argument(
        "--covers",
        type=int,
        default=sets.covers,
        help="covers of books with questions, as OCR-VQA; default %(default)s",
    )
    parser.add_argument(
        "--cover_side",
        type=int,
        default=sets.cover_side,
        help="side of a cover in pixels: the one to train at keeps its text sharp; default "
        "%(default)s",
    )
    parser.add_argument(
        "--cover_words",
        type=int,
        default=sets.cover_words,
        help="different words at each place of titles and names: fewer are learnt sooner; default "
        "%(default)s",
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=sets.clips,
        help="short videos with questions about what happens; default %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument(
        "--jobs", type=int, default=_num_cores(), help="processes; default all cores"
    )
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if the world exists at the end."""
    try:
        extras.require("making pictures", "data")
    except ImportError as error:
        _log(f"error: {error}")
        return 1
    from twelve_in_one.world import make

    args = parse_arguments(argv)
    # As on an interrupt, unfinished output is removed.
    signal.signal(signal.SIGTERM, _stop)
    start = time.perf_counter()
    try:
        sets = make.DecoderSets(
            args.class_pictures, args.covers, args.cover_side, args.cover_words, args.clips
        )
        if make.is_made(args.out, args.images, args.seed, args.more_captions, sets):
            print(f"{args.out} holds this world already: nothing to do")
            return 0
        counts = make.make(
            args.out, args.images, args.seed, args.jobs, _log, args.more_captions, sets
        )
    except (ValueError, OSError) as error:
        _log(f"error: {error}")
        return 1
    except BrokenProcessPool:
        _log("error: a process was killed, perhaps for want of memory; try fewer --jobs")
        return 1
    except KeyboardInterrupt:
        _log("interrupted: nothing was written")
        return 130
    print(make.table(counts))
    _log(f"{args.out} made in {time.perf_counter() - start:.0f} s")
    return 0


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stop(signal_number: int, _: Any) -> None:
    raise SystemExit(128 + signal_number)


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())

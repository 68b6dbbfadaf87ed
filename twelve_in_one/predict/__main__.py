"""Asks a trained model about images.

    python -m twelve_in_one.predict answer --model WORKDIR --image a.jpg --text "What is it?"

COMMAND --help explains each with an example. Several images with one text, several texts with one
image, or as many of both are answered one by one; results go to stdout, one after the other.

--model is a model folder, or the workdir of a run that has ended. Images go through the extractor
that the model was trained with. For a model that was trained on a detector's features, --detector
names the detector and its weights: x152:FILE, c4:FILE, small, ...; or --regions
names a store of them (lmdb:PATH, npy:DIR, tsv:FILE, hdf5:FILE or records:DIR; several with commas
between them, in order of search), --image gives ids in it, and --box_regions a store with the
features of the boxes to choose from.

--requests FILE takes many requests, one JSON object per line, and prints one JSON object for each.
The lines are checked first; of those that are objects with the right keys, one that cannot be
answered gives {"line": ..., "error": ...} and exit code 1 in the end.
"""

import argparse
import inspect
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one.config.paths import expand, local_path
from twelve_in_one.convert import detectors
from twelve_in_one.data.regions import open_store
from twelve_in_one.predict.loading import load
from twelve_in_one.predict.pictures import picture
from twelve_in_one.predict.predictor import Predictor
from twelve_in_one.predict.request_file import TEXT_ARGUMENT, answer_requests, read_requests
from twelve_in_one.predict.results import to_json
from twelve_in_one.predict.wording import lines

_QUIET_SECONDS = 2.0
_COMMANDS = {
    "answer": (
        "answers a question",
        """
--text is a question. Prints the --top best answers with their probabilities, of which each stands
for itself: they do not add up to 1. Tasks: vqa
(default), gqa, vgqa.

  python -m twelve_in_one.predict answer --model run --image a.jpg --text "What colour is it?"
  a request: {"image": "a.jpg", "text": "What colour is it?"}, and perhaps "id", "task", "top"
""",
    ),
    "rank": (
        "puts images in the order in which they fit a caption",
        """
--text is a caption; every caption is scored with every image. Prints the --top best images.
Tasks: coco (default), flickr30k.

  python -m twelve_in_one.predict rank --model run --image *.jpg --text "a dog on a sofa"
  a request: {"images": ["a.jpg", "b.jpg"], "text": "a dog on a sofa"}, and perhaps "id", "task"
""",
    ),
    "ground": (
        "finds what a phrase means",
        """
--text is a phrase. Prints the box, x1,y1,x2,y2 in pixels, and the next best up to --top. Chooses
among the regions of the image, or among --boxes and the whole image, which is box 0: those given
are numbered from 1. Tasks: refcoco (default), refcoco+, refcocog.

  python -m twelve_in_one.predict ground --model run --image a.jpg --text "the man on the left"
  a request: {"image": "a.jpg", "text": "the man on the left"}, and perhaps "id", "task",
  "boxes": [[x1, y1, x2, y2], ...]
""",
    ),
    "point": (
        "chooses among given boxes",
        """
--text is a question, or a dialogue for guesswhat. Prints the --top best of --boxes, numbered from
0. Tasks: visual7w (default), guesswhat.

  python -m twelve_in_one.predict point --model run --image a.jpg --text "Which is parked?" \\
      --boxes 10,20,80,90 90,5,200,70
  a request: {"image": "a.jpg", "text": "Which is parked?", "boxes": [[10, 20, 80, 90],
  [90, 5, 200, 70]]}, and perhaps "id", "task", "choices": numbers of boxes that may be chosen
""",
    ),
    "entails": (
        "says whether an image entails a sentence",
        """
--text is a sentence. Prints contradiction, neutral or entailment. Task: snli_ve.

  python -m twelve_in_one.predict entails --model run --image a.jpg --text "Children are playing."
  a request: {"image": "a.jpg", "text": "Children are playing."}, and perhaps "id"
""",
    ),
    "compare": (
        "says whether a sentence is true of two images",
        """
--image takes two images, left and right; --text is a sentence. Prints True or False. Task: nlvr2.

  python -m twelve_in_one.predict compare --model run --image l.jpg r.jpg --text "Both show a bird."
  a request: {"left": "l.jpg", "right": "r.jpg", "text": "Both show a bird."}, and perhaps "id"
""",
    ),
    "caption": (
        "describes images, with a model that writes texts",
        """
Prints a caption for each image, with the probability of the whole text. Tasks: those of group
caption.

  python -m twelve_in_one.predict caption --model run --image a.jpg b.jpg
  a request: {"image": "a.jpg"}, and perhaps "id", "task"
""",
    ),
    "classify": (
        "says which class an image shows, with a model that writes texts",
        """
Ranks --labels, or the classes that the task was trained on, by the probability of their names, and
prints the --top best. Tasks: those of group classify.

  python -m twelve_in_one.predict classify --model run --image a.jpg --labels cat dog
  a request: {"image": "a.jpg"}, and perhaps "id", "task", "labels": ["cat", "dog"], "top"
""",
    ),
    "read": (
        "answers questions about what is written in an image, with a model that writes texts",
        """
--text is a question. Tasks: those of group ocr.

  python -m twelve_in_one.predict read --model run --image a.jpg --text "Who wrote this book?"
  a request: {"image": "a.jpg", "text": "Who wrote this book?"}, and perhaps "id", "task"
""",
    ),
    "answer_video": (
        "answers a question about a video, with a model that reads clips",
        """
--text is a question, --video a video file (with the extra "video") or a folder of frames. Tasks:
those of groups vqa and ocr.

  python -m twelve_in_one.predict answer_video --model run --video a.mp4 --text "What moves first?"
  a request: {"video": "a.mp4", "text": "What moves first?"}, and perhaps "id", "task", "answers"
""",
    ),
    "caption_video": (
        "describes videos, with a model that reads clips",
        """
Prints a caption for each --video, a file or a folder of frames. Tasks: those of group caption.

  python -m twelve_in_one.predict caption_video --model run --video a.mp4
  a request: {"video": "a.mp4"}, and perhaps "id", "task"
""",
    ),
    "detect": (
        "finds things by their names, with a model that finds boxes",
        """
Looks for --names, of any number, or for those of training, and prints the --top best boxes,
x1,y1,x2,y2 in pixels, with their scores. --picture draws them.

  python -m twelve_in_one.predict detect --model run --image a.jpg --names bicycle "yellow umbrella"
  a request: {"image": "a.jpg", "names": ["bicycle"]}, and perhaps "id", "top", "least"
""",
    ),
    "index": (
        "makes an index of images, with a model that makes vectors of images and texts",
        """
Writes the vectors of the images, their names, and which model made them to --index.

  python -m twelve_in_one.predict index --model run --image *.jpg --index index.npz
""",
    ),
    "retrieve": (
        "finds the images of an index that fit a text",
        """
Prints the --top best images of --index, with the cosines of their vectors and the text's.

  python -m twelve_in_one.predict retrieve --model run --index index.npz --text "a dog on a sofa"
  a request: {"text": "a dog on a sofa"}, and perhaps "id", "top"
""",
    ),
    "embed_image": (
        "prints the vectors of images, with a model that makes them",
        """
Prints a JSON object for each image: its name, and its vector of length 1.

  python -m twelve_in_one.predict embed_image --model run --image a.jpg b.jpg
""",
    ),
    "embed_text": (
        "prints the vectors of texts, with a model that makes them",
        """
Prints a JSON object for each text: itself, and its vector of length 1.

  python -m twelve_in_one.predict embed_text --model run --text "a dog on a sofa"
""",
    ),
}
_OPTIONS = ("task", "attention", "labels", "answers", "names", "least")
_WITHOUT_TEXT = ("caption", "caption_video", "classify", "index", "embed_image", "detect")
_OF_VIDEOS = ("answer_video", "caption_video")
_WITHOUT_IMAGE = ("retrieve", "embed_text")
_WITHOUT_REQUESTS = ("index", "embed_image", "embed_text")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.predict", description=__doc__, formatter_class=raw
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, description) in _COMMANDS.items():
        one = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.\n{description}",
            formatter_class=raw,
        )
        _add_arguments(one, name)
    args = parser.parse_args(argv)
    problem = _problem(args)
    if problem:
        commands.choices[args.command].error(problem)
    return args


def _add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    many: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    parser.add_argument(
        "--model", type=local_path, required=True, metavar="PATH", help="model folder or workdir"
    )
    if command in _OF_VIDEOS:
        about = "video file, or folder of frames"
        parser.add_argument(
            "--video", dest="image", type=expand, metavar="VIDEO", help=about, **many
        )
    else:
        about = 'picture, id, or "none"'
        parser.add_argument("--image", type=expand, metavar="IMAGE", help=about, **many)
    parser.add_argument("--text", metavar="TEXT", help="question, caption, ...", **many)
    if command in ("index", "retrieve"):
        parser.add_argument(
            "--index", type=local_path, required=True, metavar="FILE.npz", help="of images"
        )
    if command == "classify":
        parser.add_argument("--labels", metavar="LABEL", help="names to choose from", **many)
    if command == "detect":
        parser.add_argument("--names", metavar="NAME", help="of what to look for", **many)
        parser.add_argument("--least", type=float, default=0.0, help="score; default %(default)s")
    if command in ("answer", "answer_video"):
        parser.add_argument(
            "--answers", metavar="ANSWER", help="write one of these; of models that write", **many
        )
    if command in ("ground", "point"):
        parser.add_argument(
            "--boxes", type=_box, metavar="X1,Y1,X2,Y2", help="of the image", **many
        )
        parser.add_argument("--box_regions", metavar="STORE", help="boxes and their features")
    parser.add_argument(
        "--task", help="which of the model's tasks answers, those on data sets of your own included"
    )
    parser.add_argument("--top", type=int, default=5, help="how many to list; default %(default)s")
    parser.add_argument("--requests", type=local_path, metavar="FILE", help="JSON lines, see above")
    parser.add_argument(
        "--detector", metavar="SPEC", help="finds regions: " + detectors.HELP.replace("%", "%%")
    )
    parser.add_argument("--regions", metavar="STORE", help="regions of the images, by id")
    parser.add_argument(
        "--picture",
        type=local_path,
        metavar="OUT.png",
        help="draw results; of several as OUT-1.png, ...",
    )
    parser.add_argument(
        "--attention", action="store_true", help="also say, or draw, which regions the text read"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one object a result")
    parser.add_argument(
        "--max_batch", type=int, default=64, help="examples at a time; default %(default)s"
    )


def _box(text: str) -> tuple[float, ...]:
    try:
        corners = tuple(float(part) for part in text.split(","))
    except ValueError:
        corners = ()
    if len(corners) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} should be x1,y1,x2,y2 in pixels")
    return corners


def _problem(args: argparse.Namespace) -> str:
    """The mistake in the arguments as a whole, or ""."""
    if args.top < 1 or args.max_batch < 1:
        return "--top and --max_batch must be at least 1"
    boxes = getattr(args, "boxes", [])
    if args.detector and args.regions:
        return "--detector finds regions in pictures, --regions has found them: pass one"
    if args.requests and (args.image or args.text or boxes):
        return "--requests brings its own images, texts and boxes"
    if args.requests and args.command in _WITHOUT_REQUESTS:
        return f"{args.command} takes no --requests"
    if args.requests:
        return ""
    if args.command in _WITHOUT_IMAGE:
        if args.text and not args.image:
            return ""
        return f"{args.command} takes --text, and no --image"
    if not args.image or not (args.text or args.command in _WITHOUT_TEXT):
        needed = "--video" if args.command in _OF_VIDEOS else "--image"
        needed += "" if args.command in _WITHOUT_TEXT else " and --text"
        return f"pass {needed}, or --requests"
    if args.text and args.command in _WITHOUT_TEXT:
        return f"{args.command} takes no --text"
    if args.command == "compare" and len(args.image) != 2:
        return f"--image takes two images, left and right, got {len(args.image)}"
    if boxes and (len(args.image) > 1 or args.box_regions):
        return "--boxes are those of one image; for several pass --requests, or --box_regions"
    if args.command == "point" and not boxes and not args.box_regions:
        return "pass --boxes to choose from"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if everything could be answered."""
    args = parse_arguments(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = lambda message, *_: _log(f"warning: {message}")
            return _run(args)
    except (ValueError, ImportError, OSError) as error:
        _log(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _log("interrupted")
        return 130


def _run(args: argparse.Namespace) -> int:
    # Before the slow loading of the model.
    elsewhere = ("boxes",) if getattr(args, "box_regions", None) else ()
    requests = read_requests(args.requests, args.command, elsewhere) if args.requests else []
    resolve = _Resolver(args)

    progress = _Progress()
    quiet = {} if requests else {"progress": progress}
    predictor = load(args.model, detector=args.detector, max_batch=args.max_batch, **quiet)
    if isinstance(predictor, Predictor):
        resolve.check(predictor)
    if not hasattr(predictor, args.command):
        able = [command for command in _COMMANDS if hasattr(predictor, command)]
        raise ValueError(f"{args.model}: this model cannot {args.command}, but {', '.join(able)}")
    if args.command in _WITHOUT_REQUESTS:
        if args.task or args.regions or args.picture or args.attention:
            raise ValueError(f"{args.command} takes no --task, --attention, --regions or --picture")
        _vectors(args, predictor)
        return 0
    options = _options(args, getattr(predictor, args.command))
    if args.command == "retrieve":
        options["images"] = str(args.index)
    if not requests:
        arguments = resolve(_given(args))
        texts = {}
        if args.command in TEXT_ARGUMENT:
            texts[TEXT_ARGUMENT[args.command]] = arguments.pop("text")
        results = getattr(predictor, args.command)(**arguments, **texts, **options)
        _show(args, results if isinstance(results, list) else [results])
        return 0
    failed = 0
    answers = answer_requests(predictor, args.command, requests, options, resolve)
    for done, (request, result, values) in enumerate(answers, 1):
        print(json.dumps(values, ensure_ascii=False), flush=True)
        if result is None:
            failed += 1
        elif args.picture:
            _save(args.picture, result, request.line)
        progress("requests", done, len(requests))
    if failed:
        _log(f"error: {failed} of {len(requests)} requests could not be answered")
    return 1 if failed else 0


def _vectors(args: argparse.Namespace, predictor: Any) -> None:
    """Writes an index, or prints vectors."""
    if args.command == "index":
        index = predictor.index(args.image, args.index)
        print(f"{args.index}: {len(index.names)} images")
        return
    what = args.command.removeprefix("embed_")
    given = args.image if what == "image" else args.text
    for one, vector in zip(given, getattr(predictor, args.command)(given), strict=True):
        print(json.dumps({what: one, "vector": vector.tolist()}, ensure_ascii=False))


def _options(args: argparse.Namespace, method: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that choose how a model's method works.

    Raises:
      ValueError: this model's method does not take one of them.
    """
    taken = inspect.signature(method).parameters
    found = {"top": args.top} if "top" in taken else {}
    for name in _OPTIONS:
        value = getattr(args, name, None)
        if value and name not in taken:
            able = ", ".join(f"--{key}" for key in taken if key in _OPTIONS)
            raise ValueError(f"--{name}: this model's {args.command} takes {able}")
        if value:
            found[name] = value
    return found


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The command-line arguments as those of a request; lists if there are several."""
    images: list[str | None] = [None if image == "none" else image for image in args.image]
    # One text applies to all images.
    values: dict[str, Any] = {}
    if args.text:
        values["text"] = args.text[0] if len(args.text) == 1 else args.text
    if args.command == "rank":
        return values | {"images": images}
    if args.command == "retrieve":
        return values
    if args.command == "compare":
        return values | {"left": images[0], "right": images[1]}
    if args.command in _OF_VIDEOS:
        return values | {"video": images if len(images) > 1 else images[0]}
    if getattr(args, "boxes", []):
        values["boxes"] = args.boxes
    return values | {"image": images if len(images) > 1 else images[0]}


class _Resolver:
    """Replaces ids by regions, if stores of regions are given."""

    def __init__(self, args: argparse.Namespace):
        boxes = getattr(args, "box_regions", None)
        self._images = open_store(args.regions) if args.regions else None
        self._boxes = open_store(boxes) if boxes else None

    def check(self, predictor: Predictor) -> None:
        """Refuses stores of another detector than the model's."""
        for store in (self._images, self._boxes):
            if store is not None:
                predictor.check_store(store)

    def __call__(self, values: dict[str, Any]) -> dict[str, Any]:
        changed = dict(values)
        if self._boxes is not None and values.get("boxes") is None:
            changed["boxes"] = self._get(self._boxes, values["image"])
        if self._images is not None:
            for key in ("image", "images", "left", "right"):
                if key in values:
                    changed[key] = self._get(self._images, values[key])
        return changed

    def _get(self, store: Any, key: Any) -> Any:
        if isinstance(key, list):
            return [self._get(store, one) for one in key]
        return None if key is None else store.get(str(key))


def _show(args: argparse.Namespace, results: Sequence[Any]) -> None:
    for number, result in enumerate(results, 1):
        if args.json:
            print(json.dumps(to_json(result), ensure_ascii=False))
        else:
            print("\n".join(lines(result, args.top)))
        if args.picture:
            _save(args.picture, result, number if len(results) > 1 else 0)


def _save(path: Path, result: Any, number: int) -> None:
    if number:
        path = path.with_name(f"{path.stem}-{number}{path.suffix}")
    try:
        picture(result).save(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"--picture {path}: {error}") from error


class _Progress:
    """Prints progress, with rate and time left, once something takes more than a moment."""

    def __init__(self) -> None:
        self._what = ""
        self._start = self._last = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if what != self._what:
            self._what, self._start, self._last = what, now, now
        if now - self._last < _QUIET_SECONDS:
            return
        self._last = now
        rate = done / (now - self._start)
        left = f", ETA {(total - done) / rate:,.0f} s" if 0 < done < total else ""
        _log(f"{what} {done:,}/{total:,}, {rate:,.1f}/s{left}")


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

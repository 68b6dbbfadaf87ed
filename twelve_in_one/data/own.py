"""Builds the data sets of a user's own that a run names, into a data folder of theirs.

    python -m twelve_in_one.data.own SPEC.json

is what a run starts; it writes the file that says what to build (`Spec`). The folder is laid out as
`data.build` leaves one, and `own.json` in it says what it holds:

    NAME/REGIONS/1.0.0/     records, as of any dataset
    vocab.txt               words
    answers-NAME.json       answers or labels of heads of their own
    clean_split.json        images that nobody may train on
    pictures-NAME.json      image id -> file
    own.json                settings, and the data folder of the other tasks of the run
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twelve_in_one.data import answers, finish, region_inputs, report, splits, text
from twelve_in_one.data.annotations import hf_rows, jsonl
from twelve_in_one.data.annotations.jsonl import Found, Part, Rules
from twelve_in_one.data.files import RecordError, read_json
from twelve_in_one.data.reader import built_folder, read_build_info, region_names
from twelve_in_one.data.records import AnnotatedImage, AnnotationSet, DataError, Regions
from twelve_in_one.data.region_inputs import RegionInputs
from twelve_in_one.data.regions import open_store
from twelve_in_one.data.sources import Source
from twelve_in_one.run_config import OwnTaskOptions, RunConfig, TaskOptions
from twelve_in_one.tasks.base import Task
from twelve_in_one.tasks.own import ANSWER_HEADS, own_task

OWN = "own.json"
_FILES = ("jsonl", "val_jsonl", "test_jsonl", "answers")
# Settings that a built data set does not depend on.
_OF_TRAINING = frozenset(
    {field.name for field in dataclasses.fields(TaskOptions)} - {"candidates"}
    | {"title", "max_skipped_share"}
)
_PIXELS = ("pixels", "photos")
_STORE = (
    "name a store of the same detector's features with config.task.NAME.features=lmdb:PATH, or "
    "another format"
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """What to build.

    Attributes:
      sets: task name -> settings; `features` is told of all.
      regions: name of the region features of the run.
      base: data folder of the run's other tasks; "" if it has none.
      vocab: words to use; "" makes them.
      lends: model folder that lends words and answers; "" if there is none.
    """

    sets: Mapping[str, OwnTaskOptions]
    regions: str
    base: str = ""
    vocab: str = ""
    lends: str = ""

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Spec":
        """The inverse of `dataclasses.asdict`, of what JSON made of it."""
        sets = {
            name: OwnTaskOptions(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in x.items()}
            )
            for name, x in raw["sets"].items()
        }
        known = {field.name: raw[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**known, "sets": sets})


def own_options(run: RunConfig) -> dict[str, OwnTaskOptions]:
    """Settings of the run's tasks on data sets of the user's own."""
    found = {name: run.task[name] for name in run.tasks}
    return {name: x for name, x in found.items() if isinstance(x, OwnTaskOptions)}


def data_folder(run: RunConfig, workdir: Path) -> tuple[Path, str]:
    """Data folder of a run, and the name of its region features."""
    own = own_options(run)
    if not own:
        return Path(run.data.dir), run.data.regions
    folder = Path(run.data.own_dir or workdir / "data")
    built = read_spec(folder)
    return folder, built.regions if built else _regions_name(run, own)


def _regions_name(run: RunConfig, own: Mapping[str, OwnTaskOptions]) -> str:
    if len(own) < len(run.tasks):
        return run.data.regions
    kinds = {_features(run, options) for options in own.values()}
    if len(kinds) == 1 and kinds & {*_PIXELS, "none"}:
        return kinds.pop()
    return region_inputs.STORED


def _features(run: RunConfig, options: OwnTaskOptions) -> str:
    """What regions a data set is built with.

    Raises:
      DataError: nobody says it.
    """
    if options.features:
        return options.features
    if any(not isinstance(run.task[name], OwnTaskOptions) for name in run.tasks):
        if run.data.regions in (*_PIXELS, "none"):
            return run.data.regions
        raise DataError(
            f"the other tasks have region features {run.data.regions!r} of a detector: {_STORE}"
        )
    lender = _lender(run)
    descriptor = lender.preprocessing.image_descriptor if lender else ""
    if "ground" in descriptor:
        return "pixels"
    if lender and "cluttered" not in descriptor and lender.preprocessing.region_source != "none":
        raise DataError(f"{run.init_from.path} was trained on regions of a detector: {_STORE}")
    return "photos"


def _lender(run: RunConfig) -> Any:
    """`Serving` of the model that the run begins with; None where there is none."""
    from twelve_in_one import model_folder

    path = _model_folder(run)
    return model_folder.load_serving(path) if path else None


def _model_folder(run: RunConfig) -> Path | None:
    """The model folder that a run begins with; None where it is a bare checkpoint, or nothing."""
    from twelve_in_one import model_folder

    if not run.init_from.path:
        return None
    path = Path(run.init_from.path)
    path = path / "model" if (path / "model").is_dir() else path
    return path if (path / model_folder.TASKS).is_file() else None


def spec_of(run: RunConfig) -> Spec:
    """What a run needs built.

    Raises:
      DataError: nobody says what regions to take.
    """
    own = own_options(run)
    sets = {
        name: dataclasses.replace(options, features=_features(run, options))
        for name, options in own.items()
    }
    model = _model_folder(run)
    vocab = run.data.vocab or (str(model / finish.WORDS) if model else "")
    base = run.data.dir if len(own) < len(run.tasks) else ""
    return Spec(sets, _regions_name(run, own), base, vocab, str(model or ""))


def check_files(spec: Spec) -> None:
    """Raises a DataError that lists all files and folders that are missing."""
    missing = []
    for name, options in spec.sets.items():
        paths = [(key, getattr(options, key)) for key in _FILES]
        missing += [f"config.task.{name}.{k}={p}: no such file" for k, p in paths if _lacks(p)]
        if options.images and not Path(options.images).is_dir():
            missing.append(f"config.task.{name}.images={options.images}: no such folder")
    if _lacks(spec.vocab):
        missing.append(f"config.data.vocab={spec.vocab}: no such file")
    if missing:
        raise DataError("\n".join(missing))


def _lacks(path: str) -> bool:
    return bool(path) and path not in ANSWER_HEADS and not Path(path).is_file()


def made_of(spec: Spec) -> dict[str, str]:
    """What tells whether a built folder is what a run wants; "" of a file that is not there."""
    words = Path(spec.vocab) if spec.vocab else Path(spec.base) / finish.WORDS
    made = {"regions": spec.regions, "words": _hash(words)}
    for name, options in spec.sets.items():
        for key, value in dataclasses.asdict(options).items():
            if key in _FILES and value not in ANSWER_HEADS:
                made[f"{name}.{key}"] = _hash(Path(value))
            elif key not in _OF_TRAINING:
                made[f"{name}.{key}"] = str(value)
    return made


def _hash(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_built(folder: Path, spec: Spec) -> bool:
    """Whether a data folder holds what is wanted.

    Raises:
      DataError: it holds something else.
    """
    if not (folder / OWN).is_file():
        return False
    there, here = read_json(folder / OWN, dict)["made_of"], made_of(spec)
    # A file that is gone since is no other one.
    keys = sorted(key for key in there | here if here.get(key) and there.get(key) != here[key])
    keys += sorted(there.keys() - here.keys())
    if keys:
        raise DataError(
            f"{folder}: built with other settings or files: {', '.join(keys[:5])}. Take another "
            "workdir (or config.data.own_dir), or delete this folder to have it built anew: a model"
            " that was trained on it will not fit"
        )
    return True


def read_spec(folder: Path) -> Spec | None:
    """What a data folder was built from; None if it holds no data sets of a user's own.

    Raises:
      DataError: damaged.
    """
    path = folder / OWN
    if not path.is_file():
        return None
    try:
        return Spec.from_json(read_json(path, dict))
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: {error}; delete {folder} to have it built anew") from error


def sources(spec: Spec) -> dict[str, Source]:
    """The data sets, as other datasets are described; without a reader."""
    named = {}
    domains: dict[str, str] = {}
    for name, options in spec.sets.items():
        where = options.images or options.hf
        # Two data sets about one folder share its images' ids.
        domain = options.collection or domains.setdefault(where, f"own/{name}")
        task = own_task(name, options)
        named[name] = Source(
            name,
            domain,
            "",
            _no_reader,
            scores_annotated_boxes=options.candidates == "annotated",
            keeps_texts=task.kind == "match",
        )
    return named


def _no_reader(folder: Path, split: str) -> AnnotationSet:
    raise DataError(f"{folder}: {split} has been read already")


def read_pictures(folder: Path, name: str) -> dict[str, Path]:
    """Pictures of a data set by image id, as far as there are files.

    Raises:
      DataError: the list of them is missing or damaged.
    """
    return {key: Path(path) for key, path in read_json(_pictures(folder, name), dict).items()}


def _pictures(folder: Path, name: str) -> Path:
    return folder / f"pictures-{name}.json"


def read_all(folder: Path, spec: Spec) -> dict[str, Found]:
    """Reads and checks the records of all data sets.

    Raises:
      DataError: says of every data set what is wrong with it.
    """
    found, errors = {}, []
    for name, options in spec.sets.items():
        try:
            found[name] = _read(folder, name, options)
        except (DataError, OSError) as error:
            errors.append(f"{name}: {error}")
    if errors:
        raise DataError("\n".join(errors))
    return found


def _read(folder: Path, name: str, options: OwnTaskOptions) -> Found:
    task = own_task(name, options)
    written = folder / "pictures" / name  # of Hugging Face datasets
    return jsonl.read(_parts(options, written), _rules(task, options, written))


def _parts(options: OwnTaskOptions, written: Path) -> list[Part]:
    if options.hf:
        return hf_rows.parts(options.hf, written)
    more = {"val": options.val_jsonl, "test": options.test_jsonl}
    role = "train" if any(more.values()) else ""
    parts = [jsonl.file_part(Path(options.jsonl), role)]
    return parts + [jsonl.file_part(Path(path), split) for split, path in more.items() if path]


def _rules(task: Task, options: OwnTaskOptions, written: Path) -> Rules:
    folders = [Path(options.images)] if options.images or not options.hf else []
    if options.hf:
        folders.append(written)
    finders = [jsonl.picture_in(folder) for folder in folders]

    def picture(name: str) -> Path | None:
        for find in finders[:-1]:
            try:
                return find(name)
            except RecordError:
                continue
        try:
            return finders[-1](name)
        except RecordError:
            if options.features in _PIXELS:
                raise
            return None  # a store knows the image, or nobody needs to

    sizes = _file_size if options.features in _PIXELS else _store_size(options.features)
    return Rules(
        task.kind,
        task.rows_per_example if task.kind == "verdict" else 1,
        picture,
        functools.cache(lambda name: sizes(picture(name), name)),
        options.labels or answers_of_verdict(task),
        options.box_format,
        options.collection,
        options.val_share,
        options.test_share,
        options.max_skipped_share,
    )


def answers_of_verdict(task: Task) -> tuple[str, ...]:
    """Labels of a task of kind "verdict" that reads a head of the twelve; () of other kinds."""
    from twelve_in_one.tasks.base import VERDICTS

    return VERDICTS.get(task.head, ())


def _file_size(path: Path | None, name: str) -> tuple[int, int] | None:
    """Width and height of a picture that is held upright, as its regions are."""
    from PIL import Image

    if path is None:
        return None
    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(0x0112, 1) >= 5
            return picture.size[::-1] if turned else picture.size
    except Exception as error:  # decoders fail on strangers' bytes with whatever they trip over
        raise RecordError(f"picture {name!r} cannot be read: {error}") from error


def _store_size(features: str) -> Any:
    store = open_store(features)

    def size(path: Path | None, name: str) -> tuple[int, int] | None:
        key = _store_key(store, name)
        if key is None:
            return _file_size(path, name)
        regions = store.get(key)
        return (regions.width, regions.height) if regions.width and regions.height else None

    return size


def _store_key(store: Any, name: str) -> str | None:
    """How a store calls the picture that records call `name`."""
    tries = [name, Path(name).stem]
    tries += [jsonl.image_id_of(name, "coco")] if tries[1][-1:].isdecimal() else []
    return next((key for key in tries if key in store), None)


def regions_of(
    folder: Path, name: str, spec: Spec, found: Mapping[str, Found], jobs: int
) -> RegionInputs:
    """Region features of the images of a data set.

    Raises:
      DataError: a store cannot be opened, or pictures are missing.
    """
    options, source = spec.sets[name], sources(spec)[name]
    if options.features in _PIXELS:
        return _from_pictures(folder, name, spec, found, jobs)
    if options.features == "none":
        return dataclasses.replace(region_inputs.no_regions(), name=spec.regions)
    store = open_store(options.features)
    plain = dataclasses.replace(source, scores_annotated_boxes=False)
    stored = region_inputs.from_stores(plain, options.features, None, spec.regions)
    names = found[name].names
    keys = {image_id: _store_key(store, called) for image_id, called in names.items()}

    def detected(image: AnnotatedImage) -> Regions:
        key = keys.get(image.image_id)
        if key is None:
            raise DataError(f"{options.features}: no image {names.get(image.image_id)!r}")
        return stored.detected(dataclasses.replace(image, image_id=key))

    def stamp(image_id: str) -> str:
        key = keys.get(image_id)
        return "" if key is None else stored.stamp(key)

    return dataclasses.replace(
        stored,
        has=lambda image_id: keys.get(image_id) is not None,
        detected=detected,
        stamp=stamp,
    )


def _from_pictures(
    folder: Path, name: str, spec: Spec, found: Mapping[str, Found], jobs: int
) -> RegionInputs:
    named, features = sources(spec), spec.sets[name].features
    # Data sets about one folder have their pictures looked at once.
    pictures: dict[str, Path] = {}
    for other, options in spec.sets.items():
        if named[other].domain == named[name].domain and options.features == features:
            pictures |= found[other].pictures
    inputs = region_inputs.from_pictures(
        named[name], pictures, folder / "regions", cluttered=features == "photos", jobs=jobs
    )
    return dataclasses.replace(inputs, name=spec.regions)


def build(folder: Path, spec: Spec, *, jobs: int = 1) -> None:
    """Builds everything; what is there of an earlier, interrupted call is kept.

    Raises:
      DataError: see `read_all`, `regions_of` and the builders.
    """
    from twelve_in_one.data.builders.base import BuildInputs, ImageMajorBuilder, build_with

    folder.mkdir(parents=True, exist_ok=True)
    found = read_all(folder, spec)
    for name, one in found.items():
        for note in one.notes:
            report.log(f"{name}: {note}")
    lent, lines = _lent(spec), []
    for name, options in spec.sets.items():
        lines += _write_answers(folder, own_task(name, options), options, found[name], lent)
    outcomes, made = [], made_of(spec)
    for name, source in sources(spec).items():
        one = found[name]
        with_reader = dataclasses.replace(
            source, read=lambda _, split, one=one: one.splits[split], splits=tuple(one.splits)
        )
        about = {
            "source": with_reader,
            "name": name,
            "__doc__": f"{name}, a data set of the user's own.",
        }
        kind = type("Own", (ImageMajorBuilder,), about, skip_registration=True)
        inputs = BuildInputs(
            folder,
            regions_of(folder, name, spec, found, jobs),
            made,
            report.Progress(name),
            spec.sets[name].max_skipped_share,
        )
        # Of a build that was cut short before somebody changed a file.
        stale = spec.regions in region_names(folder, name) and (
            read_build_info(built_folder(folder, name, spec.regions))["made_of"]["files"] != made
        )
        outcomes.append(build_with(kind, inputs, folder, overwrite=stale))
        _write_json(
            _pictures(folder, name), {k: str(p.absolute()) for k, p in one.pictures.items()}
        )
    report.print_reports(outcomes)
    lines.append(_write_words(folder, spec, found, lent))
    lines += _write_clean_split(folder, spec)
    print("\n".join(lines))
    _write_json(folder / OWN, dataclasses.asdict(spec) | {"made_of": made})


def _lent(spec: Spec) -> Any:
    from twelve_in_one import model_folder

    return model_folder.load_serving(spec.lends) if spec.lends else None


def _write_answers(
    folder: Path, task: Task, options: OwnTaskOptions, found: Found, lent: Any
) -> list[str]:
    """Answers or labels of a task's own head, or of the head of the twelve that it shares."""
    path = folder / f"answers-{task.head}.json"
    if task.kind == "verdict":
        if options.labels:
            answers.write_vocabulary(path, options.labels)
        return []
    if task.kind != "answer":
        return []
    if options.answers in ANSWER_HEADS:
        names = lent.answers.get(task.head) if lent else None
        if names:
            answers.write_vocabulary(path, names)
        return []
    if options.answers:
        names = answers.read_vocabulary(Path(options.answers))
    else:
        names = answers.common_answers(found.splits["train"], options.min_answer_count)
    answers.write_vocabulary(path, names)
    index = {answer: label for label, answer in enumerate(names)}
    lines = [f"{path.name}: {len(names):,} answers"]
    for split, annotations in found.splits.items():
        answered = [a for a in annotations.annotations if a.answers]
        covered, total = answers.coverage(answered, index)
        lines[0] += f"; {covered:,} of {total:,} {split} questions have one"
    alike = len(names) - len({answer.casefold() for answer in names})
    if alike:
        lines.append(f"{path.name}: {alike:,} answers differ from another in their capitals alone")
    return lines


def _write_words(folder: Path, spec: Spec, found: Mapping[str, Found], lent: Any) -> str:
    """The tokenizer's words: given, lent, or made of the training texts."""
    texts = [a.text for one in found.values() for a in one.splits["train"].annotations]
    if spec.vocab:
        words = text.load_tokenizer(Path(spec.vocab), lower_case=False).vocabulary
        # A model says whether its words are of cased text; of others, capitals do.
        lower_case = not text.with_capitals(words)
        if lent is not None and words == lent.tokenizer.vocabulary:
            lower_case = lent.tokenizer.lower_case
    else:
        there = finish.read_tokenizer(Path(spec.base)) if spec.base else None
        lower_case = there is None or there.lower_case
        words = text.train_tokenizer(texts, finish.MAX_WORDS, lower_case=lower_case)
        if there is not None:  # whose words keep their numbers
            known = set(there.vocabulary)
            words = (*there.vocabulary, *(word for word in words if word not in known))
    path = folder / finish.WORDS
    finish.write_tokenizer(folder, words, lower_case)
    tokenizer = finish.read_tokenizer(folder)
    ids = [tokenizer.encode_batch([one], 512)[0] for one in texts]
    unknown = sum(bool((one == tokenizer.unk_id).any()) for one in ids)
    line = f"{path.name}: {len(words):,} words" + ("" if lower_case else " of cased text")
    return line + (
        f"; {unknown:,} of {len(texts):,} texts have one that is unknown" if unknown else ""
    )


def _write_clean_split(folder: Path, spec: Spec) -> list[str]:
    """The images that nobody may train on, those of the run's other datasets included."""
    own = sources(spec)
    indexes = {name: finish.split_indexes(folder, name, spec.regions) for name in own}
    base = {}
    if spec.base:
        base = finish.built_indexes(Path(spec.base), spec.regions)
    clean = splits.test_images({**base, **indexes}, own)
    splits.write_clean_split(folder / finish.CLEAN_SPLIT, clean)
    lines = []
    for row in splits.removed({**base, **indexes}, clean, own):
        if row.removed_records and row.dataset in own:
            lines.append(
                f"{row.dataset}: {row.removed_annotations:,} of {row.annotations:,} training "
                "examples are about pictures that are tested on, and left out; "
                "config.data.clean=False keeps them"
            )
        if row.removed_records == row.records:
            raise DataError(
                f"{row.dataset}: all pictures that are trained on are tested on, too; divide by "
                "picture, or set config.data.clean=False"
            )
    return lines


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
    partial.replace(path)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 0 if everything could be built."""
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.data.own",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("spec", type=Path, metavar="SPEC.json")
    parser.add_argument("--data_dir", type=Path, required=True, help="where to build")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args(argv)
    try:
        build(args.data_dir, Spec.from_json(read_json(args.spec, dict)), jobs=args.jobs)
    except (DataError, OSError) as error:
        report.log(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

r"""Builds data sets of a user's own, from JSON lines and pictures, into a data folder of theirs.

    python -m twelve_in_one.data.own NAME --like vqa --jsonl FILE --images keep:PICTURES \
        --data_dir DATA

builds one with its pictures in the records, which systems of pictures train on: tasks name it as
source "questions:NAME/{split}", or "captions:NAME/{split}" if it is like coco, with `data.dir` DATA
and `data.regions` none. The options are the settings of `OwnTaskOptions`, and data sets that DATA
already holds stay. Runs of 12-in-1 build what they need by themselves; they start

    python -m twelve_in_one.data.own SPEC.json --data_dir DATA

with a file that says what to build (`Spec`). The folder is laid out as `data.build` leaves one, and
`own.json` in it says what it holds:

    NAME/REGIONS/1.0.0/     records, as of any dataset
    vocab.txt               words
    answers-NAME.json       answers or labels of heads of their own
    clean_split.json        images that nobody may train on
    pictures-NAME.json      image id -> file
    own.json                settings, and the data folder of the other tasks of the run
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twelve_in_one import atomic
from twelve_in_one.config import defaults
from twelve_in_one.config.paths import local_path
from twelve_in_one.config.settings import OwnTaskOptions, TaskOptions
from twelve_in_one.data.annotations.jsonl import Found
from twelve_in_one.data.builders import answers, finish, region_inputs, report, splits
from twelve_in_one.data.builders.sources import ALL_SOURCES
from twelve_in_one.data.encode import text
from twelve_in_one.data.formats.files import read_json
from twelve_in_one.data.own_inputs import read_all, regions_of
from twelve_in_one.data.own_spec import OWN, PIXELS, Spec, check_files, made_of, read_spec, sources
from twelve_in_one.data.serving import load_serving
from twelve_in_one.data.stored.reader import built_folder, read_build_info, region_names
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.tasks import own as own_tasks
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.own import ANSWER_HEADS, LIKES, own_task
from twelve_in_one.tasks.task import Task

_SETTINGS = [
    field
    for field in dataclasses.fields(OwnTaskOptions)
    if field.name not in {field.name for field in dataclasses.fields(TaskOptions)}
]
_HELP = {
    "like": "most similar one of the twelve",
    "jsonl": "records, one JSON object per line, see data.annotations.jsonl",
    "hf": "instead, a dataset of the Hugging Face library",
    "images": "folder of the pictures; keep:FOLDER puts them into the records",
    "features": "of regions: pixels, photos, none (the default), or a store",
}


def read_pictures(folder: Path, name: str) -> dict[str, Path]:
    """Pictures of a data set by image id, where files exist.

    Raises:
      DataError: the list of them is missing or damaged.
    """
    return {key: Path(path) for key, path in read_json(_pictures(folder, name), dict).items()}


def _pictures(folder: Path, name: str) -> Path:
    return folder / f"pictures-{name}.json"


def build(folder: Path, spec: Spec, *, jobs: int = 1) -> None:
    """Builds everything; keeps the results of an earlier, interrupted call.

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
        task = own_task(name, options)
        lines += _write_answers(folder, task, options, found[name], lent)
        lines += _one_sided(name, task, found[name])
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
            f"--config.task.{name}.max_skipped_share=SHARE",
        )
        # From a build that was interrupted before a file changed.
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

    return load_serving(spec.lends) if spec.lends else None


def _write_answers(
    folder: Path, task: Task, options: OwnTaskOptions, found: Found, lent: Any
) -> list[str]:
    """Answers or labels of a task's own head, or of the head that it shares with the twelve."""
    path = folder / f"answers-{task.head}.json"
    if options.labels:
        answers.write_vocabulary(path, options.labels)
    if KINDS[task.kind].noun != "answer":
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


def _one_sided(name: str, task: Task, found: Found) -> list[str]:
    """Reports if all training records have the same answer: there is nothing to learn."""
    noun = KINDS[task.kind].noun
    annotations = found.splits["train"].annotations if noun else ()
    wanted = {(annotation.label, annotation.answers) for annotation in annotations}
    return [f"{name}: all training records have the same {noun}"] if len(wanted) == 1 else []


def _write_words(folder: Path, spec: Spec, found: Mapping[str, Found], lent: Any) -> str:
    """The tokenizer's words: given, lent, or made from the training texts."""
    texts = [a.text for one in found.values() for a in one.splits["train"].annotations]
    if spec.vocab:
        words = text.load_tokenizer(Path(spec.vocab), lower_case=False).vocabulary
        # A model says whether its words are for cased text; for other words, capitals show it.
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
    """The images that no dataset may train on, including those of the run's other datasets."""
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
            what = "12-in-1 leaves them out" if spec.keep_images else "they are left out"
            lines.append(
                f"{row.dataset}: {row.removed_annotations:,} of {row.annotations:,} training "
                f"examples are about pictures that are tested on: {what} unless "
                "config.data.clean=False"
                + ("; systems of pictures train on them" if spec.keep_images else "")
            )
        if row.removed_records == row.records:
            raise DataError(
                f"{row.dataset}: all pictures that are trained on are tested on, too; divide by "
                "picture, or set config.data.clean=False"
            )
    return lines


def _write_json(path: Path, value: Any) -> None:
    atomic.write(path, json.dumps(value, indent=1))


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `spec` is then a `Spec`, or the path of one."""
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.data.own",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", metavar="NAME", help="of the data set, or SPEC.json")
    parser.add_argument("--data_dir", type=local_path, required=True, help="where to build")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    for field in _SETTINGS:
        kind = type(field.default)
        form: dict[str, Any] = {"nargs": "+"} if kind is tuple else {"type": kind}
        choices = LIKES if field.name == "like" else field.metadata.get("choices")
        parser.add_argument(f"--{field.name}", choices=choices, help=_HELP.get(field.name), **form)
    args = parser.parse_args(argv)
    given = {f.name: x for f in _SETTINGS if (x := getattr(args, f.name)) is not None}
    if args.what.endswith(".json"):
        if given:
            parser.error(f"--{next(iter(given))}: SPEC.json says it")
        args.spec = Path(args.what)
        return args
    if "like" not in given:
        parser.error("--like: say which of the twelve it is most similar to")
    args.spec = _spec_of_one(args.what, given)
    faults = own_tasks.wrong(args.what, args.spec.sets[args.what])
    if faults:
        parser.error("; ".join(f"{args.what}{fault}" for fault in faults))
    return args


def _spec_of_one(name: str, given: Mapping[str, Any]) -> Spec:
    """What to build of one data set; without regions unless their source is given."""
    given = {"features": "none", **given}
    keep, _, folder = given.get("images", "").partition(":")
    if keep == "keep":
        given["images"] = folder
    given = {key: tuple(x) if isinstance(x, list) else x for key, x in given.items()}
    options = OwnTaskOptions(**{**defaults.task_options(given["like"]).to_dict(), **given})
    features = options.features
    regions = features if features in (*PIXELS, "none") else region_inputs.STORED
    return Spec({name: options}, regions, keep_images=keep == "keep")


def _with_those_there(folder: Path, spec: Spec) -> Spec:
    """The data sets to build in a folder, together with those that it already holds.

    Raises:
      DataError: they do not go together.
    """
    others = [name for name in ALL_SOURCES if region_names(folder, name)]
    if others:
        raise DataError(
            f"{folder} holds {', '.join(others)}, whose words and clean split would be lost: name "
            "another --data_dir"
        )
    there = read_spec(folder)
    if there is None:
        return spec
    for key in ("regions", "keep_images"):
        if getattr(there, key) != getattr(spec, key):
            raise DataError(
                f"{folder}: {', '.join(there.sets)} there with {key} {getattr(there, key)!r}, now "
                f"{getattr(spec, key)!r}: name another --data_dir"
            )
    return dataclasses.replace(there, sets={**there.sets, **spec.sets})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if everything could be built."""
    args = parse_arguments(argv)
    try:
        if isinstance(args.spec, Spec):
            spec = _with_those_there(args.data_dir, args.spec)
            check_files(spec)
        else:
            spec = Spec.from_json(read_json(args.spec, dict))
        build(args.data_dir, spec, jobs=args.jobs)
    except (DataError, OSError) as error:
        report.log(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twelve_in_one import atomic
from twelve_in_one.config.settings import OwnTaskOptions
from twelve_in_one.data.annotations.jsonl import Found
from twelve_in_one.data.builders import answers, finish, report, splits
from twelve_in_one.data.encode import text
from twelve_in_one.data.formats.files import read_json
from twelve_in_one.data.own_inputs import read_all, regions_of
from twelve_in_one.data.own_spec import OWN, Spec, made_of, sources
from twelve_in_one.data.serving import load_serving
from twelve_in_one.data.stored.reader import built_folder, read_build_info, region_names
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.own import ANSWER_HEADS, own_task
from twelve_in_one.tasks.task import Task


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
    atomic.write(path, json.dumps(value, indent=1))


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0 if everything could be built."""
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

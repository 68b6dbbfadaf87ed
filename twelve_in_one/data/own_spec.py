"""The user's data sets that a run needs built, and whether a folder holds them (`data.own`)."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twelve_in_one.config.settings import OwnTaskOptions, RunConfig, TaskOptions
from twelve_in_one.data.builders import finish, region_inputs
from twelve_in_one.data.builders.sources import Source
from twelve_in_one.data.formats.files import read_json
from twelve_in_one.data.serving import TASKS_FILE, load_serving
from twelve_in_one.data.stored.records import AnnotationSet, DataError
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.own import ANSWER_HEADS, own_task

OWN = "own.json"
_FILES = ("jsonl", "val_jsonl", "test_jsonl", "answers")
# Settings that a built data set does not depend on.
_OF_TRAINING = frozenset(
    {field.name for field in dataclasses.fields(TaskOptions)} - {"candidates"}
    | {"title", "max_skipped_share"}
)
PIXELS = ("pixels", "photos")
_STORE = (
    "name a store of the same detector's features with config.task.NAME.features=lmdb:PATH, or "
    "another format"
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """The data sets to build.

    Attributes:
      sets: task name -> settings; each states its `features`.
      regions: name of the region features of the run.
      base: data folder of the run's other tasks; "" if it has none.
      vocab: words to use; "" makes them.
      lends: model folder that lends words and answers; "" if there is none.
      keep_images: put the pictures' own bytes into the records, for systems of pictures.
    """

    sets: Mapping[str, OwnTaskOptions]
    regions: str
    base: str = ""
    vocab: str = ""
    lends: str = ""
    keep_images: bool = False

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Spec":
        """The inverse of `dataclasses.asdict`, after a round trip through JSON."""
        sets = {
            name: OwnTaskOptions(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in x.items()}
            )
            for name, x in raw["sets"].items()
        }
        # Those of earlier versions say nothing about pictures.
        known = {name: raw[name] for name in ("regions", "base", "vocab", "lends")}
        return cls(**known, sets=sets, keep_images=raw.get("keep_images", False))


def own_options(run: RunConfig) -> dict[str, OwnTaskOptions]:
    """Settings of the run's tasks on the user's own data sets."""
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
    if len(kinds) == 1 and kinds & {*PIXELS, "none"}:
        return kinds.pop()
    return region_inputs.STORED


def _features(run: RunConfig, options: OwnTaskOptions) -> str:
    """The source of a data set's regions.

    Raises:
      DataError: it is not given.
    """
    if options.features:
        return options.features
    if any(not isinstance(run.task[name], OwnTaskOptions) for name in run.tasks):
        if run.data.regions in (*PIXELS, "none"):
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
    """`Serving` of the model that the run begins with; None if there is none."""
    path = _model_folder(run)
    return load_serving(path) if path else None


def _model_folder(run: RunConfig) -> Path | None:
    """The model folder that a run begins with; None for a bare checkpoint, or nothing."""
    if not run.init_from.path:
        return None
    path = Path(run.init_from.path)
    path = path / "model" if (path / "model").is_dir() else path
    return path if (path / TASKS_FILE).is_file() else None


def spec_of(run: RunConfig) -> Spec:
    """The data sets that a run needs built.

    Raises:
      DataError: the source of regions is not given.
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
    """Raises a DataError that lists all missing files and folders."""
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
    """Data that tell whether a built folder fits a run; "" for a file that does not exist."""
    words = Path(spec.vocab) if spec.vocab else Path(spec.base) / finish.WORDS
    made = {"regions": spec.regions, "words": _hash(words)}
    if spec.keep_images:
        made["images"] = "keep"
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
    """Returns whether a data folder holds the wanted data sets.

    Raises:
      DataError: it holds something else.
    """
    if not (folder / OWN).is_file():
        return False
    there, here = read_json(folder / OWN, dict)["made_of"], made_of(spec)
    # A file that has since disappeared does not count as another file.
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
    """The inputs of a data folder's build; None if it holds no data sets of a user.

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
    """The data sets, described like other datasets, but without a reader."""
    named = {}
    domains: dict[str, str] = {}
    for name, options in spec.sets.items():
        where = options.images or options.hf
        # Two data sets on one folder share its images' ids.
        domain = options.collection or domains.setdefault(where, f"own/{name}")
        task = own_task(name, options)
        named[name] = Source(
            name,
            domain,
            "",
            _no_reader,
            scores_annotated_boxes=options.candidates == "annotated",
            keeps_texts=KINDS[task.kind].ranked,
        )
    return named


def _no_reader(folder: Path, split: str) -> AnnotationSet:
    raise DataError(f"{folder}: {split} has been read already")

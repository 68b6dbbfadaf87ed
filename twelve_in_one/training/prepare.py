"""Makes the generated world and its datasets if a run needs them and they are missing."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from twelve_in_one.checkpoints import lock
from twelve_in_one.config.check import reads_pictures, task_runs
from twelve_in_one.config.image_settings import ImageTaskOptions
from twelve_in_one.config.settings import RunConfig
from twelve_in_one.data import own, own_inputs, own_spec
from twelve_in_one.data.image_inputs import built_dataset
from twelve_in_one.data.stored.reader import is_built
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.world import detection, make

_FEW_PICTURES = 64  # up to here, starting further processes costs more time than it saves


def missing_datasets(run: RunConfig) -> tuple[str, ...]:
    """Tasks of the run whose datasets are not built."""
    folder = Path(run.data.dir)
    return tuple(
        name
        for name in run.tasks
        if name not in own_spec.own_options(run) and not is_built(folder, name, run.data.regions)
    )


def prepare(run: RunConfig, workdir: Path) -> None:
    """Makes missing data; existing data must come from the run's sources. For one process only.

    Waits if another process is already making it.

    Raises:
      DataError: datasets are missing and the run does not name their source; or they were made
        from another source; or the user's own records cannot be used.
    """
    if any(isinstance(options, ImageTaskOptions) for options in run.task.values()):
        _prepare_pictures(run)
        return
    if not own_spec.own_options(run):
        _prepare_others(run)
        return
    # Report mistakes in a user's files before any slow work.
    folder, _ = own_spec.data_folder(run, workdir)
    begun_with = run.init_from.path
    if begun_with and not Path(begun_with).exists() and own_spec.read_spec(folder):
        _prepare_others(run)  # a resumed run no longer needs it
        return
    spec = own_spec.spec_of(run)
    if own_spec.is_built(folder, spec):
        _prepare_others(run)
        return
    own_spec.check_files(spec)
    found = own_inputs.read_all(folder, spec)
    _prepare_others(run)
    folder.mkdir(parents=True, exist_ok=True)
    with lock.awaited(folder / ".lock"):
        if own_spec.is_built(folder, spec):
            return
        if sum(len(one.pictures) for one in found.values()) <= _FEW_PICTURES:
            own.build(folder, spec)
            return
        path = folder / "spec.json"
        path.write_text(json.dumps(dataclasses.asdict(spec)), encoding="utf-8")
        try:
            _command("data.own", str(path), "--data_dir", str(folder))
        finally:
            path.unlink()


def prepare_encoder(run: RunConfig) -> None:
    """Makes the encoder that a run of pictures begins with, if it says of what. For one process.

    Raises:
      DataError: it cannot be made.
    """
    path = Path(run.init_from.path)
    if not run.images.encoder or not run.init_from.path or path.exists():
        return
    with lock.awaited(path.absolute().with_name(f".{path.name}.lock")):
        if not path.exists():
            _command("convert", run.images.encoder, str(path), "--to", "encoder")


def _prepare_pictures(run: RunConfig) -> None:
    """`prepare` for a system of pictures: the world, and datasets built with their pictures."""
    names = sorted(
        {name for task in task_runs(run) if (name := built_dataset(task.options.source))}
    )
    if run.data.world_detection:
        _make_detection(run)
    folder = Path(run.data.dir).absolute()
    missing = [name for name in names if not is_built(folder, name, run.data.regions)]
    raw = Path(run.data.raw_dir)
    if run.data.world_images:
        with lock.awaited(raw.absolute().with_name(f".{raw.name}.lock")):
            if not make.is_made(raw, *_world_arguments(run)):
                _make_world(run)
            for name in missing:
                _command(
                    "data.build", name, "--manual_dir", run.data.raw_dir, "--data_dir",
                    run.data.dir, "--features", "none", "--images", "keep",
                )  # fmt: skip
    elif missing:
        raise DataError(
            f"{run.data.dir}: not built: {', '.join(missing)}. Run `python -m "
            f"twelve_in_one.data.build NAME --manual_dir RAW --data_dir {run.data.dir} --features "
            f"{run.data.regions} --images keep` for each (data.own for data sets of your own), or "
            "say with data.world_images how large a generated world to make"
        )


def _make_detection(run: RunConfig) -> None:
    """Makes the set of named things, unless it is there."""
    data, raw = run.data, Path(run.data.raw_dir)
    sources = data.world_pictures, data.world_other_pictures
    options = {"--images": data.world_detection, "--seed": data.world_seed}
    options |= {k: v for k, v in zip(("--pictures", "--others"), sources, strict=True) if v}
    with lock.awaited(raw.absolute().with_name(f".{raw.name}.lock")):
        wanted = detection.arguments(data.world_detection, data.world_seed, *sources)
        if not detection.is_made(raw, wanted):
            given = [str(x) for pair in options.items() for x in pair]
            _command("world.detection", "--out", data.raw_dir, *given)


def _world_arguments(run: RunConfig) -> tuple[Any, ...]:
    """Arguments of `make.is_made` after the folder."""
    data = run.data
    covers = (data.world_covers, data.world_cover_side, data.world_cover_words)
    sets = make.DecoderSets(
        data.world_class_pictures, *(covers if data.world_covers else ()), clips=data.world_clips
    )
    return data.world_images, data.world_seed, data.world_more_captions, sets


def _make_world(run: RunConfig) -> None:
    data = run.data
    sizes = {
        "--images": data.world_images,
        "--more_captions": data.world_more_captions,
        "--seed": data.world_seed,
        "--class_pictures": data.world_class_pictures,
        "--clips": data.world_clips,
    }
    if data.world_covers:
        sizes |= {
            "--covers": data.world_covers,
            "--cover_side": data.world_cover_side,
            "--cover_words": data.world_cover_words,
        }
    given = {option: size for option, size in sizes.items() if size or option == "--seed"}
    _command("world", "--out", data.raw_dir, *(str(x) for pair in given.items() for x in pair))


def _prepare_others(run: RunConfig) -> None:
    """`prepare` for all datasets but the user's own."""
    if run.data.held_out_dir and not run.data.samples_dir:
        raise DataError(
            f"config.data.held_out_dir={run.data.held_out_dir} needs config.data.samples_dir, what "
            "to train on: set TWELVE_IN_ONE_SAMPLES"
        )
    for name in ("samples_dir", "held_out_dir"):
        folder = getattr(run.data, name)
        if folder and not Path(folder).is_dir():
            raise DataError(f"config.data.{name}={folder}: no such folder")
    if run.data.samples_dir or (run.data.world_images and missing_datasets(run)):
        folder = Path(run.data.dir).absolute()
        with lock.awaited(folder.with_name(f".{folder.name}.lock")):
            _make(run)
    raw = Path(run.data.raw_dir)
    if run.data.world_images and run.data.raw_dir and raw.exists():
        try:
            make.is_made(raw, *_world_arguments(run))
        except ValueError as error:
            raise DataError(
                f"config.data.raw_dir: {error}, and another config.data.dir; or take what is there "
                "with config.data.world_images=0"
            ) from error
    missing = missing_datasets(run)
    if missing:
        raise DataError(
            f"{run.data.dir}: not built with region features {run.data.regions!r}: "
            f"{', '.join(missing)}. Run `python -m twelve_in_one.data.build NAME --data_dir "
            f"{run.data.dir} ...` for each, leave them out of config.tasks, or say what to make "
            "them of: data.samples_dir (the config real_samples takes $TWELVE_IN_ONE_SAMPLES) or "
            "data.world_images"
        )


def _make(run: RunConfig) -> None:
    missing = missing_datasets(run)
    raw, data = run.data.raw_dir, run.data.dir
    if run.data.samples_dir:  # also if all data exists: it refuses data from other files
        held_out = ["--held_out", run.data.held_out_dir] if run.data.held_out_dir else []
        _command(
            "data.real_samples", "--samples", run.data.samples_dir, "--data_dir", data, *held_out
        )
    elif missing and run.data.world_images:
        _make_world(run)
        keep = ("--images", "keep") if reads_pictures(run) else ()
        _command("data.build", "all", "--manual_dir", raw, "--data_dir", data, *keep)


def _command(module: str, *arguments: str) -> None:
    """Runs one of our commands, which resumes after a kill and prints its own errors.

    It gets its own process because it starts several, which would import all modules of this one.
    """
    command = [sys.executable, "-m", f"twelve_in_one.{module}", *arguments]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise DataError(f"`{' '.join(command)}` failed with exit code {code}")

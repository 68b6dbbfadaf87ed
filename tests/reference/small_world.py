"""A small world with its built data folder, made once per run, and the build command."""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a command."""

    code: int
    out: str
    err: str


@dataclasses.dataclass(frozen=True)
class SmallWorld:
    """Raw files, the folder built from them by `build all`, and the command's output."""

    raw: Path
    data: Path
    outcome: Outcome

    def built(self, name: str) -> Path:
        """Folder of a built dataset."""
        from twelve_in_one.data.stored.reader import built_folder

        return built_folder(self.data, name, "pixels")

    @property
    def regions(self) -> Path:
        """Folder of the stores of regions, one per collection."""
        (folder,) = (self.data / "regions").iterdir()
        return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the run, shared by its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def run_build() -> Callable[..., Outcome]:
    """Runs the build command in this process: `run_build(name, raw, data, *options)`."""
    return _run_build


def _run_build(name: str, raw: Path, data: Path, *options: str | Path) -> Outcome:
    from twelve_in_one.data import build

    out, err = io.StringIO(), io.StringIO()
    folders = ["--manual_dir", str(raw), "--data_dir", str(data)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = build.main([name, *folders, "--jobs", "1", *map(str, options)])
        except SystemExit as error:  # from argparse
            code = error.code
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def small_world(run_folder: Path) -> SmallWorld:
    """100 pictures and all thirteen datasets about them. Do not write to its folders."""
    from twelve_in_one.world import __main__ as world_command

    folder = run_folder / "small_world"
    with _locked(run_folder / "small_world.lock"):
        if not (folder / "outcome.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            silence = io.StringIO()
            with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
                arguments = ["--out", str(folder / "raw"), "--images", "100", "--jobs", "1"]
                assert world_command.main(arguments) == 0
            outcome = _run_build("all", folder / "raw", folder / "data")
            (folder / "outcome.json").write_text(json.dumps(dataclasses.asdict(outcome)))
    outcome = Outcome(**json.loads((folder / "outcome.json").read_text()))
    assert outcome.code == 0, outcome.err
    return SmallWorld(folder / "raw", folder / "data", outcome)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def raw_copy(small_world: SmallWorld, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of some folders of the world's raw files: `raw_copy("nlvr2", "images")`."""

    def copy(*names: str) -> Path:
        for name in names:
            shutil.copytree(small_world.raw / name, tmp_path / "raw" / name)
        return tmp_path / "raw"

    return copy


@pytest.fixture
def data_copy(small_world: SmallWorld, tmp_path: Path) -> Path:
    """A copy of the built data folder, including file times."""
    return shutil.copytree(small_world.data, tmp_path / "data")

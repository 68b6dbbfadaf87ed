"""`docs/your_own_data.md`: every record, command and snippet in it does what it says."""

import importlib
import json
import re
import shlex
import warnings
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image, ImageDraw
from reference.small_model import SMALL_MODEL

from twelve_in_one import configs, train
from twelve_in_one.config import check
from twelve_in_one.data.annotations import jsonl
from twelve_in_one.data.stored.reader import built_folder, open_split
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.tasks.task import VERDICTS
from twelve_in_one.tasks.twelve import TASKS
from twelve_in_one.training import job

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "your_own_data.md").read_text()
NAMES = "abcdefgh"
COLOURS = ("red", "blue")
# Sizes of a test; on a page they would say nothing.
SMALL = {
    "schedule.num_rounds": 2,
    "schedule.min_validation_rounds": 1,
    "schedule.max_validation_rounds": 1,
    "evaluation.text_baselines": False,
    "evaluation.pictures": 1,
    "parallel.devices": 1,
    "log.tensorboard": False,
    **SMALL_MODEL,
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands():
    """Each command as its words, by what it begins with: ("train", workdir), ("predict", ...)."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    found = {}
    for line in filter(None, lines):
        python, dash, module, *words = shlex.split(line)
        assert (python, dash) == ("python", "-m")
        workdir = [
            w.removeprefix("--workdir=workdir/") for w in words if w.startswith("--workdir=")
        ]
        found[module.removeprefix("twelve_in_one."), *workdir] = words
    return found


COMMANDS = commands()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as the page supposes it: photos and files of records."""
    folder = tmp_path_factory.mktemp("own_data")
    (folder / "photos").mkdir()
    questions, statements = [], []
    for i, name in enumerate(NAMES):
        picture = Image.new("RGB", (40, 32), (220, 220, 210))
        ImageDraw.Draw(picture).rectangle([6 + i, 6, 22 + i, 20], fill=COLOURS[i % 2])
        picture.save(folder / f"photos/{name}.jpg")
        about = {"image": f"{name}.jpg"}
        questions.append(about | {"question": "what colour is it?", "answer": COLOURS[i % 2]})
        questions.append(about | {"question": "is it red?", "answer": ("yes", "no")[i % 2]})
        label = ("fine", "damaged", "unclear")[i % 3]
        statements.append(about | {"statement": "it is whole", "label": label})
    files = {"my": questions, "inspection": statements}
    files |= {"train": questions[:8], "val": questions[8:12], "test": questions[12:]}
    for name, records in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


def config_of(words, monkeypatch, **more):
    """The config that the command line gives."""
    tasks = [w for w in words if re.match(r"--config\.task\.\w+\.like=", w)]
    sizes = {f"task.{w.split('.')[2]}.batch_size": 4 for w in tasks} | SMALL | more
    argv = ["train", *(w for w in words if not w.startswith("--workdir"))]
    given = re.compile("--config=(.*)")
    argv = [given.sub(lambda match: f"--config={configs.locate(match[1])}", w) for w in argv]
    argv += [f"--config.{key}={value}" for key, value in sizes.items()]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
    values["config"].parser = train.ConfigParser(values["config"].parser, argv)
    monkeypatch.setattr("sys.argv", argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of how the library loads a file
        values(argv)
    return values.config


def opened(name, place, monkeypatch, **more):
    """A run of the page, as far as the programs would be compiled."""
    monkeypatch.chdir(place)
    config = config_of(COMMANDS["train", name], monkeypatch, **more)
    return job.open_job(check.check(config), Path("workdir") / name)


@pytest.mark.parametrize("row", re.findall(r"\| `\{.*\}` \|", PAGE))
def test_records(row, tmp_path):
    """Those of the table are of the kind that it says."""
    like = re.search(rf"`([\w+]+)`[^\n]*{re.escape(row)}", PAGE)
    task = TASKS[PAGE[like.start() + 1 : like.end(1)]]
    record = json.loads(row.strip("|` "))
    (tmp_path / "r.jsonl").write_text(
        "\n".join(json.dumps(record | {"split": s}) for s in ("train", "val"))
        + "\n"
        + json.dumps({**record, "image": "c.jpg", "split": "train"})
    )
    images = task.rows_per_example if task.kind == "verdict" else 1
    rules = jsonl.Rules(task.kind, images, lambda name: None, labels=VERDICTS.get(task.head, ()))
    found = jsonl.read([jsonl.file_part(tmp_path / "r.jsonl")], rules)
    assert not any(split.skipped for split in found.splits.values())
    assert not any("not read" in note for note in found.notes)


@pytest.fixture(scope="module")
def trained(place, request):
    """The first run of the page, to its end."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(place)
        cache = str(place.parent / "programs")
        config = config_of(COMMANDS["train", "mine"], monkeypatch, compilation_cache=cache)
        results = train.train(config, place / "workdir" / "mine")
    return results


def run(name, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    module = importlib.import_module(f"twelve_in_one.{name}")
    if name == "predict":
        module = importlib.import_module("twelve_in_one.predict.__main__")
    assert module.main(COMMANDS[name,]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_train_score_and_ask(place, trained, monkeypatch, capsys):
    assert trained["tasks"]["mine"]["examples"] > 0
    assert "mine" in run("evaluate", place, monkeypatch, capsys)
    predicted = place / "workdir/mine/predictions/mine-test.jsonl"
    answers = json.loads((place / "workdir/mine/data/answers-mine.json").read_text())
    rows = [json.loads(line) for line in predicted.read_text().splitlines()]
    assert len(rows) == trained["tasks"]["mine"]["examples"]
    assert {row["answer"] for row in rows} <= set(answers) == {"red", "blue", "yes", "no"}
    report = (place / "workdir/mine/report.html").read_text()
    assert "mine" in report and "data:image" in report
    for name in ("my.jsonl", "photos", "workdir/mine/data"):  # the model needs none of them
        (place / name).rename(place / f"{name}-away")
    (place / "photos").mkdir()
    (place / "photos/a.jpg").write_bytes((place / "photos-away/a.jpg").read_bytes())
    try:
        said = run("predict", place, monkeypatch, capsys)
        assert said.startswith("photos/a.jpg: what is on the stove?")
        run("export", place, monkeypatch, capsys)
    finally:
        (place / "photos/a.jpg").unlink()
        (place / "photos").rmdir()
        for name in ("my.jsonl", "photos", "workdir/mine/data"):
            (place / f"{name}-away").rename(place / name)


def test_resumed_with_a_changed_file(place, trained, monkeypatch, tmp_path):
    changed = (place / "my.jsonl").read_text().replace("is it red?", "is it blue?")
    (tmp_path / "my.jsonl").write_text(changed)
    words = [w.replace("my.jsonl", str(tmp_path / "my.jsonl")) for w in COMMANDS["train", "mine"]]
    monkeypatch.chdir(place)
    run_config = check.check(config_of(words, monkeypatch))
    with pytest.raises(DataError, match="other settings or files: mine.jsonl"):
        job.open_job(run_config, Path("workdir/mine"))


def test_files_of_splits(place, monkeypatch):
    found = opened("three-files", place, monkeypatch)
    assert found.train_streams["mine"].selection.num_examples == 8
    assert found.val_streams["mine"].selection.num_examples == 4


def test_labels(place, monkeypatch):
    found = opened("inspection", place, monkeypatch)
    assert found.system.config.own_heads == (("inspection", 4, 1),)
    assert found.inputs.folder.answers["inspection"] == ("fine", "damaged", "unclear", "other")


def test_together_with_the_twelve(place, small_world, monkeypatch):
    world = {"data.dir": small_world.data, "data.raw_dir": small_world.raw}
    found = opened("both", place, monkeypatch, **world, **{"data.world_images": 0})
    assert found.names == ("vqa", "mine")
    tokens = [task.task.task_id for task in found.tasks]
    assert tokens[0] == 1 and tokens[1] not in {task.task_id for task in TASKS.values()}
    assert {"vqa", "gqa", "mine"} == set(found.inputs.folder.answers)
    assert found.inputs.folder.built("vqa").is_relative_to(small_world.data)


def test_begin_with_a_trained_model(place, trained, monkeypatch):
    found = opened("tuned", place, monkeypatch)
    (words,) = {(place / f"workdir/{n}/data/vocab.txt").read_text() for n in ("mine", "tuned")}
    assert words and found.run.init_from.allow_missing[-1] == "heads/more/.*"
    assert found.serving.preprocessing.image_descriptor == "pixels-1-cluttered-36"


def test_hugging_face(place, monkeypatch):
    pytest.importorskip("datasets", reason="the extra hf is not installed")
    monkeypatch.chdir(place)
    snippet = next(block for block in blocks("python") if "import datasets" in block)
    exec(snippet, {})
    found = opened("hub", place, monkeypatch)
    assert found.train_streams["mine"].selection.num_examples == 2


def test_pictures_in_records(place, monkeypatch, capsys):
    assert "mine" in run("data.own", place, monkeypatch, capsys)
    built = built_folder(place / "workdir/own", "mine", "none")
    (picture,) = open_split(built, "train").record(0).pictures
    assert picture.data in [file.read_bytes() for file in (place / "photos").glob("*.jpg")]


def test_a_config_file():
    snippet = next(block for block in blocks("python") if "get_config" in block)
    names = {}
    exec(snippet, names)
    run_config = check.check(names["get_config"]())
    assert run_config.tasks == ("vqa", "nlvr2", "mine")
    assert run_config.task["mine"].jsonl == "my.jsonl"


def test_all_commands_are_tried():
    done = ["mine", "three-files", "inspection", "both", "tuned", "hub"]
    tried = {*(("train", name) for name in done), ("evaluate",), ("predict",), ("export",)}
    tried.add(("data.own",))
    assert set(COMMANDS) == tried
    assert len(blocks("python")) == 2

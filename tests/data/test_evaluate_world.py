"""The evaluate command on a small world: all tasks, submissions, a run that is followed."""

import dataclasses
import json
import re
import shutil
import sys

import jax
import numpy as np
import optax
import pytest
from reference.small_model import SMALL_MODEL, one_layer
from reference.spoiled_files import truncate_arrays

from twelve_in_one import evaluate
from twelve_in_one.checkpoints import model_folder, state
from twelve_in_one.config import defaults
from twelve_in_one.config.settings import task_key
from twelve_in_one.data import trained_on
from twelve_in_one.data.serving import Serving, load_serving
from twelve_in_one.data.streams import open_folder, open_stream, preprocessing_of
from twelve_in_one.evaluators import rows as evaluation
from twelve_in_one.models.two_stream.config import named_size
from twelve_in_one.models.two_stream.trunk import init_params
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.tasks.metrics import vqa
from twelve_in_one.tasks.twelve import TWELVE
from twelve_in_one.training import steps

TASKS = {
    task.name: dataclasses.replace(
        task,
        max_tokens=24,
        max_regions=17 + 12 * (task.kind == "choice"),
        detected_slots=17,
        num_choices={"visual7w": 4, "guesswhat": 12}.get(task.name, 0),
        batch_size=64,
    )
    for task in TWELVE
}


@pytest.fixture(scope="module")
def trained(small_world, tmp_path_factory):
    """A model folder with random weights."""
    folder = open_folder(small_world.data, "pixels")
    config = dataclasses.replace(
        one_layer(named_size("tiny")),
        vocab_size=folder.tokenizer.vocab_size,
        region_feature_dim=186,
        num_vqa_answers=len(folder.answers["vqa"]),
        num_gqa_answers=len(folder.answers["gqa"]),
    )
    tasks = tuple(TASKS.values())
    serving = Serving(tasks, folder.tokenizer, folder.answers, preprocessing_of(folder, tasks, 186))
    path = tmp_path_factory.mktemp("evaluate") / "model"
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles fast
    params = jax.jit(init_params, static_argnums=0)(config, key)
    model_folder.save(path, params, Vilbert(config), serving)
    return path


@pytest.fixture(scope="module")
def run(small_world, trained):
    """run(*options): the exit code of the command on the model."""

    def command(*options, data=small_world.data):
        arguments = ["--model", trained, "--data_dir", data, "--features", "pixels", *options]
        return evaluate.main(list(map(str, arguments)))

    return command


@pytest.fixture(scope="module")
def results(run, small_world, tmp_path_factory):
    """Of all twelve tasks, and the folder of their submissions."""
    folder = tmp_path_factory.mktemp("results")
    output = folder / "results.json"
    assert run("--submissions", folder / "files", "--output", output, "--batch_size", 40) == 0
    return json.loads(output.read_text()), folder / "files"


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_cut_texts_are_told(results, small_world):
    found, _ = results
    questions = json.loads((small_world.raw / "gqa/testdev_balanced_questions.json").read_text())
    tokenize = open_folder(small_world.data, "pixels").tokenizer.tokenize
    lengths = [len(tokenize(record["question"])) + 2 for record in questions.values()]
    long = sum(length > TASKS["gqa"].max_tokens for length in lengths)
    assert long > 0
    gqa, guesswhat = found["cut_texts"]  # all others are short enough
    assert gqa == (
        f"gqa/test: {long} of {len(lengths)} texts have more than max_tokens 24 tokens, and their "
        f"ends are cut off; the longest has {max(lengths)}"
    )
    assert guesswhat.startswith("guesswhat/test: ")
    assert evaluate._table(found).splitlines()[-2:] == found["cut_texts"]


def test_all_twelve(results, census):
    found, _ = results
    assert list(found["tasks"]) == list(TASKS)
    assert found["unscored"] == {} and found["split"] == "reported"
    assert found["tasks"]["vgqa"]["metrics"]["vocabulary_recall"] == 0  # of so few words
    scores = [entry["score"] for entry in found["tasks"].values()]
    assert found["average"] == pytest.approx(np.mean(scores))
    for name, entry in found["tasks"].items():
        splits = defaults.task_options(name).test_splits
        assert entry["examples"] == sum(len(census.examples[name][s]) for s in splits) or (
            name == "vgqa"  # whose val is cleaned
        )
        assert 0 <= entry["score"] <= 1


def test_both_test_splits_count_by_their_examples(results, census):
    entry = results[0]["tasks"]["refcoco"]
    sizes = [len(census.examples["refcoco"][split]) for split in ("testA", "testB")]
    parts = [entry["metrics"][f"{split}/accuracy"] for split in ("testA", "testB")]
    assert entry["score"] == pytest.approx(np.average(parts, weights=sizes))
    assert entry["score"] <= entry["metrics"]["oracle_recall"] <= 1
    assert entry["protocol"] == "detected"


def test_predicted_boxes_are_those_that_were_scored(results):
    found, files = results
    for name in ("refcoco", "refcoco+", "refcocog"):
        splits = ("test",) if name == "refcocog" else ("testA", "testB")
        lines = [row for split in splits for row in rows(files / f"{name}-{split}.jsonl")]
        share = np.mean([row["iou"] > 0.5 for row in lines])
        assert share == pytest.approx(found["tasks"][name]["score"])
    for name in ("visual7w", "guesswhat"):
        lines = rows(files / f"{name}-test.jsonl")
        share = np.mean([row["choice"] == row["target"] for row in lines])
        assert share == pytest.approx(found["tasks"][name]["score"])
    for name in ("coco", "flickr30k"):
        lines = rows(files / f"{name}-test.jsonl")
        share = np.mean([row["rank"] == 1 for row in lines])
        assert share == pytest.approx(found["tasks"][name]["score"])


def official_of(results, name, split="test"):
    return results[0]["tasks"][name]["official"][split]


def test_official_figures_of_questions(results, small_world):
    """From the submitted files and the raw annotations."""
    found, files = results
    raw = json.loads((small_world.raw / "vqa/v2_mscoco_val2014_annotations.json").read_text())
    annotated = {record["question_id"]: record for record in raw["annotations"]}
    points = {}
    for row in json.loads((files / "vqa-val.json").read_text()):
        record = annotated[row["question_id"]]
        people = [given["answer"] for given in record["answers"]]
        points.setdefault(record["answer_type"], []).append(vqa.accuracy(row["answer"], people))
    by_type = {kind: 100 * np.mean(scores) for kind, scores in points.items()}
    overall = 100 * np.mean([score for scores in points.values() for score in scores])
    official = official_of(results, "vqa", "val")
    assert official["figures"] == pytest.approx({"accuracy": overall} | by_type, abs=0.006)
    assert official["score"] == official["figures"]["accuracy"]
    questions = json.loads((small_world.raw / "gqa/testdev_balanced_questions.json").read_text())
    rows = json.loads((files / "gqa-test.json").read_text())
    right = {}
    for row in rows:
        question = questions[row["questionId"]]
        kind = "open" if question["types"]["structural"] == "query" else "binary"
        right.setdefault(kind, []).append(row["prediction"] == question["answer"])
    official = official_of(results, "gqa")
    for kind, hits in right.items():
        assert official["figures"][kind] == pytest.approx(100 * np.mean(hits))
    assert "testdev" in official["not_computed"]["validity, plausibility"]
    assert found["tasks"]["vgqa"]["official"] == {}  # it has no program


def test_official_figures_of_other_tasks(results):
    files = results[1]
    for split in ("testA", "testB"):
        share = np.mean([row["iou"] > 0.5 for row in rows(files / f"refcoco-{split}.jsonl")])
        assert official_of(results, "refcoco", split)["score"] == pytest.approx(100 * share)
    for name in ("coco", "flickr30k"):
        ranks = np.array([row["rank"] for row in rows(files / f"{name}-test.jsonl")])
        figures = official_of(results, name)["figures"]
        for k in (1, 5, 10):
            assert figures[f"R@{k}"] == pytest.approx(100 * np.mean(ranks <= k))
        assert figures["median_rank"] == np.floor(np.median(ranks))
    lines = rows(files / "guesswhat-test.jsonl")
    share = np.mean([row["choice"] == row["target"] for row in lines])
    assert official_of(results, "guesswhat")["figures"] == {"accuracy": pytest.approx(100 * share)}
    assert official_of(results, "nlvr2")["figures"].keys() == {"accuracy", "consistency"}


def test_the_same_as_scoring_batches_by_hand(small_world, trained, results):
    """SNLI-VE and RefCOCO's testA, straight from the stream and the model."""
    params, system, serving = model_folder.load(trained)
    folder = open_folder(small_world.data, "pixels")
    for name, split in (("snli_ve", "test"), ("refcoco", "testA")):
        task = serving.task(name)
        batches = open_stream(folder, task, split, batch_size=32, training=False)
        step = jax.jit(evaluation.make_eval_step(system, task))
        score = count = 0.0
        for number in range(batches.selection.num_batches):
            batch = batches.batch(number)
            del batch["example_id"]
            sums = step(params, batch).sums
            score, count = score + float(sums.score), count + float(sums.count)
        metrics = results[0]["tasks"][name]["metrics"]
        found = metrics["accuracy" if split == "test" else f"{split}/accuracy"]
        assert found == pytest.approx(score / count)


def test_annotated_candidates_need_features(run, capsys):
    """The world's referring expressions have none of annotated boxes."""
    options = ["--tasks", "refcoco", "--split", "val", "--candidates", "annotated"]
    assert run(*options) == 1
    assert "annotated boxes without region features" in capsys.readouterr().err


def test_a_model_brings_its_own_answers(run, small_world, results, tmp_path, capsys):
    """Those of the data, in whatever order, are not its labels: said, and of no effect."""
    data = shutil.copytree(small_world.data, tmp_path / "data")
    answers = json.loads((data / "answers-gqa.json").read_text())
    (data / "answers-gqa.json").write_text(json.dumps(answers[::-1]))
    output = tmp_path / "results.json"
    options = ["--tasks", "gqa", "--output", output, "--batch_size", 40]
    assert run(*options, data=data) == 0
    said = capsys.readouterr().err
    assert f"note: {data / 'answers-gqa.json'} is not used" in said and "answer 0" in said
    found = json.loads(output.read_text())["tasks"]["gqa"]
    assert found["official"] == results[0]["tasks"]["gqa"]["official"]
    assert found["trained_on"]["test"]["records"] == 0
    assert found["trained_on"]["test"]["unknown"][0].endswith("model was trained on")


def test_what_the_model_was_trained_on_is_left_out(trained, small_world, tmp_path, capsys):
    """A model folder says what its training saw, wherever it is evaluated."""
    folder = open_folder(small_world.data, "pixels")
    serving = load_serving(trained)
    stream = open_stream(folder, TASKS["snli_ve"], "test", batch_size=8, training=False)
    index = stream.selection.reader.index
    some = index.example_keys[1::3]
    model = shutil.copytree(trained, tmp_path / "model")
    images = trained_on.of_streams([stream]).images
    seen = trained_on.TrainedOn({"snli_ve": np.sort(some)}, images)
    (model / trained_on.FILE).write_bytes(trained_on.to_bytes(seen))
    files = json.loads((model / "files.json").read_text())
    size = (model / trained_on.FILE).stat().st_size
    (model / "files.json").write_text(json.dumps(files | {trained_on.FILE: size}))
    assert load_serving(model) == serving
    output = tmp_path / "results.json"
    options = ["--model", model, "--data_dir", small_world.data, "--features", "pixels"]
    options += ["--tasks", "snli_ve", "--output", output, "--batch_size", 40]

    def evaluated(*more):
        assert evaluate.main(list(map(str, [*options, *more]))) == 0
        return json.loads(output.read_text())["tasks"]["snli_ve"]

    found, total = evaluated(), index.num_examples
    assert found["examples"] == total - len(some) == found["official"]["test"]["examples"]
    noted = found["trained_on"]["test"]
    assert (noted["records"], noted["of_records"], noted["left_out"]) == (len(some), total, True)
    assert noted["images"] == noted["of_images"] == len(index.counts)
    assert f"{len(some)} of {total} records, which are left out" in capsys.readouterr().out
    found = evaluated("--keep_trained_on")
    assert found["examples"] == total and not found["trained_on"]["test"]["left_out"]
    files = tmp_path / "files"
    assert evaluate.main(list(map(str, [*options, "--submissions", files]))) == 1
    assert "--submissions needs all: add --keep_trained_on" in capsys.readouterr().err


def test_a_test_without_public_answers(run, small_world, tmp_path, capsys):
    output, files = tmp_path / "results.json", tmp_path / "files"
    options = ["--tasks", "vqa", "--split", "test"]
    assert run(*options, "--output", output, "--submissions", files) == 0
    found = json.loads(output.read_text())
    raw = json.loads(
        (small_world.raw / "vqa/v2_OpenEnded_mscoco_test2015_questions.json").read_text()
    )
    ids = [question["question_id"] for question in raw["questions"]]
    assert found["tasks"] == {} and found["unscored"] == {"vqa": len(ids)}
    assert found["average"] is None
    submitted = json.loads((files / "vqa-test.json").read_text())
    assert sorted(row["question_id"] for row in submitted) == sorted(ids)
    assert f"{len(ids):,} examples without public answers" in capsys.readouterr().out


def test_words_beside_the_scores(run, tmp_path):
    output = tmp_path / "results.json"
    options = ["--tasks", "snli_ve,coco", "--text_baselines", "--max_examples", "30"]
    assert run(*options, "--split", "val", "--output", output) == 0
    tasks = json.loads(output.read_text())["tasks"]
    assert tasks["snli_ve"]["chance"] == pytest.approx(1 / 3)
    assert 0.2 < tasks["snli_ve"]["words"] <= 1
    images = tasks["coco"]["metrics"]["images"]
    assert tasks["coco"]["words"] == tasks["coco"]["chance"] == 1 / images
    assert tasks["snli_ve"]["examples"] == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "vqa,foil"], r"knows no task \['foil'\]; it knows vqa, vgqa"),
        (["--split", "dev"], "there is no split 'dev'"),
        (["--model_axis", "3"], "model=3 does not divide"),
    ],
)
def test_refused(run, options, message, capsys):
    assert run(*options) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error)


def test_another_vocabulary_is_named(run, data_copy, capsys):
    words = (data_copy / "vocab.txt").read_text().splitlines()
    (data_copy / "vocab.txt").write_text("\n".join(words[:-2] + words[-1:] + words[-2:-1]) + "\n")
    assert run("--tasks", "vqa", data=data_copy) == 1
    error = capsys.readouterr().err
    assert "vocab_sha256: trained with" in error
    assert f"the vocabulary {data_copy / 'vocab.txt'} is not the model's" in error


def test_without_tensorflow_datasets(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert run("--tasks", "vqa") == 1
    assert "needs tensorflow_datasets, not installed here" in capsys.readouterr().err


# ------------------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def workdir(small_world, trained, tmp_path_factory):
    """Of a run with two checkpoints, the first of which was the better one."""
    config = defaults.get_config(("refcoco+", "snli_ve"), "tiny")
    config.update_from_flattened_dict(SMALL_MODEL)
    config.data.dir, config.data.regions = str(small_world.data), "pixels"
    for name in ("refcoco+", "snli_ve"):
        options = config.task[task_key(name)]
        for field in ("max_tokens", "max_regions", "batch_size"):
            options[field] = getattr(TASKS[name], field)
    sizes = ("vocab_size", "num_vqa_answers", "num_gqa_answers", "region_feature_dim")
    config.model.update(dict.fromkeys(sizes, 0))
    config.schedule.num_rounds = 20
    folder = tmp_path_factory.mktemp("run")
    state.write_config(folder, config)
    params, *_ = model_folder.load(trained)
    run = state.read_config(folder)
    with state.Checkpoints(folder, run.checkpoint) as checkpoints:
        for round, score in ((10, 0.5), (20, 0.4)):
            train_state = steps.init_state(params, optax.sgd(0.1))
            progress = state.Progress(round, {"snli_ve": round}, {}, {"snli_ve": score}, {}, 1.0)
            checkpoints.save(train_state, progress)
    return folder


@pytest.fixture
def of_run(workdir):
    def command(*options):
        return evaluate.main(["--workdir", str(workdir), *map(str, options)])

    return command


@pytest.mark.parametrize(("which", "round"), [("best", 10), ("latest", 20), ("10", 10)])
def test_a_round_of_a_run(of_run, workdir, results, which, round):
    assert of_run("--round", which, "--tasks", "snli_ve") == 0
    found = json.loads((workdir / f"evaluation-{round}-reported.json").read_text())
    assert (found["round"], found["updates"]) == (round, round)
    # The same weights as the model folder's.
    assert found["tasks"]["snli_ve"]["score"] == results[0]["tasks"]["snli_ve"]["score"]


def test_a_damaged_checkpoint_gives_way_to_the_older_one(workdir, tmp_path, capsys, caplog):
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    truncate_arrays(folder / "checkpoints" / "20")
    options = ["--tasks", "snli_ve", "--max_examples", "8"]
    assert evaluate.main(["--workdir", str(folder), *options]) == 0
    assert json.loads((folder / "evaluation-10-reported.json").read_text())["round"] == 10
    assert f"{folder}/checkpoints/20" in caplog.text and "from round 10" in caplog.text
    assert evaluate.main(["--workdir", str(folder), *options, "--round", "20"]) == 1
    assert f"{folder}/checkpoints/20" in capsys.readouterr().err


def test_a_round_that_is_not_there(of_run, capsys):
    assert of_run("--round", "15") == 1
    assert "no checkpoint of round 15; there are 10, 20, latest and best" in capsys.readouterr().err


def test_no_workdir(tmp_path, capsys):
    assert evaluate.main(["--workdir", str(tmp_path)]) == 1
    assert f"is {tmp_path} the workdir of a run?" in capsys.readouterr().err


def test_a_run_is_followed_to_its_end(of_run, workdir):
    (workdir / "results.json").write_text("{}")
    options = ["--follow", "--max_examples", "40", "--poll_seconds", "0"]
    assert of_run(*options) == 0
    lines = rows(workdir / "evaluation.jsonl")
    assert [line["round"] for line in lines] == [10, 20]
    assert {line["split"] for line in lines} == {"val"}
    assert lines[0]["tasks"].keys() == {"refcoco+", "snli_ve"}
    assert of_run(*options) == 0  # nothing is left to do
    assert len(rows(workdir / "evaluation.jsonl")) == 2

"""The build command on a small world and on the reference's feature stores."""

import base64
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import psutil
import pytest
import safetensors
import tensorflow_datasets as tfds
from safetensors.numpy import save_file

from twelve_in_one.data import build, official
from twelve_in_one.data.builders import finish, splits
from twelve_in_one.data.builders.sources import ALL_SOURCES, SOURCES
from twelve_in_one.data.builders.twelve import BUILDERS
from twelve_in_one.data.encode.text import SPECIALS, load_tokenizer, with_capitals
from twelve_in_one.data.regions import open_store
from twelve_in_one.data.regions.records import write_shard
from twelve_in_one.data.stored.index import read_index
from twelve_in_one.data.stored.reader import built_folder, open_split
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.streams import open_folder, open_stream, preprocessing_of
from twelve_in_one.tasks.twelve import TWELVE

TASKS = {task.name: task for task in TWELVE}
SHARED_FILES = (
    "answers-gqa.json",
    "answers-vqa.json",
    "clean_split.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def _times(folder):
    return {
        path.relative_to(folder): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def _files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def _rows(outcome):
    """Of the first printed table: (dataset, split) -> numbers."""
    rows = {}
    for line in outcome.out.splitlines()[1:]:
        found = re.fullmatch(r"(\S+) +(\S+)((?: +[\d,]+){4})(?:  was there)?", line)
        if not found:
            break
        numbers = found[3].replace(",", "").split()
        rows[found[1], found[2]] = tuple(map(int, numbers))
    return rows


def test_counts(small_world, census):
    wanted = {
        (name, split): (
            len(set(examples)),
            len({image for images in examples for image in images}),
            len(examples),
            0,
        )
        for name, found in census.examples.items()
        for split, examples in found.items()
    }
    assert _rows(small_world.outcome) == wanted
    for name, found in census.examples.items():
        for split, examples in found.items():
            index = read_index(small_world.built(name), split)
            ids = np.repeat(index.image_ids, index.counts, axis=0).tolist()
            assert sorted(map(tuple, ids)) == sorted(examples)


def test_report(small_world, census):
    out, err = small_world.outcome.out, small_world.outcome.err
    assert not re.search("skipped:|absent:|error|warning", out + err, re.IGNORECASE)
    for name, found in census.examples.items():
        for split, examples in found.items():
            count = len(set(examples))
            assert re.search(rf"^{re.escape(name)}/{split}  {count}/{count}  .*/s$", err, re.M)
    removed, overlap, rest = out.split("\n\n")[1:]
    assert "removed" in removed.splitlines()[0]
    assert "mean share of the 12 training splits" in removed.splitlines()[-1]
    names, matrix = splits.overlap_matrix(
        {name: _indexes(small_world, name, found) for name, found in census.examples.items()}
    )
    assert overlap == splits.format_overlap(names, matrix)
    sizes = {
        "answers-vqa.json": len(json.loads((small_world.data / "answers-vqa.json").read_text())),
        "answers-gqa.json": len(json.loads((small_world.data / "answers-gqa.json").read_text())),
        "vocab.txt": len((small_world.data / "vocab.txt").read_text().splitlines()),
    }
    said = dict(line.split(": ") for line in rest.splitlines())
    assert {name: int(said[name].split()[0]) for name in sizes} == sizes


def _indexes(small_world, name, found):
    return {split: read_index(small_world.built(name), split) for split in found}


@pytest.mark.parametrize(
    ("name", "split"), [*((task.name, "train") for task in TWELVE), ("vgqa", "val")]
)
def test_no_training_on_test_images(small_world, census, name, split):
    """Also not under the other collection's id."""

    def photos(clean):
        folder = open_folder(small_world.data, "pixels", clean=clean)
        stream = open_stream(folder, TASKS[name], split, batch_size=1, training=split == "train")
        index = stream.selection.reader.index
        return [
            {census.photo(name, image_id) for image_id in record}
            for record in index.image_ids[stream.selection.records]
        ]

    everything = photos(clean=False)
    assert len(everything) == len(set(census.examples[name][split]))
    wanted = [record for record in everything if not record & census.tested]
    assert photos(clean=True) == wanted


def test_there_was_something_to_clean(census):
    """The world shares photos on purpose, some of them under the other collection's id only."""
    shared = {
        name
        for name, found in census.examples.items()
        for images in found["train"]
        if {census.photo(name, image) for image in images} & census.tested
    }
    assert {"vqa", "vgqa", "gqa", "coco", "refcoco", "guesswhat", "snli_ve"} <= shared


def test_again_keeps_everything(small_world, data_copy, run_build):
    before = _times(data_copy)
    start = time.perf_counter()
    outcome = run_build("all", small_world.raw, data_copy)
    seconds = time.perf_counter() - start
    assert outcome.code == 0, outcome.err
    assert _rows(outcome) == _rows(small_world.outcome)
    assert outcome.out.count("  was there\n") == len(_rows(outcome))
    assert _times(data_copy) == before
    assert seconds < 10


@pytest.fixture
def nlvr2(raw_copy, tmp_path, run_build):
    """Builds a copy of NLVR2 without features: `nlvr2(*options)`; its folders are attributes."""
    raw_copy("nlvr2")

    def run(*options):
        return run_build("nlvr2", run.raw, run.data, "--features", "none", *options)

    run.raw, run.data = tmp_path / "raw", tmp_path / "data"
    return run


def test_data_of_an_earlier_version_get_official_records(small_world, data_copy, run_build):
    folder = built_folder(data_copy, "vqa", "pixels")
    before = official.read(folder, "val")
    official.path_of(folder, "val").unlink()
    outcome = run_build("vqa", small_world.raw, data_copy)
    assert outcome.code == 0 and "was there" in outcome.out, outcome.err
    assert official.read(folder, "val") == before
    raw = json.loads((small_world.raw / "vqa/v2_mscoco_val2014_annotations.json").read_text())
    people = {
        str(r["question_id"]): [a["answer"] for a in r["answers"]] for r in raw["annotations"]
    }
    for key, record in before.records.items():
        assert record["answers"] == people[key] and len(people[key]) == 10
    assert "no official score: vqa/test: nobody published the answers of test" in outcome.out
    for name, split in (("vqa", "test"), ("vqa", "train"), ("gqa", "train")):
        assert official.read(built_folder(data_copy, name, "pixels"), split) is None
    path = official.path_of(folder, "val")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="official-val.json.gz: cannot be read"):
        official.read(folder, "val")


def test_other_files(nlvr2):
    assert nlvr2().code == 0
    before = _times(nlvr2.data)
    path = nlvr2.raw / "nlvr2/train.json"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-3]))
    refused = nlvr2()
    assert refused.code == 1
    assert re.search(r"nlvr2/none/1\.0\.0.*\(train\.json\).*--overwrite", refused.err)
    assert _times(nlvr2.data) == before
    replaced = nlvr2("--overwrite")
    assert replaced.code == 0, replaced.err
    assert _rows(replaced)["nlvr2", "train"][2] == len(lines) - 3
    assert "was there" not in replaced.out.split("\n\n")[0]
    assert nlvr2().out.count("  was there\n") == 3


def test_other_features(small_world, tmp_path, run_build):
    options = "--features", f"records:{small_world.regions / 'nlvr2'}"
    assert run_build("nlvr2", small_world.raw, tmp_path, *options).code == 0
    other = shutil.copytree(small_world.regions / "nlvr2", tmp_path / "other")
    refused = run_build("nlvr2", small_world.raw, tmp_path, "--features", f"records:{other}/")
    assert refused.code == 1
    assert "built from region features nlvr2, not other; pass --overwrite" in refused.err


_KILLED = """
import os, signal, sys
from twelve_in_one.data import build
from twelve_in_one.data.builders import report

class Progress(report.Progress):
    def __call__(self, split, done, total):
        super().__call__(split, done, total)
        if (self._name, split, done) == ("nlvr2", "val", 1):
            os.kill(os.getpid(), signal.SIGKILL)

report.Progress = Progress
build.main(sys.argv[1:])
"""


def _assert_same_records(folder, wanted):
    assert {path.name for path in folder.iterdir()} == {path.name for path in wanted.iterdir()}
    paths = sorted(wanted.glob("index-*.npz"))
    for path in paths:
        with np.load(folder / path.name) as got, np.load(path) as arrays:
            assert got.files == arrays.files
            for key in arrays.files:
                np.testing.assert_array_equal(got[key], arrays[key], strict=True)
        split = path.stem.removeprefix("index-")
        sources = [
            tfds.builder_from_directory(str(f)).as_data_source(split) for f in (folder, wanted)
        ]
        for one, other in zip(*sources, strict=True):
            jax.tree.map(np.testing.assert_array_equal, one, other)
    assert paths


def test_killed_between_records(small_world, tmp_path, run_build):
    raw, data = tmp_path / "raw", tmp_path / "data"
    raw.mkdir()
    names = ("flickr30k", "nlvr2", "snli_ve")
    for name in (*names, "images"):
        (raw / name).symlink_to(small_world.raw / name)
    command = ["all", "--manual_dir", raw, "--data_dir", data, "--jobs", "1"]
    process = subprocess.run(
        [sys.executable, "-c", _KILLED, *map(str, command)],
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(list(data.glob("nlvr2/pixels/incomplete*"))) == 1
    with pytest.raises(DataError, match="nlvr2.*has not been built; there is flickr30k/pixels"):
        built_folder(data, "nlvr2", "pixels")
    before = _times(data)
    kept = [path for path in before if path.parts[0] in ("flickr30k", "regions")]
    outcome = run_build("all", raw, data)
    assert outcome.code == 0, outcome.err
    assert re.findall(r"^(\S+) .*  was there$", outcome.out, re.M) == ["flickr30k"] * 3
    after = _times(data)
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    assert not list(data.rglob("*incomplete*"))
    for name in names:
        _assert_same_records(built_folder(data, name, "pixels"), small_world.built(name))


def test_killed_before_the_last_step(small_world, data_copy, run_build):
    """All files are there, only the folder has not got its name."""
    folder = built_folder(data_copy, "coco", "pixels")
    folder.rename(folder.with_name("incomplete.A1B2C3_1.0.0"))
    with pytest.raises(DataError, match="coco.*has not been built"):
        built_folder(data_copy, "coco", "pixels")
    outcome = run_build("coco", small_world.raw, data_copy)
    assert outcome.code == 0, outcome.err
    assert "was there" not in outcome.out.split("\n\n")[0]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    _assert_same_records(folder, small_world.built("coco"))


@pytest.mark.parametrize("name", SHARED_FILES)
def test_killed_while_a_shared_file_is_written(small_world, data_copy, run_build, name):
    path = data_copy / name
    text = path.read_bytes()
    path.unlink()
    half = path.with_name(f".{path.stem}.partial{path.suffix}")
    half.write_bytes(text[: len(text) // 2])
    outcome = run_build("all", small_world.raw, data_copy)
    assert outcome.code == 0, outcome.err
    assert path.read_bytes() == text
    assert not half.exists()


_POOL = """
import concurrent.futures, multiprocessing, os, time
from twelve_in_one.data.builders import processes

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        1, mp_context=context, initializer=processes.end_with_parent
    )
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60)
    time.sleep(60)
"""


def test_workers_end_with_a_killed_command(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(_POOL)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.communicate()
    worker.wait(timeout=20)


def test_several_jobs(small_world, tmp_path, run_build):
    outcome = run_build("nlvr2", small_world.raw, tmp_path / "one", "--features", "none")
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("nlvr2", "snli_ve"):
        (raw / name).symlink_to(small_world.raw / name)
    both = run_build("all", raw, tmp_path / "two", "--features", "none", "--jobs", "2")
    assert (outcome.code, both.code) == (0, 0)
    assert _rows(both) == _rows(outcome) | {
        key: numbers for key, numbers in _rows(small_world.outcome).items() if key[0] == "snli_ve"
    }
    one, two = (built_folder(tmp_path / name, "nlvr2", "none") for name in ("one", "two"))
    _assert_same_records(one, two)


def test_pictures_in_the_records(small_world, tmp_path, run_build):
    options = ("--features", "none", "--images")
    images = small_world.raw / "images"
    outcome = run_build("nlvr2", small_world.raw, tmp_path, *options, f"keep:{images}")
    assert outcome.code == 0 and "encoded again" not in outcome.out, outcome.err
    built = built_folder(tmp_path, "nlvr2", "none")
    assert json.loads((built / "build.json").read_text())["made_of"]["images"] == "keep"
    reader = open_split(built, "val")
    files = {path.stem: path.read_bytes() for path in (images / "nlvr2").rglob("*.*")}
    for position, pair in enumerate(reader.index.image_ids.tolist()):
        kept = [picture.data for picture in reader.record(position).pictures]
        assert kept == [files[image_id] for image_id in pair]
    again = run_build("nlvr2", small_world.raw, tmp_path, *options, "keep")
    assert again.code == 0 and again.out.count("  was there\n") == 3
    refused = run_build("nlvr2", small_world.raw, tmp_path, *options, str(images))
    assert refused.code == 1
    assert "built from with --images keep; pass --overwrite" in refused.err


def test_one_split_alone(nlvr2, census):
    for name in ("train.json", "test1.json"):
        (nlvr2.raw / "nlvr2" / name).unlink()
    outcome = nlvr2()
    assert outcome.code == 0, outcome.err
    examples = census.examples["nlvr2"]["val"]
    assert _rows(outcome) == {("nlvr2", "val"): (len(set(examples)), 4, len(examples), 0)}
    for split, name in (("train", "train.json"), ("test", "test1.json")):
        assert re.search(rf"^  absent: nlvr2/{split}: .*/nlvr2: no {name}", outcome.out, re.M)
    # There are no training texts: letters are not known either, and it is said.
    assert "without those of" in outcome.out and "nlvr2" in outcome.out.splitlines()[-1]
    folder = open_folder(nlvr2.data, "none")
    with pytest.raises(DataError, match="no split 'train'; there is val"):
        open_stream(folder, TASKS["nlvr2"], "train", batch_size=2, training=True)
    stream = open_stream(folder, TASKS["nlvr2"], "val", batch_size=2, training=False)
    assert stream.batch(0)["_mask"].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["vqq"], "invalid choice: 'vqq'"),
        (["nlvr2", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["nlvr2", "--num_regions", "0"], "--num_regions must be at least 1, got 0"),
        (["nlvr2", "--max_skipped_share", "1.5"], "must be from 0 to 1, got 1.5"),
        (["nlvr2", "--vocab", "/no/vocab.txt"], "--vocab /no/vocab.txt: no such file"),
        (["vqa", "--vqa_answers", "/no/a.json"], "--vqa_answers /no/a.json: no such file"),
        (["nlvr2", "--name_of_features", "a"], "--name_of_features is for stores"),
        (["nlvr2", "--features", "x", "--name_of_features", "a/b"], "takes letters, digits and _"),
        (["nlvr2", "--official_sizes"], "--official_sizes is for stores; --features is pixels"),
    ],
)
def test_wrong_options(small_world, tmp_path, run_build, options, message):
    outcome = run_build(options[0], small_world.raw, tmp_path / "data", *options[1:])
    assert outcome.code == 2
    assert message in outcome.err.splitlines()[-1]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "folder", "options", "message"),
    [
        ("all", "nowhere", [], "--manual_dir .*nowhere: no such folder"),
        ("all", "empty", [], "empty: holds none of vqa, vgqa"),
        ("nlvr2", "empty", [], "empty/nlvr2: no such folder; it should hold the files of nlvr2"),
        ("nlvr2", "hollow", ["--features", "none"], "hollow/nlvr2: no train.json"),
        ("nlvr2", "raw", [], "raw/images: no such folder; pass --images, or other --features"),
        ("nlvr2", "raw", ["--images", "{}/images"], "images/nlvr2: no pictures; pass --images"),
        ("nlvr2", "raw", ["--features", "parquet:x"], "parquet:x"),
        ("nlvr2", "raw", ["--features", "lmdb:{}/none.lmdb"], "none.lmdb"),
        ("nlvr2", "raw", ["--features", "records:{}/images"], "images: no shards"),
    ],
)
def test_wrong_folders(tmp_path, raw_copy, run_build, name, folder, options, message):
    raw_copy("nlvr2")
    for path in ("empty", "hollow/nlvr2", "images/nlvr2"):
        (tmp_path / path).mkdir(parents=True)
    options = [option.format(tmp_path) for option in options]
    outcome = run_build(name, tmp_path / folder, tmp_path / "data", *options)
    assert outcome.code == 1
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(message, errors[0])
    assert not _files(tmp_path / "data")


def test_data_dir_is_a_file(nlvr2):
    nlvr2.data.write_text("")
    outcome = nlvr2()
    assert outcome.code == 1
    assert "error: " in outcome.err and str(nlvr2.data) in outcome.err


def test_split_without_examples(nlvr2):
    (nlvr2.raw / "nlvr2/test1.json").write_text("")
    outcome = nlvr2()
    assert outcome.code == 0, outcome.err
    assert {split for _, split in _rows(outcome)} == {"train", "val"}
    assert re.search(r"absent: nlvr2/test: .*/nlvr2: the files hold no example", outcome.out)


def test_split_without_usable_examples(nlvr2):
    path = nlvr2.raw / "nlvr2/test1.json"
    path.write_text(re.sub(r'"label": "\w+"', '"label": "maybe"', path.read_text()))
    for options, message in (
        (
            [],
            r"(\d+) of \1 records cannot be used, more than 5%; the first: .*json: .*'maybe'",
        ),
        (["--max_skipped_share", "1"], r"none of \d+ records can be used; the first: .*'maybe'"),
    ):
        outcome = nlvr2(*options)
        assert outcome.code == 1
        assert re.search(f"^error: nlvr2: nlvr2/test: {message}", outcome.err, re.M), outcome.err
        assert not _files(nlvr2.data)


def test_broken_dataset_stops_no_other(small_world, raw_copy, tmp_path, run_build):
    raw = raw_copy("gqa", "nlvr2", "visual_genome", "vqa")
    for path in ("gqa/train_balanced_questions.json", "vqa/v2_mscoco_val2014_annotations.json"):
        text = (raw / path).read_text()
        (raw / path).write_text(text[: len(text) // 2])
    outcome = run_build("all", raw, tmp_path / "data", "--features", "none")
    assert outcome.code == 1
    assert re.search(r"^error: gqa: .*train_balanced_questions\.json: .*JSON", outcome.err, re.M)
    assert re.search(r"^error: vqa: .*val2014_annotations\.json: .*JSON", outcome.err, re.M)
    assert "left out: coco, flickr30k, refcoco" in outcome.err
    assert {name for name, _ in _rows(outcome)} == {"vgqa", "nlvr2"}
    assert not list((tmp_path / "data/gqa").rglob("*.*"))
    # The answers of Visual Genome are those of VQA, which cannot be read; the rest is complete.
    assert re.search(r"^error: the answer vocabulary of VQA.*--vqa_answers$", outcome.err, re.M)
    folder = open_folder(tmp_path / "data", "none")
    assert open_stream(folder, TASKS["nlvr2"], "val", batch_size=2, training=False).batch(0)
    with pytest.raises(DataError, match="no answer vocabulary for vgqa"):
        open_stream(folder, TASKS["vgqa"], "val", batch_size=2, training=False)


def test_collection_without_pictures_stops_no_other(raw_copy, tmp_path, run_build):
    raw = raw_copy("nlvr2", "snli_ve", "images/nlvr2")
    outcome = run_build("all", raw, tmp_path / "data")
    assert outcome.code == 1
    assert re.search(r"^error: snli_ve: .*images/flickr30k: no pictures", outcome.err, re.M)
    assert {name for name, _ in _rows(outcome)} == {"nlvr2"}


def test_words_do_not_depend_on_what_is_built_first(small_world, data_copy, run_build, tmp_path):
    outcome = run_build("nlvr2", small_world.raw, tmp_path / "first", "--features", "none")
    words = (tmp_path / "first/vocab.txt").read_bytes()
    assert words == (data_copy / "vocab.txt").read_bytes()
    assert f"vocab.txt: {len(words.splitlines())} words\n" in outcome.out


def test_given_vocabularies(small_world, shared_dir, tmp_path, run_build):
    vocab = shared_dir / "fixtures/loaders/tokenizer/vocab.txt"
    answers = tmp_path / "answers.txt"
    answers.write_text("red\nyes\nno\n")
    options = ["--features", "none", "--vocab", vocab, "--gqa_answers", answers]
    outcome = run_build("gqa", small_world.raw, tmp_path / "data", *options)
    assert outcome.code == 0, outcome.err
    folder = open_folder(tmp_path / "data", "none")
    assert folder.tokenizer.vocabulary == load_tokenizer(vocab).vocabulary
    assert folder.answers == {"gqa": ("red", "yes", "no")}


def test_cased_vocabulary(small_world, tmp_path, run_build):
    """`lower_case` goes from the build to whatever opens the data."""
    vocab, data = tmp_path / "cased.txt", tmp_path / "data"
    vocab.write_text("\n".join([*SPECIALS, *"abcdefghijklmnopqrstuvwxyzABC", "The"]))

    def run(*options):
        return run_build("gqa", small_world.raw, data, "--features", "none", *options)

    refused = run("--vocab", vocab)
    assert refused.code == 1 and "cased.txt: 4 of 35 tokens have capital" in refused.err
    assert not data.exists()  # known before anything is built
    assert run("--vocab", vocab, "--no-lower_case").code == 0
    folder = open_folder(data, "none")
    assert not folder.tokenizer.lower_case
    assert folder.tokenizer.tokenize("The a") == ["The", "a"]
    assert not preprocessing_of(folder, (), 0).lower_case
    assert run().code == run("--no-lower_case").code == 0  # kept
    other = run("--lower_case")
    assert other.code == 1 and "vocab.txt: made with lower_case False, not True; del" in other.err
    (data / "tokenizer_config.json").write_text('{"do_lower_case": 1}')
    with pytest.raises(
        DataError, match="tokenizer_config.json: 'do_lower_case' must be true or false, is 1"
    ):
        open_folder(data, "none")
    (data / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="vocab.txt: 4 of 35 tokens have capital"):
        open_folder(data, "none")


def test_words_of_cased_texts_are_made(small_world, tmp_path, run_build):
    outcome = run_build("gqa", small_world.raw, tmp_path, "--features", "none", "--no-lower_case")
    assert re.search(r"^vocab.txt: \d+ words of cased text$", outcome.out, re.M)
    tokenizer = open_folder(tmp_path, "none").tokenizer
    assert not tokenizer.lower_case and with_capitals(tokenizer.vocabulary)
    small = tmp_path / "small.txt"
    small.write_text("\n".join([*SPECIALS, "dog"]))
    line = finish.write_words(small_world.raw, tmp_path, small, lower_case=False)
    assert (
        line == "vocab.txt: 6 words of cased text, none with a capital letter: words with "
        "capitals will be [UNK]"
    )


def test_notes_are_said_when_built_and_when_kept(raw_copy, tmp_path, run_build):
    raw = raw_copy("vqa")
    path = raw / "vqa/v2_mscoco_train2014_annotations.json"
    content = json.loads(path.read_text())
    for record in content["annotations"][:3]:
        record["answers"] = record["answers"][:2]
    path.write_text(json.dumps(content))
    for options in ([], [], ["--check"]):
        outcome = run_build("vqa", raw, tmp_path / "data", "--features", "none", *options)
        assert outcome.code == 0, outcome.err
        assert re.findall(
            r"^  note: (vqa/\S+: 3 of .* examples have fewer than 10)", outcome.out, re.M
        )
        assert outcome.out.count("  note: ") == 1


def test_images_numbered_otherwise_than_the_lines(raw_copy, tmp_path, run_build):
    """Captions and pictures belong together by number, which may be one off in either."""
    raw = raw_copy("conceptual_captions", "images/conceptual_captions")
    path = raw / "conceptual_captions/Train_GCC-training.tsv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("caption\turl\n" + "".join(lines))
    outcome = run_build("conceptual_captions", raw, tmp_path / "good")
    notes = re.findall(r"^  note: conceptual_captions/(\w+: .{24})", outcome.out, re.M)
    assert notes == ["train: the first line is a head"]
    path.write_text("".join(lines[1:]))
    outcome = run_build("conceptual_captions", raw, tmp_path / "one_off", "--check")
    last = len(lines) - 1
    assert f"note: conceptual_captions/train: the lines end before image {last}, of" in outcome.out


def test_clean_split_is_over_all_region_features(small_world, data_copy, run_build):
    """What is built of other features later must not make test images trainable again."""
    before = _times(data_copy)
    outcome = run_build("nlvr2", small_world.raw, data_copy, "--features", "none")
    assert outcome.code == 0, outcome.err
    after = _times(data_copy)
    assert {path: after[path] for path in before} == before
    assert {path.parts[:2] for path in after.keys() - before} == {("nlvr2", "none")}


def test_pool_follows_the_clean_split(small_world, data_copy, run_build):
    """Of whatever features the dataset is that changes it."""
    shutil.rmtree(data_copy / "guesswhat")
    shutil.rmtree(data_copy / "snli_ve")
    (data_copy / "vocab.txt").unlink()
    for command in (["nlvr2", "--features", "none"], ["guesswhat"], ["snli_ve"]):
        outcome = run_build(command[0], small_world.raw, data_copy, *command[1:])
        assert outcome.code == 0, outcome.err
        folder = open_folder(data_copy, "pixels")
        for name in ("coco", "flickr30k"):
            stream = open_stream(folder, TASKS[name], "train", batch_size=2, training=True)
            assert len(stream.pool) == len(stream.selection.records)
    for name in SHARED_FILES:
        assert (data_copy / name).read_bytes() == (small_world.data / name).read_bytes()


# Stores of detected and annotated boxes, and what the released loader was set to.
STORES = {
    "snli_ve": ("flickr", None, "dev", 12, 6),
    "refcoco": ("coco_refer", "coco_gt", "refcoco/val", 10, 7),
    "visual7w": ("v7w", "v7w_gt", "val", 10, 112),
    "guesswhat": ("coco_100", "coco_100_gt", "pointing_valid", 32, 306),
}


@pytest.mark.parametrize("name", STORES)
def test_released_stores(shared_dir, tmp_path, run_build, name):
    """From the command to the batch, what the released loader makes of the same files."""
    loaders = shared_dir / "fixtures/loaders"
    detected, annotated, part, max_tokens, max_regions = STORES[name]
    options = ["--features", f"lmdb:{loaders / 'features' / detected}.lmdb"]
    options += ["--vocab", loaders / "tokenizer/vocab.txt", "--name_of_features", "resnext"]
    # Some of the training images have no regions.
    options += ["--max_skipped_share", "0.5"]
    if annotated:
        options += ["--annotated_features", f"lmdb:{loaders / 'features' / annotated}.lmdb"]
    outcome = run_build(name, loaders, tmp_path, *options)
    assert outcome.code == 0, outcome.err
    with np.load(loaders / name / "expected.npz") as file:
        prefix = f"{part}/"
        wanted = {key[len(prefix) :]: file[key] for key in file.files if key.startswith(prefix)}
    task = dataclasses.replace(TASKS[name], max_tokens=max_tokens, max_regions=max_regions)
    count = len(wanted["input_ids"])
    folder = open_folder(tmp_path, "resnext")
    batch = open_stream(folder, task, "val", batch_size=count, training=False).batch(0)
    # The loader lists examples as the files do.
    ids = [a.example_id for a in SOURCES[name].read(loaders / name, "val").annotations]
    rows = [batch["example_id"].tolist().index(example_id) for example_id in ids]
    slots = wanted["boxes"].shape[1]
    sums = batch["regions"].sum(axis=-1, dtype=np.float64)
    same = np.testing.assert_array_equal
    same(batch["tokens"][rows], wanted["input_ids"])
    same(batch["boxes"][rows, :slots], wanted["boxes"])
    same(batch["regions"][rows, :slots, :8], wanted["features_head"])
    same(sums[rows, :slots], wanted["features_rowsum"])
    same(batch["region_mask"][rows], wanted["image_mask"] == 1)
    targets = wanted["target"].reshape(count, -1)
    np.testing.assert_allclose(batch["targets"][rows], targets, rtol=0, atol=1e-6)
    if annotated:
        training = open_stream(folder, task, "train", batch_size=2, training=True).batch(0)
        assert training["regions"].shape[-1] == 2048


@pytest.mark.parametrize("name", ["visual7w", "guesswhat"])
def test_choices_need_features_of_annotated_boxes(shared_dir, tmp_path, run_build, name):
    loaders = shared_dir / "fixtures/loaders"
    store = f"lmdb:{loaders / 'features' / STORES[name][0]}.lmdb"
    outcome = run_build(name, loaders, tmp_path, "--features", store)
    assert outcome.code == 1
    assert f"error: {name}: {name} chooses among annotated boxes" in outcome.err
    assert "pass --annotated_features" in outcome.err
    assert not _files(tmp_path)


@pytest.fixture
def flickr_store(small_world, tmp_path):
    """Writes a store of the world's Flickr30k images, changed: image id -> new regions or None."""

    def write(changes, name="store"):
        with open_store(f"records:{small_world.regions / 'flickr30k'}") as store:
            items = {image_id: store.get(image_id) for image_id in store.ids()}
        items |= changes(items)
        items = {image_id: regions for image_id, regions in items.items() if regions is not None}
        write_shard(tmp_path / name, 0, 1, items)
        return f"records:{tmp_path / name}"

    return write


def test_missing_regions(small_world, census, flickr_store, tmp_path, run_build):
    (lost,) = census.examples["snli_ve"]["train"][0]
    store = flickr_store(lambda items: {lost: None})
    arguments = "snli_ve", small_world.raw, tmp_path / "data", "--features", store
    refused = run_build(*arguments)
    assert refused.code == 1
    examples = census.examples["snli_ve"]["train"]
    total = len(set(examples))
    assert re.search(
        rf"error: snli_ve: snli_ve/train: region features detected lack 1 of {total} "
        rf"images, the first: {lost}\. .*--max_skipped_share",
        refused.err,
    )
    assert not _files(tmp_path / "data")
    outcome = run_build(*arguments, "--max_skipped_share", "0.5")
    assert outcome.code == 0, outcome.err
    count = examples.count((lost,))
    wanted = (total - 1, total - 1, len(examples) - count, count)
    assert _rows(outcome)["snli_ve", "train"] == wanted
    assert len(re.findall(rf"skipped: snli_ve/train: .*no image '{lost}'", outcome.out)) == 5
    assert f"{count - 5} more; see build.json" in outcome.out
    info = json.loads(
        (built_folder(tmp_path / "data", "snli_ve", "detected") / "build.json").read_text()
    )
    assert len(info["splits"]["train"]["skipped"]) == count
    assert (
        lost
        not in read_index(built_folder(tmp_path / "data", "snli_ve", "detected"), "train").image_ids
    )


def test_split_without_regions_is_left_out(small_world, census, flickr_store, tmp_path, run_build):
    """As where a store is of training images; a second store may have the others."""
    examples = {split: set(found) for split, found in census.examples["snli_ve"].items()}
    tested = {image_id for (image_id,) in examples["test"]}
    train = flickr_store(lambda items: dict.fromkeys(tested), "train")
    test = flickr_store(lambda items: dict.fromkeys(items.keys() - tested), "test")
    arguments = "snli_ve", small_world.raw, tmp_path / "data", "--features", train
    outcome = run_build(*arguments)
    assert outcome.code == 0, outcome.err
    assert {split for _, split in _rows(outcome)} == {"train", "val"}
    count = len(examples["test"])
    message = rf"absent: snli_ve/test: region features detected lack {count} of {count} images"
    assert re.search(message, outcome.out)
    assert re.search(message, run_build(*arguments, "--check").out)
    both = *arguments, "--features", test
    refused = run_build(*both)
    assert refused.code == 1
    assert "built from region features train, not train + test; pass --over" in refused.err
    outcome = run_build(*both, "--overwrite")
    assert outcome.code == 0, outcome.err
    wanted = {key: row for key, row in _rows(small_world.outcome).items() if key[0] == "snli_ve"}
    assert _rows(outcome) == wanted
    strange = flickr_store(lambda items: {"x": items.pop(min(items))} | dict.fromkeys(items), "no")
    refused = run_build(*arguments[:-1], strange, "--overwrite")
    assert re.search(r"snli_ve/train: .* lack (\d+) of \1 images.* of another dataset", refused.err)


def test_damaged_lines_count_as_missing(small_world, census, tmp_path, run_build):
    path = tmp_path / "flickr.tsv"
    with (
        open_store(f"records:{small_world.regions / 'flickr30k'}") as store,
        path.open("wb") as file,
    ):
        for image_id in store.ids():
            regions = store.get(image_id)
            arrays = regions.boxes, regions.features.astype(np.float32)
            cells = [image_id, regions.width, regions.height, len(regions.boxes)]
            text = [str(cell).encode() for cell in cells]
            file.write(b"\t".join([*text, *(base64.b64encode(x.tobytes()) for x in arrays)]))
            lost = image_id == census.examples["snli_ve"]["train"][0][0]
            file.write(b"\tand more\n" if lost else b"\n")
    (lost,) = census.examples["snli_ve"]["train"][0]
    arguments = "snli_ve", small_world.raw, tmp_path / "data", "--features", path
    refused = run_build(*arguments)
    reason = r"line \d+ has 7 columns"
    assert re.search(rf"lack 1 of .*known reasons of 1: {lost} \({reason}", refused.err)
    outcome = run_build(*arguments, "--max_skipped_share", "0.5")
    assert outcome.code == 0, outcome.err
    assert re.search(rf"skipped: snli_ve: regions: {path}: {lost}: {reason}", outcome.out)
    assert re.search(rf"skipped: snli_ve/train: .*no image '{lost}': {reason}", outcome.out)


def test_changed_pictures(raw_copy, census, tmp_path, run_build):
    """What was built of other pictures is named, and --overwrite reaches the regions."""
    raw, data = raw_copy("snli_ve", "images/flickr30k"), tmp_path / "data"
    lost, other = (image_id for (image_id,) in sorted(set(census.examples["snli_ve"]["train"]))[:2])
    path = raw / f"images/flickr30k/{lost}.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:1500])
    options = "snli_ve", raw, data, "--max_skipped_share", "0.5"
    assert run_build(*options).code == 0
    shards = list((data / "regions").rglob("regions-*"))
    built = built_folder(data, "snli_ve", "pixels")
    before = {path: path.stat().st_mtime_ns for path in [*shards, *built.iterdir()]}
    assert run_build(*options).out.count("  was there\n") == 3
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    path.write_bytes(whole)
    refused = run_build(*options)
    assert refused.code == 1
    assert re.search(rf"of 1 of \d+ images were changed .* first: {lost}; p", refused.err)
    outcome = run_build(*options, "--overwrite")
    assert outcome.code == 0 and "skipped:" not in outcome.out
    count = len(list((raw / "images/flickr30k").iterdir()))
    assert f"{count}/{count} images" in outcome.err
    assert lost in read_index(built, "train").image_ids
    (raw / f"images/flickr30k/{other}.jpg").unlink()
    assert f"were changed or added, the first: {other};" in run_build(*options).err


def test_error_of_a_library_stops_no_other(small_world, raw_copy, tmp_path, run_build, monkeypatch):
    def read(folder, split):
        raise ValueError("no such thing")

    monkeypatch.setitem(ALL_SOURCES, "nlvr2", dataclasses.replace(ALL_SOURCES["nlvr2"], read=read))
    monkeypatch.setattr(BUILDERS["nlvr2"], "source", ALL_SOURCES["nlvr2"])
    raw = raw_copy("nlvr2", "snli_ve")
    options = "all", raw, tmp_path / "data", "--features", "none"
    for more in ([], ["--check"]):
        outcome = run_build(*options, *more)
        assert outcome.code == 1
        assert "error: nlvr2: ValueError: no such thing\n" in outcome.err
        assert 'raise ValueError("no such thing")' in outcome.err  # of ours perhaps
        assert {name for name, _ in _rows(outcome)} == {"snli_ve"}


def test_no_features(small_world, tmp_path, run_build):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("coco", "refcoco", "visual7w"):
        (raw / name).symlink_to(small_world.raw / name)
    outcome = run_build("all", raw, tmp_path / "data", "--features", "none")
    assert outcome.code == 0, outcome.err
    assert "coco: no region features, so negatives will be random" in outcome.err
    folder = open_folder(tmp_path / "data", "none")
    for name in ("coco", "refcoco", "visual7w"):
        task = TASKS[name]
        stream = open_stream(folder, task, "val", batch_size=4, training=False)
        batch = stream.batch(0)
        assert batch["regions"].shape[-1] == 0
        mask = batch["region_mask"].reshape(-1, task.max_regions)
        assert mask[:, 0].any()
        if name != "visual7w":
            assert not mask[:, 1:].any()
        else:  # candidates are annotated
            assert not mask[:, 1 : task.detected_slots].any() and batch["choice_mask"].any()
    stream = open_stream(
        folder,
        TASKS["refcoco"],
        "val",
        batch_size=4,
        training=False,
        encoding_options={"candidates": "annotated"},
    )
    batch = stream.batch(0)
    count = batch["region_mask"].sum(axis=1)
    assert (count[batch["_mask"]] > 2).all()
    np.testing.assert_allclose(batch["targets"][batch["_mask"], 1:].max(axis=1), 1, atol=1e-6)


def test_check_finds_nothing(small_world, data_copy, run_build):
    before = _times(data_copy)
    outcome = run_build("all", small_world.raw, data_copy, "--check")
    assert outcome.code == 0, outcome.err
    assert _rows(outcome) == _rows(small_world.outcome)
    assert "skipped:" not in outcome.out
    assert _times(data_copy) == before


def test_check_finds_a_truncated_picture(raw_copy, tmp_path, run_build, census):
    raw = raw_copy("snli_ve", "images/flickr30k")
    (lost,) = census.examples["snli_ve"]["test"][0]
    path = raw / f"images/flickr30k/{lost}.jpg"
    path.write_bytes(path.read_bytes()[:1500])
    outcome = run_build("snli_ve", raw, tmp_path / "data", "--check")
    assert outcome.code == 1
    assert re.search(rf"skipped: snli_ve: regions: .*{lost}\.jpg: .*cannot be read", outcome.out)
    assert re.search(rf"skipped: snli_ve/test: .*no image '{lost}': .*cannot be", outcome.out)
    examples = census.examples["snli_ve"]["test"]
    assert _rows(outcome)["snli_ve", "test"][0] == len(set(examples)) - 1
    assert not (tmp_path / "data/snli_ve").exists()


@pytest.mark.parametrize(
    ("field", "message"),
    [("features", r"features\[0, 3\] is nan"), ("boxes", "looks like x, y, width, height")],
)
def test_check_finds_bad_regions(
    small_world, census, flickr_store, tmp_path, run_build, field, message
):
    (image_id,) = census.examples["snli_ve"]["val"][0]
    store = flickr_store(lambda items: {})
    (path,) = (tmp_path / "store").iterdir()
    with safetensors.safe_open(path, framework="np") as shard:
        metadata, names = shard.metadata(), shard.keys()
        tensors = {name: shard.get_tensor(name) for name in names}
    values = tensors[f"{image_id}/{field}"].copy()
    if field == "features":
        values[0, 3] = np.nan
    else:
        values[:, 2:] -= values[:, :2]
    tensors[f"{image_id}/{field}"] = values
    save_file(tensors, path, metadata=metadata)
    outcome = run_build(
        "snli_ve", small_world.raw, tmp_path / "data", "--features", store, "--check"
    )
    assert outcome.code == 1
    assert re.search(rf"skipped: snli_ve/val: .*image '{image_id}'.*{message}", outcome.out)


def test_check_finds_damaged_records(small_world, data_copy, run_build):
    (path,) = built_folder(data_copy, "snli_ve", "pixels").glob("*-val.array_record*")
    data = bytearray(path.read_bytes())
    data[200:208] = bytes(8)
    path.write_bytes(data)
    outcome = run_build("snli_ve", small_world.raw, data_copy, "--check")
    assert outcome.code == 1
    assert re.search(r"^error: snli_ve: .*-val\.array_record.*record 0", outcome.err, re.M)


def test_every_dataset_can_be_named():
    assert build.parse_arguments(["vqa", "--manual_dir", "a", "--data_dir", "b"]).jobs >= 1
    for name in (*ALL_SOURCES, "all"):
        args = build.parse_arguments([name, "--manual_dir", "a", "--data_dir", "b"])
        assert (args.name, args.images.as_posix()) == (name, "a/images")


def test_specials_come_first(small_world):
    words = (small_world.data / "vocab.txt").read_text().splitlines()
    assert set(words[: len(SPECIALS)]) == set(SPECIALS)

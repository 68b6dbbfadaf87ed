"""Metrics files: what survives kills, full disks and resuming, and what TensorBoard gets."""

import json
import math
import resource
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest

from twelve_in_one.logs import metrics_writer
from twelve_in_one.logs.metrics_writer import open_writer, read, scalars, truncate

START = {"event": "start", "round": 0, "tasks": ["vqa", "coco"], "parameters": 7, "devices": "cpu"}


def train(round, loss=1.5):
    return {
        "event": "train",
        "round": round,
        "loss": {"vqa": loss, "refcoco+": 2.0},
        "skipped": 0,
        "timing": {"elapsed_s": 0.1 * round},
    }


def validation(round, task="vqa", stopped=False):
    return {"event": "validation", "round": round, "task": task, "score": 0.5, "stopped": stopped}


RESULT = {"event": "result", "split": "test", "task": "coco", "score": 0.4, "metrics": {"r@1": 0.2}}
RUN = [START, train(20), validation(25), train(40), validation(50), train(60), RESULT]


def write(workdir, records, **options):
    with open_writer(workdir, **{"tensorboard": False, **options}) as writer:
        for record in records:
            writer.write(record)


def test_records_come_back(tmp_path):
    write(tmp_path / "new" / "workdir", RUN)
    assert read(tmp_path / "new" / "workdir" / "metrics.jsonl") == RUN


def test_a_record_is_on_disk_when_it_is_written(tmp_path):
    """Without closing, as a killed process leaves it."""
    writer = open_writer(tmp_path, tensorboard=False)
    for count, record in enumerate(RUN, 1):
        writer.write(record)
        assert len(read(tmp_path / "metrics.jsonl")) == count
    writer.flush()
    writer.close()
    writer.close()


def test_numpy_values_and_numbers_that_are_not_finite(tmp_path):
    record = {
        "event": "train",
        "round": np.int64(3),
        "loss": {"a": np.float32(0.25), "b": np.array(1, np.int32), "c": np.nan, "d": -np.inf},
        "list": (np.inf, True, None, "text"),
        "flag": np.bool_(True),
    }
    write(tmp_path, [record])
    line = (tmp_path / "metrics.jsonl").read_text()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    raw = json.loads(line, parse_constant=refuse)
    assert raw["loss"]["c"] == "NaN"
    (back,) = read(tmp_path / "metrics.jsonl")
    assert math.isnan(back["loss"].pop("c"))
    assert back == {
        "event": "train",
        "round": 3,
        "loss": {"a": 0.25, "b": 1, "d": -math.inf},
        "list": [math.inf, True, None, "text"],
        "flag": True,
    }


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"round": 1}, "no text 'event'"),
        ({"event": "train"}, "no 'round'"),
        ({"event": "train", "round": 1.0}, "'round' must be an integer, is 1.0"),
        ({"event": "train", "round": True}, "'round' must be an integer"),
        ({"event": "train", "round": 1, "loss": {"vqa": np.ones(2)}}, "record.loss.vqa: a ndarray"),
        ({"event": "train", "round": 1, "a": [object()]}, r"record.a\[0\]: a object"),
        ({"event": "train", "round": 1, "a": {1: 2}}, r"record.a: keys must be texts, got \[1\]"),
        ({"event": "train", "round": 1, "note": "NaN"}, "would be read back as a number"),
    ],
)
def test_what_cannot_be_written(tmp_path, record, message):
    with open_writer(tmp_path, tensorboard=False) as writer:
        with pytest.raises(ValueError, match=message):
            writer.write(record)
        writer.write(START)
    assert read(tmp_path / "metrics.jsonl") == [START]


# ------------------------------------------------------------------- kills, damage and full disks


def test_every_cut_of_the_last_line_is_mended(tmp_path):
    write(tmp_path, RUN)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for cut in (*range(last, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert read(path) == RUN[:-1]
        write(tmp_path, RUN[-1:])
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", ["", "{", "[1]", "null", '{"event": 3}', '{"event":"a","round":"b"}', '{"event":NaN}']
)
@pytest.mark.parametrize("call", ["read", "open", "truncate"])
def test_other_damage_names_file_and_line(tmp_path, line, call):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{json.dumps(START)}\n{line}\n{json.dumps(RESULT)}\n{{"torn')
    before = path.read_bytes()
    do = {
        "read": lambda: read(path),
        "open": lambda: open_writer(tmp_path),
        "truncate": lambda: truncate(tmp_path, 0),
    }[call]
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2: "):
        do()
    assert path.read_bytes() == before


@pytest.mark.parametrize("tensorboard", [False, True])
def test_full_disk_leaves_whole_records(tmp_path, tensorboard):
    """A limit on file sizes cuts a write in the middle, as a disk that fills up does."""
    writer = open_writer(tmp_path, tensorboard=tensorboard)
    path = tmp_path / "metrics.jsonl"
    writer.write(train(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (events,) = (tmp_path / "events").iterdir() if tensorboard else (path,)
    full = max(events, path, key=lambda file: file.stat().st_size)
    size = full.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        with pytest.raises(OSError, match=r"File too large") as error:
            writer.write(train(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.filename == str(full)
    assert full.stat().st_size == size
    writer.write(train(3))
    writer.close()
    rounds = [record["round"] for record in read(path)]
    assert rounds == ([1, 2, 3] if full != path else [1, 3])
    if tensorboard:
        assert [event.step for event in read_events(events)[2:]] == [1, 3]


def test_no_place_to_write(tmp_path):
    (tmp_path / "workdir").write_text("a file")
    with pytest.raises(OSError, match="workdir"):
        open_writer(tmp_path / "workdir")
    (tmp_path / "events").write_text("a file")
    with pytest.raises(OSError, match="events"):
        open_writer(tmp_path)


# --------------------------------------------------------------------------------------- resuming


def test_truncate_keeps_what_was_before_the_checkpoint(tmp_path):
    write(tmp_path, RUN)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + b'{"event": "tr')
    assert truncate(tmp_path, 40) == 3
    assert path.read_bytes() == b"".join(lines[:4])
    assert truncate(tmp_path, 40) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_truncate_drops_results_with_and_without_a_round(tmp_path):
    """They are written after the last checkpoint, and again by a run that resumes from it."""
    write(tmp_path, [START, train(60), RESULT, RESULT | {"round": 60}])
    assert truncate(tmp_path, 60) == 2
    assert read(tmp_path / "metrics.jsonl") == [START, train(60)]


def test_truncate_without_a_file(tmp_path):
    assert truncate(tmp_path / "nowhere", 3) == 0
    assert not (tmp_path / "nowhere").exists()


def test_failed_truncate_leaves_the_file(tmp_path):
    write(tmp_path, RUN)
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 4, hard))
    try:
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            truncate(tmp_path, 50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


ROUNDS = [record.get("round", math.inf) for record in RUN]


@pytest.mark.parametrize(
    ("killed_after", "restored"),
    [
        (count, restored)
        for count in range(len(RUN) + 1)
        for restored in (-1, 20, 30, 60)
        if restored < 0 or restored <= max((r for r in ROUNDS[:count] if r < math.inf), default=-1)
    ],
)
def test_a_resumed_file_is_that_of_an_uninterrupted_run(tmp_path, killed_after, restored):
    """-1 stands for a run that was killed before its first checkpoint and begins again."""
    write(tmp_path / "whole", RUN)
    write(tmp_path / "killed", RUN[:killed_after])
    truncate(tmp_path / "killed", restored)
    write(
        tmp_path / "killed", [r for r, round in zip(RUN, ROUNDS, strict=True) if round > restored]
    )
    whole, killed = (tmp_path / name / "metrics.jsonl" for name in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()


# ------------------------------------------------------------------------------------- processes


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    write(tmp_path, RUN)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert truncate(tmp_path, 0) == 0
    write(tmp_path, RUN, tensorboard=True)
    write(tmp_path / "other", RUN, tensorboard=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_reading_needs_no_tensorboard():
    code = (
        "import sys; sys.modules.update(tensorboardX=None, wandb=None)\n"
        "import twelve_in_one.logs.metrics_writer; print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "matplotlib", "PIL"} & set(run.stdout.split())


# ------------------------------------------------------------------------------------ TensorBoard


def crc32c(data):
    """Castagnoli's polynomial, bit by bit (RFC 3720)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(path):
    """The events of a file in the TFRecord format, all checksums compared."""
    from tensorboardX.proto.event_pb2 import Event

    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        assert struct.unpack("<I", data[8:12]) == (masked(data[:8]),)
        assert struct.unpack("<I", data[12 + length : 16 + length]) == (masked(body),)
        events.append(Event.FromString(body))
        data = data[16 + length :]
    return events


def test_tensorboard_gets_the_scalars(tmp_path):
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the polynomial
    write(tmp_path, RUN, tensorboard=True)
    (file,) = (tmp_path / "events").iterdir()
    assert "tfevents" in file.name  # what TensorBoard looks for
    version, session, *events = read_events(file)
    assert version.file_version == "brain.Event:2"
    assert (session.session_log.status, session.step) == (session.session_log.START, 0)
    found = [{v.tag: v.simple_value for v in e.summary.value} for e in events]
    assert found == [
        {tag: pytest.approx(value) for tag, value in scalars(record).items()} for record in RUN
    ]
    assert [event.step for event in events] == [0, 20, 25, 40, 50, 60, 60]


def test_resuming_voids_later_events(tmp_path):
    write(tmp_path, RUN, tensorboard=True)
    truncate(tmp_path, 40)
    write(tmp_path, [], tensorboard=True)
    files = sorted((tmp_path / "events").iterdir())
    assert len(files) == 2  # in the same second
    session = read_events(files[1])[1]
    assert (session.session_log.status, session.step) == (session.session_log.START, 41)


def test_tags():
    assert scalars(train(20)) == {
        "train/loss/vqa": 1.5,
        "train/loss/refcoco+": 2.0,
        "train/skipped": 0.0,
        "train/timing/elapsed_s": 2.0,
    }
    assert scalars(validation(25, stopped=True)) == {
        "validation/score/vqa": 0.5,
        "validation/stopped/vqa": 1.0,
    }
    assert scalars(RESULT) == {
        "result/test/score/coco": 0.4,
        "result/test/metrics/r@1/coco": 0.2,
    }
    assert scalars(START) == {"start/parameters": 7.0}


# -------------------------------------------------------------------------------------------- W&B

RECORDING_WANDB = """
calls = []

class Run:
    def __getattr__(self, name):
        return lambda *args, **kwargs: calls.append((name, args, kwargs))

def init(**kwargs):
    calls.append(("init", (), kwargs))
    return Run()
"""


def test_wandb_is_used_if_asked_for(tmp_path, monkeypatch):
    """Against a module that takes down what it is asked to do."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text(RECORDING_WANDB)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    write(tmp_path / "workdir", [train(20), RESULT], wandb={"project": "p", "id": "i"})
    calls = sys.modules.pop("wandb").calls
    assert calls == [
        ("init", (), {"dir": str(tmp_path / "workdir"), "project": "p", "id": "i"}),
        ("define_metric", ("round",), {"hidden": True}),
        ("define_metric", ("*",), {"step_metric": "round"}),
        ("log", (scalars(train(20)) | {"round": 20},), {}),
        ("log", (scalars(RESULT) | {"round": 20},), {}),
        ("finish", (), {}),
    ]


@pytest.mark.parametrize("process", [0, 1])
def test_wandb_that_is_not_installed(tmp_path, monkeypatch, process):
    """On every process, or the others would wait for the first."""
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(metrics_writer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        open_writer(tmp_path / "workdir", wandb={})
    assert not (tmp_path / "workdir").exists()

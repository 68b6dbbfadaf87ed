"""Metrics of a run: one JSON line per record, and the same numbers for TensorBoard and W&B.

`metrics.jsonl` is the log of a run: every other view is made from it or alongside it. A record is
an object with "event" (its kind), "round" (rounds done; only a "result" may lack it) and values;
values that differ between two runs of the same job (times, rates) are under "timing". A line counts
once its newline is written: only a line cut off by a kill is ever dropped.

JSON has no numbers for floats that are not finite, so these are the texts "NaN", "Infinity" and
"-Infinity" (the spelling of protobuf's JSON). `read` turns them back into floats; texts equal to
one of them cannot be written.
"""

import contextlib
import importlib.util
import io
import itertools
import json
import math
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging

from twelve_in_one import atomic

FILE = "metrics.jsonl"
EVENTS = "events"
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_RESULT = "result"
_WRITERS = itertools.count()


class _Sink(Protocol):
    """A destination of records. `step` is the round of the record."""

    def write(self, record: Mapping[str, Any], step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class MetricsWriter:
    """Writes records to all sinks; made by `open_writer`.

    On processes other than 0 there are no sinks, so that every process can run the same code.
    """

    def __init__(self, sinks: Sequence[_Sink], last_round: int):
        self._sinks = tuple(sinks)
        self._round = last_round

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record; it is in the file when this returns.

        Args:
          record: see the module docstring. Values are None, bools, numbers, texts, NumPy scalars,
            and lists and mappings of these; fetch values on devices first.

        Raises:
          OSError: e.g. a full disk; names the file. `metrics.jsonl` is written first and holds the
            record completely or not at all, so a run may continue with the next one.
          ValueError: no "event", no "round", or a value that JSON cannot hold.
        """
        plain = _plain(record, "record")
        if not isinstance(plain.get("event"), str):
            raise ValueError(f"record: no text 'event': {plain}")
        has_round = "round" in plain
        if has_round and (isinstance(plain["round"], bool) or not isinstance(plain["round"], int)):
            raise ValueError(f"record: 'round' must be an integer, is {plain['round']!r}")
        if not has_round and plain["event"] != _RESULT:
            raise ValueError(f"record {plain['event']}: no 'round'; only a result may lack it")
        self._round = plain.get("round", self._round)
        for sink in self._sinks:
            sink.write(plain, self._round)

    def flush(self) -> None:
        """Waits until everything is on disk, so that not even a power cut loses it.

        Raises:
          OSError: names the file.
        """
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Flushes and closes all sinks, even if one of them fails."""
        with contextlib.ExitStack() as stack:
            for sink in reversed(self._sinks):
                stack.callback(sink.close)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_writer(
    workdir: Path, *, tensorboard: bool = True, wandb: Mapping[str, Any] | None = None
) -> MetricsWriter:
    """Opens `metrics.jsonl` of a workdir for appending, and the other requested sinks.

    To resume a run, call `truncate` first. TensorBoard then gets a new events file, which voids all
    later rounds of older files.

    Args:
      workdir: made if missing.
      tensorboard: also write scalars to `events/`.
      wandb: arguments of `wandb.init`, or None for no W&B. Values are logged against "round". To
        continue the curves of an earlier process give an `id` and `resume="allow"`.

    Raises:
      OSError: a file cannot be opened.
      ValueError: W&B is requested but not installed, or `metrics.jsonl` is damaged. The first is
        raised on every process, before training.
    """
    if wandb is not None and importlib.util.find_spec("wandb") is None:
        raise ValueError("logging to W&B was asked for: run `pip install wandb`, or turn it off")
    if jax.process_index() != 0:
        return MetricsWriter((), 0)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / FILE
    last_round = _mend(path) if path.exists() else -1
    with contextlib.ExitStack() as on_error:

        def opened(sink: _Sink) -> _Sink:
            on_error.callback(sink.close)
            return sink

        sinks = [opened(_JsonLines(path))]
        if tensorboard:
            sinks.append(opened(_TensorBoard(workdir / EVENTS, last_round + 1)))
        if wandb is not None:
            sinks.append(opened(_WandB(workdir, wandb)))
        on_error.pop_all()
    return MetricsWriter(sinks, max(last_round, 0))


def truncate(workdir: Path, round: int) -> int:
    """Drops the records after `round`, since a run that resumes there will repeat them.

    Also drops results, which are written last, and an incomplete last line. The rest stays byte
    for byte. The file is replaced atomically.

    Args:
      workdir: may lack the file.
      round: of the restored checkpoint; -1 for a run that starts again, which drops all.

    Returns:
      Records dropped; 0 on processes other than 0, which leave the file alone.

    Raises:
      OSError: the file cannot be read or replaced.
      ValueError: it is damaged before its last line, see `read`.
    """
    path = workdir / FILE
    if jax.process_index() != 0 or not path.exists():
        return 0
    data = path.read_bytes()
    lines = list(_records(path, data))
    kept = [
        line
        for line, record in lines
        if record["event"] != _RESULT and record.get("round", math.inf) <= round
    ]
    text = b"".join(kept)
    if text != data:
        atomic.write(path, text)
    return len(lines) - len(kept)


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a `metrics.jsonl`, with NaN and infinities as floats.

    A last line without newline was cut off by a kill, or is still being written; it is left out.

    Raises:
      OSError: the file cannot be read.
      ValueError: any other damage; names file and line.
    """
    return [record for _, record in _records(path, path.read_bytes())]


def _records(path: Path, data: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(line with its newline, record) of every line that ends."""
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return
        try:
            record = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: line {number}: not JSON: {error}; take the line out, or begin with "
                "another workdir"
            ) from error
        if not isinstance(record, dict) or not isinstance(record.get("event"), str):
            raise ValueError(f"{path}: line {number}: not a record with an 'event'")
        if not isinstance(record.get("round", 0), int):
            raise ValueError(f"{path}: line {number}: 'round' is {record['round']!r}")
        yield line, _restored(record)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _restored(value: Any) -> Any:
    """JSON values with the texts of `_NOT_FINITE` as floats."""
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _plain(value: Any, where: str) -> Any:
    """`value` in types that JSON can hold, but with NaN and infinities as floats."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise ValueError(f"{where}: keys must be texts, got {wrong[:5]}")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, str) and value in _NOT_FINITE:
        raise ValueError(f"{where}: the text {value!r} would be read back as a number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{where}: a {type(value).__name__} cannot be written as JSON")


def _json(value: Any) -> Any:
    """Plain values, with NaN and infinities as texts."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by tag, e.g. "train/loss/vqa" or "validation/timing/seconds/vqa".

    A tag starts with the event, then the split if there is one, and ends with the task of the whole
    record. Texts and lists have no curve and are left out; a bool is 0 or 1.
    """
    found: dict[str, float] = {}
    suffix = f"/{record['task']}" if "task" in record else ""

    def collect(value: Any, tag: str) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                collect(item, f"{tag}/{key}")
        elif isinstance(value, int | float):
            found[tag + suffix] = float(value)

    prefix = "/".join(str(record[key]) for key in ("event", "split") if key in record)
    outside = ("event", "split", "task", "round")
    collect({key: value for key, value in record.items() if key not in outside}, prefix)
    return found


def _mend(path: Path) -> int:
    """Cuts off an incomplete last line; returns the last round of the file, or -1."""
    data = path.read_bytes()
    last_round = max((r["round"] for _, r in _records(path, data) if "round" in r), default=-1)
    end = data.rfind(b"\n") + 1
    if end < len(data):
        logging.warning("%s: dropping a torn last line of %d bytes", path, len(data) - end)
        os.truncate(path, end)
    return last_round


class _Appender:
    """A file that grows by whole pieces: a failed write leaves it unchanged."""

    def __init__(self, path: Path):
        self._path = path
        self._file = io.FileIO(path, "ab")

    def append(self, data: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # report the first error
                os.ftruncate(self._file.fileno(), size)
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def flush(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        if not self._file.closed:
            with self._file:
                self.flush()


class _JsonLines(_Appender):
    def write(self, record: Mapping[str, Any], step: int) -> None:
        text = json.dumps(_json(record), allow_nan=False, separators=(",", ":"))
        self.append(text.encode() + b"\n")


class _TensorBoard(_Appender):
    """Events in TensorBoard's format, with tensorboardX's messages and checksums.

    Its own writer is not used: its writing thread dies on a full disk, and the training loop then
    blocks on its queue for ever (2.6.5: after 114 scalars).
    """

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX import record_writer
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2, summary_pb2
        self._checksum = record_writer.masked_crc32c
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in order of name.
        now, name = time.time_ns(), f"{socket.gethostname()}.{os.getpid()}.{next(_WRITERS)}"
        super().__init__(folder / f"events.out.tfevents.{now // 10**9}.{now}.{name}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            self._add(event_pb2.Event(file_version="brain.Event:2"))
            self._add(event_pb2.Event(step=purge_step, session_log=start))
            on_error.pop_all()

    def write(self, record: Mapping[str, Any], step: int) -> None:
        values = [
            self._summary.Summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars(record).items()
        ]
        if values:
            self._add(self._event.Event(step=step, summary=self._summary.Summary(value=values)))

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = [struct.pack("<I", self._checksum(part)) for part in (length, data)]
        self.append(length + checksums[0] + data + checksums[1])


class _WandB:
    def __init__(self, workdir: Path, settings: Mapping[str, Any]):
        import wandb

        self._run = wandb.init(**{"dir": str(workdir), **settings})
        self._run.define_metric("round", hidden=True)
        self._run.define_metric("*", step_metric="round")
        self.close = self._run.finish

    def write(self, record: Mapping[str, Any], step: int) -> None:
        if found := scalars(record):
            self._run.log({**found, "round": step})

    def flush(self) -> None:
        """Does nothing: uploads run by themselves."""

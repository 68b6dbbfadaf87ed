"""Files of predictions: those that test servers and official scripts read, and JSON lines otherwise.

| task | file | content |
|---|---|---|
| vqa | .json | [{"question_id": int, "answer": str}] (VQA v2 test server, EvalAI) |
| gqa | .json | [{"questionId": str, "prediction": str}] (GQA test server and evaluation script) |
| nlvr2 | .csv | identifier,True or False; no header (`nlvr2/eval/metrics.py` of the NLVR repository, which compares without regard to case) |
| vgqa | .jsonl | id, answer, confidence, score |
| snli_ve | .jsonl | id, label, confidence, score |
| refcoco, refcoco+, refcocog | .jsonl | id, image_id, box (x1, y1, x2, y2 in pixels), iou, confidence |
| visual7w, guesswhat | .jsonl | id, image_id, choice, target (ids of boxes), confidence |
| coco, flickr30k | .jsonl | id, images (the 20 best, best first), rank of the right one from 1 |

Ids are those of the official files. An expression's is "ref_id/sent_id"; the released code writes the
id of the image, which several expressions share. Scores are left out if no example can reach more
than 0: its answers are not public.
"""  # noqa: E501

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from twelve_in_one import atomic
from twelve_in_one.data.encode.examples import Encoding, Example, encode_inputs
from twelve_in_one.data.pipeline import Selection, TaskStream
from twelve_in_one.data.stored.image_rows import LoadedRecord
from twelve_in_one.data.stored.records import Annotation
from twelve_in_one.evaluators.detections import DetectionOutcome
from twelve_in_one.evaluators.embeddings import nearest_captions
from twelve_in_one.evaluators.retrieval import Ranking
from twelve_in_one.evaluators.rows import Outcome
from twelve_in_one.evaluators.texts import TextOutcome
from twelve_in_one.parallel import processes
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.metrics import result_files
from twelve_in_one.tasks.metrics.boxes import iou
from twelve_in_one.tasks.metrics.retrieval import text_to_image_ranks
from twelve_in_one.tasks.task import names_of_labels

_BEST_IMAGES = 20
_SHOWN_IDS = 5


def write(folder: Path, stream: TaskStream, split: str, predictions: Outcome | Ranking) -> Path:
    """Writes `folder/<task>-<split>.<ending>` atomically.

    With several processes, all of them call this; the first one writes.

    Args:
      folder: made if missing.
      stream: the evaluated stream.
      split: its name.
      predictions: from `suite.evaluate_task`.

    Raises:
      ValueError: predictions are missing, unknown or duplicate, or an id lacks the official form.
      OSError: the file cannot be written.
    """
    task = stream.task
    ending = {"vqa": "json", "gqa": "json", "nlvr2": "csv"}.get(task.name, "jsonl")
    path = folder / f"{task.name}-{split}.{ending}"
    failure: ValueError | OSError | None = None
    if jax.process_index() == 0:
        try:
            text = render(stream, split, predictions)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(path, text)
        except (ValueError, OSError) as error:
            failure = error
    message = processes.broadcast("" if failure is None else str(failure))
    if message:
        raise failure or ValueError(message)
    return path


def render(stream: TaskStream, split: str, predictions: Outcome | Ranking) -> str:
    """The contents of the file, see the module.

    Raises:
      ValueError: see `write`.
    """
    task, selection = stream.task, stream.selection
    where = f"{task.name}/{split}"
    if isinstance(predictions, Ranking):
        check_complete(where, predictions.caption_ids, selection.num_examples)
        return _json_lines(_ranked(predictions))
    check_complete(where, predictions.example_ids, selection.num_examples)
    kind = KINDS[task.kind]
    if kind.noun:
        names = names_of_labels(task, stream.encoding.answers)
        rows = _named(where, predictions, names)
    else:
        describe = _chosen_choice if kind.choices else _chosen_box
        return _json_lines(_located(where, stream.encoding, selection, predictions, describe))
    if task.name == "vqa":
        numbers = ((_number(where, row["id"]), row["label"]) for row in rows)
        return json.dumps([{"question_id": i, "answer": answer} for i, answer in numbers])
    if task.name == "gqa":
        return json.dumps([{"questionId": row["id"], "prediction": row["label"]} for row in rows])
    if task.name == "nlvr2":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows((row["id"], row["label"]) for row in rows)
        return text.getvalue()
    return _json_lines(
        {kind.noun if key == "label" else key: x for key, x in row.items()} for row in rows
    )


def check_complete(where: str, ids: Iterable[str], expected: int) -> None:
    """Requires exactly one prediction per example: servers reject others, or count them wrong.

    Args:
      where: task and split, for the message.
      ids: of the predictions.
      expected: examples of the split, by its index.

    Raises:
      ValueError: too few, too many or duplicate ids.
    """
    counts = Counter(ids)
    double = [i for i, count in counts.items() if count > 1]
    if double or "" in counts:
        raise ValueError(
            f"{where}: {len(double)} ids have several predictions, first {double[:_SHOWN_IDS]}"
            if double
            else f"{where}: a prediction has no id"
        )
    if len(counts) != expected:
        raise ValueError(
            f"{where}: {len(counts):,} predictions for {expected:,} examples; a file for "
            "submission needs all of them: evaluate without a limit on examples"
        )


def _named(where: str, outcome: Outcome, words: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    scored = bool(outcome.oracle.any())
    for i, example_id in enumerate(outcome.example_ids):
        label = int(outcome.prediction[i])
        if label not in words:
            raise ValueError(
                f"{where}: example {example_id}: the model answers with its label {label}, but the "
                f"vocabulary has {len(words)} answers; is it the one that the model learnt?"
            )
        row = {"id": example_id, "label": words[label], "confidence": float(outcome.confidence[i])}
        yield row | ({"score": float(outcome.score[i])} if scored else {})


def _ranked(ranking: Ranking) -> Iterator[dict[str, Any]]:
    ranks = text_to_image_ranks(ranking.scores, ranking.image_of_caption).stable
    for caption_id, scores, rank in zip(ranking.caption_ids, ranking.scores, ranks, strict=True):
        best = np.argsort(-scores, kind="stable")[:_BEST_IMAGES]
        images = [ranking.image_ids[i] for i in best]
        yield {"id": caption_id, "images": images, "rank": int(rank) + 1}


def _located(
    where: str,
    encoding: Encoding,
    selection: Selection,
    outcome: Outcome,
    describe: Callable[[Encoding, LoadedRecord, Annotation, int], dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Rereads the records: only they say which box a number stands for."""
    i = 0
    for position in selection.records:
        record = selection.reader.record(int(position))
        image_id = str(selection.reader.index.image_ids[position, 0])
        for annotation in record.annotations:
            example_id = outcome.example_ids[i]
            if annotation.example_id != example_id:
                raise ValueError(
                    f"{where}: example {annotation.example_id} of the data has no prediction in "
                    f"its place, but {example_id}; were they made from these data?"
                )
            row = {"id": example_id, "image_id": image_id}
            row |= describe(encoding, record, annotation, int(outcome.prediction[i]))
            yield row | {"confidence": float(outcome.confidence[i])}
            i += 1


def _chosen_box(
    encoding: Encoding, record: LoadedRecord, annotation: Annotation, region: int
) -> dict[str, Any]:
    _, boxes = encode_inputs(encoding, [Example(record, annotation)], 1)
    overlap = iou(boxes[0][region], np.asarray(annotation.box, np.float32))
    return {"box": boxes[0][region].tolist(), "iou": float(overlap)}


def _chosen_choice(
    encoding: Encoding, record: LoadedRecord, annotation: Annotation, choice: int
) -> dict[str, Any]:
    del encoding, record
    return {"choice": annotation.choice_ids[choice], "target": annotation.target_id}


def _number(where: str, example_id: str) -> int:
    if not (example_id.isascii() and example_id.isdecimal()):
        raise ValueError(f"{where}: question id {example_id!r} is no number, as official ids are")
    return int(example_id)


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_texts(
    folder: Path,
    stream: Any,
    split: str,
    outcome: TextOutcome | Outcome | Ranking | DetectionOutcome,
) -> Path:
    """Writes what a decoder wrote, the classes of a classifier, the captions nearest to images, or
    boxes in COCO's form.

    For the caption server and the VQA server in their formats; {example id: text} for other tasks,
    and for examples without official numbers.

    Raises:
      OSError: the file cannot be written.
    """
    (part,) = stream.parts
    pairs: list[tuple[str, str]] = []
    if isinstance(outcome, Ranking):
        found = nearest_captions(part.images, outcome)
        pairs = [(image, text) for image, (text, _) in found.items()]
    elif not isinstance(outcome, DetectionOutcome):
        if isinstance(outcome, TextOutcome):
            texts = outcome.texts
        else:
            texts = tuple(part.images.labels[label] for label in outcome.prediction)
        pairs = list(zip(outcome.example_ids, texts, strict=True))
    name = f"{stream.task.name}-{split}.json"
    content: Any = dict(pairs)
    if isinstance(outcome, DetectionOutcome):
        content = outcome.results()
    official = all(example_id.isdecimal() for example_id, _ in pairs)
    if official and stream.task.group == "caption":
        name = result_files.caption_file_name(split, stream.task.name.replace("_", "-"))
        content = result_files.caption_results(pairs)
    elif official and stream.task.group == "vqa":
        content = result_files.answer_results(pairs)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write(folder / name, json.dumps(content) + "\n")
    return folder / name

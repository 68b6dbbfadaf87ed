"""What released weights need beside themselves to answer: words, answers, and their detector."""

from collections.abc import Mapping
from pathlib import Path

from twelve_in_one.data.encode.text import load_tokenizer
from twelve_in_one.data.formats import safe_pickle
from twelve_in_one.data.formats.files import read_json
from twelve_in_one.data.serving import Serving
from twelve_in_one.data.stored.preprocessing import Preprocessing, answers_sha256
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.models.two_stream.config import TwoStreamConfig
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.task import VERDICTS, Task
from twelve_in_one.tasks.twelve import TWELVE

DETECTOR = "x152"  # of the features that the released models learnt from
# It shares its head with VQA, whose answers are other ones.
_LEFT_OUT = ("vgqa",)


def released_serving(
    config: TwoStreamConfig, words: Path, answers: Mapping[str, Path], detector: str = DETECTOR
) -> Serving:
    """Everything that a model folder holds beside the weights.

    Args:
      config: of the model.
      words: BERT's vocab.txt, uncased.
      answers: head ("vqa", "gqa") -> its answers in the order of the labels, a list as .json or as
        the released .pkl. Tasks of heads without answers are left out.
      detector: kind of detector that the features came from.

    Raises:
      DataError: a file that cannot be read, or another number of words or answers than the model's;
        names it.
      ValueError: a head without answers.
    """
    tokenizer = load_tokenizer(words)
    if tokenizer.vocab_size != config.vocab_size:
        raise DataError(
            f"{words}: {tokenizer.vocab_size} word pieces, the model has {config.vocab_size}: "
            "pass the vocabulary that it was trained with"
        )
    heads = sorted({task.head for task in TWELVE if _needs_answers(task)})
    if unknown := sorted(set(answers) - set(heads)):
        raise ValueError(f"no answers of {', '.join(unknown)}: heads are {', '.join(heads)}")
    known = {head: _read_answers(path, config.num_answers[head]) for head, path in answers.items()}
    tasks = tuple(
        task
        for task in TWELVE
        if task.name not in _LEFT_OUT and (not _needs_answers(task) or task.head in known)
    )
    preprocessing = Preprocessing(
        vocab_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        lower_case=tokenizer.lower_case,
        max_tokens={task.name: task.max_tokens for task in tasks},
        max_regions={task.name: task.max_regions for task in tasks},
        region_feature_dim=config.region_feature_dim,
        region_source="detected",
        image_descriptor=detector,
        answers_sha256={head: answers_sha256(labels) for head, labels in known.items()},
    )
    return Serving(tasks, tokenizer, known, preprocessing)


def _needs_answers(task: Task) -> bool:
    return bool(KINDS[task.kind].noun) and task.head not in VERDICTS


def _read_answers(path: Path, count: int) -> tuple[str, ...]:
    found = read_json(path, list) if path.suffix == ".json" else safe_pickle.load(path)
    if not isinstance(found, list) or not all(isinstance(answer, str) for answer in found):
        raise DataError(f"{path}: should be a list of answers in the order of the labels")
    if len(found) != count:
        raise DataError(f"{path}: {len(found)} answers, the model's head has {count}")
    return tuple(found)

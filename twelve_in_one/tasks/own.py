"""Tasks on a user's own data sets: one of the twelve with other data, perhaps other labels."""

import dataclasses
import re

from twelve_in_one.config.settings import OwnTaskOptions
from twelve_in_one.models.two_stream.config import RESERVED_HEADS
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.task import Task
from twelve_in_one.tasks.twelve import TASKS, TWELVE

# Choices among boxes have no form of record yet.
LIKES = tuple(task.name for task in TWELVE if not KINDS[task.kind].choices)
ANSWER_HEADS = ("vqa", "gqa")


def own_task(name: str, options: OwnTaskOptions) -> Task:
    """The task `name`: like `options.like`, with a head of its own if its labels are its own.

    The head then has the name of the task.
    """
    like = TASKS[options.like]
    head = like.head
    noun = KINDS[like.kind].noun
    if noun == "answer":
        head = options.answers if options.answers in ANSWER_HEADS else name
    elif noun == "label" and options.labels:
        head = name
    return dataclasses.replace(like, name=name, title=options.title or name, head=head)


def wrong(name: str, options: OwnTaskOptions) -> list[str]:
    """Faults in the settings of such a task, each ".SETTING: fault" or ": fault"."""
    errors = []
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in (*TASKS, *RESERVED_HEADS):
        errors.append(
            ": a name takes small letters, digits and _, and is none of the project's own"
        )
    if options.like not in LIKES:
        errors.append(f".like: {options.like!r} is none of {', '.join(LIKES)}")
        return errors
    noun = KINDS[TASKS[options.like].kind].noun
    if bool(options.jsonl) == bool(options.hf):
        errors.append(
            ".jsonl: name a file of records, or a Hugging Face dataset as hf; one of the two"
        )
    if (options.val_jsonl or options.test_jsonl) and not options.jsonl:
        errors.append(".val_jsonl, test_jsonl: go with jsonl, which is not given")
    if options.val_share + options.test_share >= 1:
        errors.append(".val_share: with test_share leaves nothing to train on")
    if options.answers and noun != "answer":
        errors.append(f".answers: {options.like} has none")
    if options.labels and noun != "label":
        errors.append(f".labels: {options.like} has none")
    names = [str(label).casefold() for label in options.labels]
    if len(names) == 1 or len(set(names)) < len(names):
        errors.append(f".labels: {options.labels} should be two at least, all different")
    return errors

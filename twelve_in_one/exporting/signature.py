"""What the folder of an exported model says of its functions: signature.json, README.md, run.py."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from twelve_in_one.models.two_stream.config import ALL_HEADS, TwoStreamConfig
from twelve_in_one.tasks.task import Task

PARAMS, SIGNATURE, README, EXAMPLE = "params.safetensors", "signature.json", "README.md", "run.py"
Shape = tuple[int | str, ...]

_LETTERS = {
    "b": "examples",
    "2*b": "rows: left and right image of each pair in turn, both with the sentence",
    "m": "captions",
    "n": "images",
}
_INPUTS = {
    "tokens": "word pieces of vocab.txt: [CLS] text [SEP], then padding",
    "token_mask": "true where no padding",
    "regions": "features; region 0 is the mean of the image's regions",
    "boxes": "x1/W, y1/H, x2/W, y2/H, share of the image's area; of region 0: 0, 0, 1, 1, 1",
    "region_mask": "true where no padding",
    "task_id": "the number in task_ids",
}
_OUTPUTS = {
    "answer": "scores of answers-{head}.json in its order; columns beyond it have no answer",
    "verdict": "scores of the verdicts",
    "match": "how well each caption fits each image",
    "region": "scores of the regions, also of padding",
    "choice": "scores of the regions, also of padding and of those that are no choice",
    "pretraining": "scores of whether the text belongs to the image",
}
_VERDICTS = {
    "image_pair": ("false", "true"),
    "three_way": ("contradiction", "neutral", "entailment"),
    "alignment": ("aligned", "swapped"),
}
_README = """\
# Exported model

Each `.jaxexport` file is a function that `jax.export` wrote.

* platforms: {platforms}
* JAX that wrote it: {jax}

`run.py` shows how to call one. It needs jax, numpy and safetensors only:

    python run.py {task}              random inputs
    python run.py {task} inputs.npz   arrays named as below

A function takes the arrays of `{params}` as a dict, and a dict of inputs. It returns
float32 scores (no probabilities), without dropout. Sizes with letters are free in each call:

{letters}

{table}

`{signature}` has the inputs in full, and how far each function was from the model when it was
loaded and checked after export (`largest_difference`, over the largest score but at least 1).
`tasks.json` describes the tasks, `preprocessing.json` what was done to their inputs.
"""


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A function to export: one head on inputs of given lengths.

    Attributes:
      tasks: that it serves; they agree in all but names and task ids.
    """

    tasks: tuple[Task, ...]

    @property
    def head(self) -> str:
        return self.tasks[0].head

    @property
    def file(self) -> str:
        return f"{self.tasks[0].name}.jaxexport"

    @property
    def all_pairs(self) -> bool:
        """Whether every text is scored against every image."""
        return self.tasks[0].kind == "match"

    def inputs(self, config: TwoStreamConfig) -> dict[str, tuple[Shape, str]]:
        """{name: (shape, dtype)}, with letters for sizes that may be any."""
        task = self.tasks[0]
        texts = images = "b" if task.rows_per_example == 1 else f"{task.rows_per_example}*b"
        if self.all_pairs:
            texts, images = "m", "n"
        inputs: dict[str, tuple[Shape, str]] = {
            "tokens": ((texts, task.max_tokens), "int32"),
            "token_mask": ((texts, task.max_tokens), "bool"),
            "regions": ((images, task.max_regions, config.region_feature_dim), "float32"),
            "boxes": ((images, task.max_regions, 5), "float32"),
            "region_mask": ((images, task.max_regions), "bool"),
        }
        return inputs | ({"task_id": ((), "int32")} if config.num_tasks else {})


def artefacts(tasks: Sequence[Task], heads: Sequence[str] | None = None) -> tuple[Artefact, ...]:
    """The functions that serve the tasks; tasks that agree in head and lengths share one.

    Args:
      tasks: of a model.
      heads: only these; None takes all that the tasks read.

    Raises:
      ValueError: no task reads one of the heads, or there is nothing to export.
    """
    known = dict.fromkeys(task.head for task in tasks)
    unknown = [head for head in heads or () if head not in known]
    if unknown:
        raise ValueError(
            f"heads {', '.join(unknown)}: the tasks of the model read {', '.join(known)}"
        )
    groups: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        if heads is None or task.head in heads:
            key = (task.head, task.kind, task.rows_per_example, task.max_tokens, task.max_regions)
            groups.setdefault(key, []).append(task)
    if not groups:
        raise ValueError(f"nothing to export: tasks {[t.name for t in tasks]}, heads {heads}")
    return tuple(Artefact(tuple(group)) for group in groups.values())


def entry(
    artefact: Artefact, config: TwoStreamConfig, output_shape: Shape, difference: float
) -> dict[str, Any]:
    """What the signature says of one function.

    Args:
      artefact: the function.
      config: of the model.
      output_shape: with letters.
      difference: the largest that the check found.
    """
    own_labels = artefact.head not in ALL_HEADS
    output = {
        "shape": list(output_shape),
        "dtype": "float32",
        "meaning": _OUTPUTS["answer" if own_labels else artefact.tasks[0].kind].format(
            head=artefact.head
        ),
    }
    if artefact.head in _VERDICTS:
        output["columns"] = list(_VERDICTS[artefact.head])
    return {
        "file": artefact.file,
        "head": artefact.head,
        "task_ids": {task.name: task.task_id for task in artefact.tasks},
        "inputs": {
            name: {"shape": list(shape), "dtype": dtype, "meaning": _INPUTS[name]}
            for name, (shape, dtype) in artefact.inputs(config).items()
        },
        "output": output,
        "largest_difference": difference,
    }


def write(folder: Path, entries: Sequence[Mapping[str, Any]], platforms: Sequence[str]) -> None:
    """Writes the three files.

    Args:
      folder: that exists.
      entries: of `entry`.
      platforms: that the functions are for.
    """
    shapes = [item["output"]["shape"] for item in entries]
    shapes += [shape for item in entries for shape in _shapes(item["inputs"]).values()]
    used = {size for shape in shapes for size in shape}
    letters = {letter: meaning for letter, meaning in _LETTERS.items() if letter in used}
    signature = {
        "jax": jax.__version__,
        "platforms": list(platforms),
        "params": PARAMS,
        "letters": letters,
        "artefacts": list(entries),
    }
    readme = _README.format(
        platforms=", ".join(platforms),
        jax=jax.__version__,
        task=next(iter(entries[0]["task_ids"])),
        params=PARAMS,
        signature=SIGNATURE,
        letters="\n".join(f"* {letter}: {meaning}" for letter, meaning in letters.items()),
        table="\n".join(_rows(entries)),
    )
    (folder / SIGNATURE).write_text(json.dumps(signature, indent=2) + "\n", encoding="utf-8")
    (folder / README).write_text(readme, encoding="utf-8")
    example = Path(__file__).with_name("run_exported.py")
    (folder / EXAMPLE).write_text(example.read_text(encoding="utf-8"), encoding="utf-8")


def _shapes(inputs: Mapping[str, Any]) -> dict[str, list[int | str]]:
    return {name: item["shape"] for name, item in inputs.items()}


def _rows(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of the README's table."""
    rows = ["| file | tasks | inputs | scores |", "|---|---|---|---|"]
    for item in entries:
        tasks = ", ".join(f"{name} (task_id {number})" for name, number in item["task_ids"].items())
        inputs = ", ".join(
            f"{name} {item['inputs'][name]['dtype']}[{', '.join(map(str, shape))}]"
            for name, shape in _shapes(item["inputs"]).items()
        )
        output = item["output"]
        scores = f"[{', '.join(map(str, output['shape']))}] {output['meaning']}"
        if "columns" in output:
            scores += ": " + ", ".join(output["columns"])
        rows.append(f"| `{item['file']}` | {tasks} | {inputs} | {scores} |")
    return rows

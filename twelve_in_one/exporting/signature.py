"""Descriptions of the functions of an exported model: signature.json, README.md, run.py."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from twelve_in_one.systems.base import Function, Shape, System
from twelve_in_one.tasks.task import Task

PARAMS, SIGNATURE, README, EXAMPLE = "params.safetensors", "signature.json", "README.md", "run.py"

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
      tasks: that it serves; they differ only in names and task ids.
      function: the computation.
    """

    tasks: tuple[Task, ...]
    function: Function

    @property
    def head(self) -> str:
        return self.tasks[0].head

    @property
    def file(self) -> str:
        return f"{self.tasks[0].name}.jaxexport"


def artefacts(
    system: System, tasks: Sequence[Task], heads: Sequence[str] | None = None
) -> tuple[Artefact, ...]:
    """The functions that serve the tasks; tasks with the same head and lengths share one.

    Args:
      system: the model.
      tasks: of it.
      heads: only these; None takes all heads of the tasks.

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
    return tuple(Artefact(tuple(group), system.function(group[0])) for group in groups.values())


def entry(artefact: Artefact, output_shape: Shape, difference: float) -> dict[str, Any]:
    """The signature's entry for one function.

    Args:
      artefact: the function.
      output_shape: with letters.
      difference: the largest difference found by the check.
    """
    function = artefact.function
    output: dict[str, Any] = {
        "shape": list(output_shape),
        "dtype": "float32",
        "meaning": function.meaning,
    }
    if function.columns:
        output["columns"] = list(function.columns)
    return {
        "file": artefact.file,
        "head": artefact.head,
        "task_ids": {task.name: task.task_id for task in artefact.tasks},
        "inputs": {
            name: {"shape": list(item.shape), "dtype": item.dtype, "meaning": item.meaning}
            for name, item in function.inputs.items()
        },
        "output": output,
        "largest_difference": difference,
    }


def write(
    folder: Path,
    entries: Sequence[Mapping[str, Any]],
    letters: Mapping[str, str],
    platforms: Sequence[str],
) -> None:
    """Writes the three files.

    Args:
      folder: existing.
      entries: of `entry`.
      letters: meanings of the letters in shapes.
      platforms: of the functions.
    """
    signature = {
        "jax": jax.__version__,
        "platforms": list(platforms),
        "params": PARAMS,
        "letters": dict(letters),
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

"""Descriptions of the functions of an exported model: signature.json, README.md, run.py."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from twelve_in_one.systems.base import AnyTask, Function, Shape, System

PARAMS, SIGNATURE, README, EXAMPLE = "params.safetensors", "signature.json", "README.md", "run.py"

_README = """\
# Exported model

Each `.jaxexport` file is a function that `jax.export` wrote.

* platforms: {platforms}
* JAX that wrote it: {jax}

`run.py` shows how to call one. It needs jax, numpy and safetensors only:

    python run.py {name}              random inputs
    python run.py {name} inputs.npz   arrays named as below

A function takes the arrays of `{params}` as a dict, and a dict of inputs. It returns
float32 scores (no probabilities) or the arrays that the table names, without dropout. Sizes with
letters are free in each call:

{letters}

{table}

`{signature}` has the inputs in full, and how far each function was from the model when it was
loaded and checked after export (`largest_difference`, over the largest score but at least 1).
`tasks.json` describes the tasks, `preprocessing.json` what was done to their inputs.
"""


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A function to export.

    Attributes:
      name: of its file.
      task_ids: tasks that it serves with their numbers; none if it knows no task.
      heads: of the tasks.
      function: the computation.
    """

    name: str
    task_ids: Mapping[str, int]
    heads: tuple[str, ...]
    function: Function

    @property
    def file(self) -> str:
        return f"{self.name}.jaxexport"


def artefacts(
    system: System, tasks: Sequence[AnyTask], heads: Sequence[str] | None = None
) -> tuple[Artefact, ...]:
    """The functions that serve the tasks.

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
    chosen = [task for task in tasks if heads is None or task.head in heads]
    if not chosen:
        raise ValueError(f"nothing to export: tasks {[t.name for t in tasks]}, heads {heads}")
    head_of = {task.name: task.head for task in chosen}
    return tuple(
        Artefact(name, task_ids, tuple(dict.fromkeys(map(head_of.get, task_ids))), function)
        for name, task_ids, function in system.functions(chosen)
    )


def entry(artefact: Artefact, outputs: Any, difference: float) -> dict[str, Any]:
    """The signature's entry for one function.

    Args:
      artefact: the function.
      outputs: (shape with letters, dtype) of the scores, or of each array by name.
      difference: the largest difference found by the check.
    """
    function = artefact.function

    def output(of: tuple[Shape, str], meaning: str) -> dict[str, Any]:
        return {"shape": list(of[0]), "dtype": of[1], "meaning": meaning}

    described: dict[str, Any]
    if isinstance(outputs, dict):
        named = {name: output(of, function.meaning[name]) for name, of in outputs.items()}
        described = {"outputs": named}
    else:
        described = {"output": output(outputs, function.meaning)}
        if function.columns:
            described["output"]["columns"] = list(function.columns)
    found: dict[str, Any] = {"file": artefact.file}
    if len(artefact.heads) == 1:
        found["head"] = artefact.heads[0]
    return {
        **found,
        "task_ids": dict(artefact.task_ids),
        "inputs": {
            name: {"shape": list(item.shape), "dtype": item.dtype, "meaning": item.meaning}
            for name, item in function.inputs.items()
        },
        **described,
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
        name=Path(entries[0]["file"]).stem,
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
        named = item.get("outputs") or {"": item["output"]}
        scores = "; ".join(_output(name, output) for name, output in named.items())
        rows.append(f"| `{item['file']}` | {tasks or 'all'} | {inputs} | {scores} |")
    return rows


def _output(name: str, output: Mapping[str, Any]) -> str:
    text = f"[{', '.join(map(str, output['shape']))}] {output['meaning']}"
    if name:
        text = f"{name} {output['dtype']}{text}"
    return text + (": " + ", ".join(output["columns"]) if "columns" in output else "")

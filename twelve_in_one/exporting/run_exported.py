"""Runs an exported task: python run.py TASK [INPUTS.npz]. Needs jax, numpy and safetensors only."""

import json
import pathlib
import sys

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file


def read_signature(folder):
    """The entry of signature.json of each function, by its name and by its tasks."""
    entries = json.loads((folder / "signature.json").read_text(encoding="utf-8"))["artefacts"]
    of_tasks = {task: entry for entry in entries for task in entry["task_ids"]}
    return of_tasks | {pathlib.Path(entry["file"]).stem: entry for entry in entries}


def load(folder, task):
    """The function from a dict of inputs to its output, and its entry of signature.json."""
    known = read_signature(folder)
    if task not in known:
        raise ValueError(f"{folder} has no task {task!r}; it has {', '.join(known)}")
    score = jax.jit(export.deserialize((folder / known[task]["file"]).read_bytes()).call)
    params = jax.device_put(load_file(folder / "params.safetensors"))
    return lambda inputs: jax.device_get(score(params, inputs)), known[task]


if __name__ == "__main__":
    folder, arguments = pathlib.Path(__file__).parent, sys.argv[1:]
    known, asked = read_signature(folder), {"-h", "--help"} & set(arguments)
    if asked or len(arguments) not in (1, 2) or arguments[0] not in known:
        usage = f"usage: python run.py TASK [INPUTS.npz]\nTASK is one of {', '.join(known)}"
        print(usage, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    score, entry = load(folder, arguments[0])
    rng, sizes = np.random.default_rng(0), {"b": 2, "2*b": 4, "m": 2, "n": 3}
    shapes = {k: [sizes.get(n, n) for n in x["shape"]] for k, x in entry["inputs"].items()}
    noise = {k: rng.uniform(0, 2, shape) for k, shape in shapes.items()}
    number = entry["task_ids"].get(arguments[0], 0)
    noise |= {k: np.full(np.shape(noise.get(k, 0)), number) for k in ("task_id", "condition")}
    given = np.load(arguments[1]) if len(arguments) > 1 else noise
    inputs = {k: np.asarray(given[k], x["dtype"]) for k, x in entry["inputs"].items()}
    print(json.dumps(jax.tree.map(lambda array: array.tolist(), score(inputs))))

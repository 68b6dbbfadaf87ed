"""Runs an exported task: python run.py TASK [INPUTS.npz]. Needs jax, numpy and safetensors only."""

import json
import pathlib
import sys

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file


def load(folder, task):
    """The function from a dict of inputs to scores, and what signature.json says of it."""
    entries = json.loads((folder / "signature.json").read_text(encoding="utf-8"))["artefacts"]
    entry = next(entry for entry in entries if task in entry["task_ids"])
    score = jax.jit(export.deserialize((folder / entry["file"]).read_bytes()).call)
    params = jax.device_put(load_file(folder / "params.safetensors"))
    return lambda inputs: np.asarray(score(params, inputs)), entry


if __name__ == "__main__":
    score, entry = load(pathlib.Path(__file__).parent, sys.argv[1])
    rng, sizes = np.random.default_rng(0), {"b": 2, "2*b": 4, "m": 2, "n": 3}
    shapes = {k: [sizes.get(n, n) for n in x["shape"]] for k, x in entry["inputs"].items()}
    noise = {k: rng.uniform(0, 2, shape) for k, shape in shapes.items()}
    noise["task_id"] = entry["task_ids"][sys.argv[1]]
    given = np.load(sys.argv[2]) if len(sys.argv) > 2 else noise
    inputs = {k: np.asarray(given[k], x["dtype"]) for k, x in entry["inputs"].items()}
    print(json.dumps(score(inputs).tolist()))

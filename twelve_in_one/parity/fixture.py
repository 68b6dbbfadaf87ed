"""A fixture, the model on its inputs, and comparison of arrays."""

import dataclasses
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.convert import names
from twelve_in_one.convert.state_dict import from_state_dict
from twelve_in_one.models.two_stream import config as model_config
from twelve_in_one.models.two_stream.config import TwoStreamConfig
from twelve_in_one.models.two_stream.encoder import stack_layers, unstack_layers
from twelve_in_one.models.two_stream.reference_config import from_reference
from twelve_in_one.models.two_stream.trunk import TwoStreamModel

OUTPUT_ATOL = 2e-5
LOSS_RTOL = 1e-5


@dataclasses.dataclass(frozen=True)
class Check:
    """One compared array: `error` and `tolerance` are in the same unit, named by `unit`."""

    name: str
    error: float
    tolerance: float
    unit: str

    @property
    def ok(self) -> bool:
        """False also if the error is NaN."""
        return self.error <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Fixture:
    """A loaded file: its arrays, their config, and the parameters in our layout."""

    arrays: Mapping[str, np.ndarray]
    config: TwoStreamConfig
    params: Any

    def inputs(self, prefix: str) -> dict[str, np.ndarray]:
        """{name: array} of the entries `prefix`*, without the prefix."""
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file.

    Raises:
      ValueError: not an .npz of plain arrays; names the file.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npz of plain arrays: {error}") from error


def load_fixture(path: str | Path, **overrides: Any) -> Fixture:
    """Reads a fixture of the two-stream model.

    Args:
      path: the file.
      **overrides: fields of `TwoStreamConfig` (dtype, scan_layers, ...).

    Raises:
      ValueError: not an .npz, or without parameters or settings; names the file.
    """
    arrays = read_arrays(path)
    tensors = {k[len("param/") :]: v for k, v in arrays.items() if k.startswith("param/")}
    if not tensors or "meta/config_json" not in arrays:
        raise ValueError(f"{path}: holds no param/* arrays or no meta/config_json")
    downstream = "vil_prediction.logit_fc.0.weight" in tensors
    heads = model_config.ALL_HEADS if downstream else model_config.PRETRAINING_HEADS
    try:
        raw = json.loads(str(arrays["meta/config_json"]))
        config = from_reference(raw, heads=heads, **overrides)
    except ValueError as error:
        raise ValueError(f"{path}: meta/config_json: {error}") from error
    if config.num_tasks:
        task_table = tensors.get("bert.embeddings.task_embeddings.weight")
        if task_table is not None:
            config = dataclasses.replace(config, num_tasks=len(task_table))
    try:
        params = from_state_dict(config, tensors).params
    except ValueError as error:
        raise ValueError(f"{path}: param/*: {error}") from error
    if config.scan_layers:
        params = stack_layers(config, params)
    return Fixture(arrays, config, params)


def apply(
    config: TwoStreamConfig,
    params: Any,
    inputs: Mapping[str, Any],
    heads: Sequence[str],
    task_id: int | np.ndarray | None,
    *,
    return_attention: bool = False,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The model on inputs under the fixtures' names."""
    return TwoStreamModel(config).apply(
        {"params": params},
        jnp.asarray(inputs["input_ids"], jnp.int32),
        jnp.asarray(inputs["text_mask"], bool),
        jnp.asarray(inputs["features"]),
        jnp.asarray(inputs["boxes"]),
        jnp.asarray(inputs["image_mask"], bool),
        None if task_id is None or not config.num_tasks else jnp.asarray(task_id, jnp.int32),
        token_types=jnp.asarray(inputs["segment_ids"], jnp.int32),
        heads=heads,
        return_attention=return_attention,
    )


def absolute(name: str, ours: Any, theirs: np.ndarray, atol: float = OUTPUT_ATOL) -> Check:
    """Largest absolute difference."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return Check(f"{name}: shape {ours.shape}, reference {theirs.shape}", np.inf, atol, "abs")
    return Check(name, float(np.max(np.abs(ours - theirs), initial=0.0)), atol, "abs")


def relative(name: str, ours: Any, theirs: np.ndarray, rtol: float = LOSS_RTOL) -> Check:
    """Largest difference divided by the largest reference value."""
    check = absolute(name, ours, theirs)
    scale = float(np.max(np.abs(np.asarray(theirs, np.float64)), initial=0.0))
    error = check.error / scale if scale > 0.0 else check.error
    return Check(check.name, error, rtol, "rel")


def released(fixture: Fixture, tree: Any) -> dict[str, np.ndarray]:
    """Our parameters or gradients under the released names, in the released layout."""
    if fixture.config.scan_layers:
        tree = unstack_layers(fixture.config, tree)
    flat = flatten(tree)
    return {
        entry.name: entry.from_ours(np.asarray(flat[entry.path]))
        for entry in names.table(fixture.config)
        if entry.path is not None
    }

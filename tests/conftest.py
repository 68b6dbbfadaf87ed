"""Settings of all tests: eight CPU devices, no silent rank promotion, location of references."""

import contextlib
import ctypes
import functools
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.core.scope import Scope
from reference.costs import (  # noqa: F401  (hooks)
    pytest_addoption,
    pytest_configure,
    pytest_runtest_protocol,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
    pytest_xdist_auto_num_workers,
)
from reference.recorded import recorded_dir, shared_folder  # noqa: F401  (a fixture)
from reference.small_model import share_programs  # noqa: F401  (a fixture)
from reference.small_world import (  # noqa: F401  (fixtures)
    data_copy,
    raw_copy,
    run_build,
    run_folder,
    small_world,
)

from twelve_in_one.checkpoints.trees import flatten, unflatten
from twelve_in_one.models.two_stream.config import StreamConfig, TwoStreamConfig
from twelve_in_one.models.two_stream.trunk import abstract_params

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Nearly all of the tests' time is compilation; these settings make it five times faster. A program
# is not split among compiling threads, which costs a tenth, since the workers use all cores.
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__ < (0, 11):  # XLA aborts on flags that it does not know (any more)
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
        " --xla_cpu_parallel_codegen_split_count=1"
    )
# Also for the processes that tests start. Nothing here uses Keras, whose import is a third of
# TensorFlow's; asked for an old Keras that is not installed, TensorFlow imports none.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "TF_USE_LEGACY_KERAS": "1",
}
# Tracing makes many objects that live on; looking through them all the time finds little.
gc.set_threshold(50_000, 20, 20)
# Every compiling thread would keep 64 MB for itself.
_GLIBC = contextlib.suppress(OSError, AttributeError)  # other systems have other C libraries
os.environ["MALLOC_ARENA_MAX"] = "2"
with _GLIBC:
    ctypes.CDLL("libc.so.6").mallopt(-8, 2)  # M_ARENA_MAX, of this process


_param = Scope.param


def _param_of_its_shape(self, name, init_fn, *args, unbox=True, **options):
    """As Flax's, which traces the initialiser of every parameter that it reads, for its shape.

    That is nearly half of the time that tracing a model takes. An initialiser's first argument says
    the shape; one that differs goes Flax's way, to Flax's error.
    """
    if args and self.has_variable("params", name):
        value = self.get_variable("params", name)
        value = nn.unbox(value) if unbox else value
        if np.shape(value) == args[0]:
            self.reserve(name, "params")
            return value
    return _param(self, name, init_fn, *args, unbox=unbox, **options)


Scope.param = _param_of_its_shape


# Whole trainings, and separate processes; started first, so that a run does not end with them.
_LONGEST = ("test_processes.py", "test_restarts.py", "test_train.py", "test_experiments.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(run_folder: Path) -> Path:  # noqa: F811
    """Folder of programs compiled in this run, by any worker or process that it starts.

    `JAX_COMPILATION_CACHE_DIR` names a folder that outlives the run: the next one compiles little.
    """
    folder = jax.config.jax_compilation_cache_dir or str(run_folder / "programs")
    for name, value in (
        ("jax_compilation_cache_dir", folder),
        ("jax_persistent_cache_min_compile_time_secs", 0.05),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
        # With a limit the cache locks its files: no process reads a file still being written.
        ("jax_compilation_cache_max_size", 2**30),
    ):
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    return Path(folder)


# Folders of tests whose programs no other module or process runs: writing them to the folder above
# would cost a twentieth of these tests.
_ON_THEIR_OWN = {"convert", "models", "optim", "parity", "tasks", "training"}


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs(request: pytest.FixtureRequest, compiled_programs: Path):
    """Keeps a worker from holding the programs of all modules in memory."""
    alone = request.path.relative_to(Path(__file__).parent).parts[0] in _ON_THEIR_OWN
    shortest = "jax_persistent_cache_min_compile_time_secs"
    for_a_run = getattr(jax.config, shortest)
    if alone and compiled_programs.is_relative_to(request.getfixturevalue("run_folder")):
        jax.config.update(shortest, 1e6)
    # Not at the end of a module: its last test's arguments live until all of its fixtures are gone,
    # and what is frozen then is never collected.
    gc.collect()
    gc.freeze()  # remaining objects stay; later collections can skip them
    with _GLIBC:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # otherwise the process keeps freed memory
    yield
    jax.config.update(shortest, for_a_run)
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of the reference arrays: `$TWELVE_IN_ONE_SHARED`, or `shared` next to the checkout."""
    path = shared_folder()
    if not (path / "fixtures").is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"no reference arrays at {path}: CI must run with them")
        pytest.skip(f"no reference arrays at {path}; set TWELVE_IN_ONE_SHARED to their folder")
    return path


@pytest.fixture(scope="session")
def samples_dir() -> Path:
    """Folder of real records in the official formats: `$TWELVE_IN_ONE_SAMPLES`."""
    path = os.environ.get("TWELVE_IN_ONE_SAMPLES")
    if path and Path(path).is_dir():
        return Path(path)
    if os.environ.get("CI") == "true":
        pytest.fail(f"no real records at {path!r}: CI must run with them")
    pytest.skip(f"no real records at {path!r}; set TWELVE_IN_ONE_SAMPLES to their folder")


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., TwoStreamConfig]:
    """Makes small configs with all widths different, without dropout.

    `text` and `visual` are dicts of fields of `StreamConfig`; the rest are fields of
    `TwoStreamConfig`.
    """

    def make(
        *, text: dict[str, Any] | None = None, visual: dict[str, Any] | None = None, **fields: Any
    ) -> TwoStreamConfig:
        still = dict(dropout_rate=0.0, attention_dropout_rate=0.0)
        defaults = dict(
            text_connections=(1, 2),
            visual_connections=(0, 1),
            coattention_dim=20,
            coattention_heads=5,
            vocab_size=41,
            max_positions=13,
            num_tasks=6,
            region_feature_dim=10,
            num_region_classes=37,
            num_vqa_answers=11,
            num_gqa_answers=9,
            head_dropout_rate=0.0,
        )
        return TwoStreamConfig(
            text=StreamConfig(
                **dict(num_layers=3, hidden_dim=16, num_heads=2, mlp_dim=28) | still | (text or {})
            ),
            visual=StreamConfig(
                **dict(num_layers=2, hidden_dim=24, num_heads=3, mlp_dim=18)
                | still
                | (visual or {})
            ),
            **defaults | fields,
        )

    return make


@pytest.fixture(scope="session")
def random_params() -> Callable[..., Any]:
    """Makes parameters in which nothing is zero or one: `random_params(config, seed=0)`."""

    @functools.cache
    def make(config: TwoStreamConfig, seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)

        def draw(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
            mean = 1.0 if path[-1] == "scale" else 0.0
            return rng.normal(mean, 0.25, shape).astype(np.float32)

        shapes = flatten(nn.unbox(abstract_params(config)))
        return unflatten({path: draw(path, leaf.shape) for path, leaf in shapes.items()})

    return make


@pytest.fixture(scope="session")
def random_batch() -> Callable[..., dict[str, np.ndarray]]:
    """Makes the trunk's inputs, padding filled with noise: `random_batch(config, rows=4)`.

    Rows differ in their padded tokens (none in the first) and regions (none in the last).
    """

    def make(
        config: TwoStreamConfig,
        *,
        rows: int = 4,
        images: int | None = None,
        tokens: int = 6,
        regions: int = 5,
        seed: int = 0,
    ) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        images = rows if images is None else images

        def mask(count: int, length: int) -> np.ndarray:
            lengths = length - np.arange(count) % (length - 1)
            return np.arange(length) < lengths[:, None]

        batch = dict(
            tokens=rng.integers(0, config.vocab_size, (rows, tokens), np.int32),
            token_mask=mask(rows, tokens),
            regions=rng.normal(size=(images, regions, config.region_feature_dim)),
            boxes=rng.uniform(size=(images, regions, 5)),
            region_mask=mask(images, regions)[::-1].copy(),
            token_types=rng.integers(0, config.num_token_types, (rows, tokens), np.int32),
        )
        if config.num_tasks:
            batch["task_id"] = rng.integers(0, config.num_tasks, rows, np.int32)
        return {k: v.astype(np.float32) if v.dtype == float else v for k, v in batch.items()}

    return make

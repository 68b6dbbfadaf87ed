"""Shapes that are known without data, against batches of real data."""

import jax
import numpy as np
from reference.small_model import SMALL_MODEL

from twelve_in_one import configs
from twelve_in_one.config import check
from twelve_in_one.data import outline
from twelve_in_one.data.inputs import open_inputs
from twelve_in_one.parallel.placement import HOST_ONLY


def run_of(name, world, **changes):
    config = configs.get(name)
    places = {"data.dir": str(world.data), "data.raw_dir": str(world.raw), "data.world_images": 0}
    config.update_from_flattened_dict(places | changes)
    return check.check(config)


def shapes_of(batch):
    arrays = {name: np.asarray(x) for name, x in batch.items() if name != HOST_ONLY}
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}


def test_batches_of_regions(small_world, tmp_path):
    """Every kind of task, with the sizes of the system that the data decides."""
    tasks = ("vqa", "coco", "refcoco", "visual7w", "nlvr2", "snli_ve")
    run = run_of("world:debug", small_world, **SMALL_MODEL, tasks=tasks)
    inputs = open_inputs(run, tmp_path)
    system = inputs.system()
    real = {name: shapes_of(s.batch(0)) for name, s in inputs.train_streams(system).items()}
    assert outline.batch_shapes(run, system) == real
    real = {
        task.task.name: shapes_of(inputs.evaluation_stream(task, "val", system).batch(0))
        for task in inputs.tasks
    }
    assert outline.validation_shapes(run, system) == real


def test_batches_of_pretraining(small_world, tmp_path):
    run = run_of("pretrain_cc:debug", small_world, **SMALL_MODEL)
    inputs = open_inputs(run, tmp_path)
    system = inputs.system()
    real = {name: shapes_of(s.batch(0)) for name, s in inputs.train_streams(system).items()}
    assert outline.batch_shapes(run, system) == real


def test_assumed_sizes_are_named():
    run = check.check(configs.get("world:debug"))
    system, notes = outline.assumed_system(run)
    assert system.config.vocab_size == 30_522 and "model.vocab_size = 30,522" in notes
    full, notes = outline.assumed_system(check.check(configs.get("twelve")))
    assert full.config.num_vqa_answers == 3129 and notes == ()
    for name, size in (("lit_decoder:full", 32_000), ("mammut:full", None)):
        run = check.check(configs.get(name))
        system, notes = outline.assumed_system(run)
        assert system.config.decoder.vocab_size == (size or run.text.vocab_size) and notes
        (shapes,) = outline.batch_shapes(run, system).values()
        side, rows = system.image_size, run.mixture.batch_size
        assert shapes["images"].shape == (rows, side, side, 3)
        assert shapes["tokens"].shape == (
            rows,
            system.sizes(check.task_runs(run)[0].task)["max_tokens"],
        )

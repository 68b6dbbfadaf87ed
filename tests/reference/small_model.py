"""Cheap trainings: a model of few layers, and programs that are compiled once."""

import dataclasses
from collections.abc import Iterator

import pytest

from twelve_in_one.models.two_stream.config import TwoStreamConfig

# Overrides of a config of the world. Compilation time depends on layers, not on widths.
SMALL_MODEL = {
    "model.text.num_layers": 1,
    "model.visual.num_layers": 1,
    "model.text_connections": (0,),
    "model.visual_connections": (0,),
}


def one_layer(config: TwoStreamConfig) -> TwoStreamConfig:
    """The model with one layer per stream, and one connection after them."""
    return dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, num_layers=1),
        visual=dataclasses.replace(config.visual, num_layers=1),
        text_connections=(0,),
        visual_connections=(0,),
    )


@pytest.fixture(scope="module")
def share_programs() -> Iterator[None]:
    """Trainings of a module compile each of their programs once, like the tasks of one training."""
    from twelve_in_one import train
    from twelve_in_one.training import programs

    compile_job, compile_programs, kept = train.compile_job, programs._compile, {}

    def shared(job, abstract, frozen):
        run, placement = job.run, job.placement
        about = (placement.mesh, placement.layout, job.system, job.frozen, run.pretraining)
        # For the update and the sum, whose names do not show their dependencies.
        of_update = (run.optimizer, run.schedule.num_rounds)

        def compile_missing(placement, jobs, log):
            names = {
                key: repr((*about, key, "update" in (key, key[0]) and of_update)) for key in jobs
            }
            missing = {key: jobs[key] for key in jobs if names[key] not in kept}
            if missing:
                compiled, table = compile_programs(placement, missing, log)
                for (key, program), entry in zip(compiled.items(), table, strict=True):
                    kept[names[key]] = program, entry
            found = {key: kept[name] for key, name in names.items()}
            return {key: one[0] for key, one in found.items()}, tuple(
                one[1] for one in found.values()
            )

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(programs, "_compile", compile_missing)
            return compile_job(job, abstract, frozen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "compile_job", shared)
        yield

"""Says what a run needs on accelerators that are not here: memory, time, traffic, what to change.

    python -m twelve_in_one.preflight --config=twelve --topology=v5e:16x16 \
        --config.model.scan_layers=True
    python -m twelve_in_one.preflight --config=mammut:full --topology=v5e:16x16 --slices=4 \
        --config.parallel.layout=hsdp
    python -m twelve_in_one.preflight --config=lit_decoder:full --topology=gpu:h100x8x4

Every program of the run is compiled for the machines, by the compiler for TPUs (`pip install
'twelve_in_one[preflight]'`), or for as many CPU devices in place of GPUs. No accelerator and no
data are needed: sizes that the data would decide are assumed, and named. Figures are kept, so that
the same call again is fast. Exits with 1 if the run does not fit.
"""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from twelve_in_one import atomic, train
from twelve_in_one.config import check
from twelve_in_one.preflight import figures, report, topology

_log = logging.getLogger(__name__)


def define_flags() -> None:
    """The command's options."""
    train.define_config_flag()
    flags.DEFINE_string(
        "topology",
        None,
        "The machines: CHIP:AxB (v5e, v6e) or CHIP:AxBxC (v4, v5p) of a TPU slice, or "
        "gpu:CHIPxGPUSxMACHINES (a100, h100, h200).",
    )
    flags.DEFINE_integer("slices", 1, "How many such TPU slices.", lower_bound=1)
    flags.DEFINE_integer(
        "examples_per_chip",
        0,
        "Look at batches of so many examples for each of the devices that rows are split over, "
        "instead of the config's; 0 takes those.",
        lower_bound=0,
    )
    flags.DEFINE_enum(
        "effort",
        "low",
        ("low", "full"),
        "Of the compiler for TPUs. With low, temporaries and bytes moved are upper bounds; "
        "with full they are a run's, and compilation takes some times as long.",
    )
    flags.DEFINE_bool("training_only", False, "Leave out the programs of validations.")
    flags.DEFINE_string("output", None, "Also write all figures to this JSON file.")
    flags.DEFINE_string(
        "cache",
        "~/.cache/twelve_in_one/preflight",
        "Folder of the figures of earlier calls; '' keeps none.",
    )
    flags.DEFINE_integer(
        "workers", 0, "Programs to compile at a time; 0 takes one per core.", lower_bound=0
    )


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; options start with --")
    options = flags.FLAGS
    train.set_up_logging()
    try:
        machines = topology.parse(options.topology, options.slices)
        run = check.check(options.config)
        topology.prepare(machines, quick=options.effort == "low")
        checked = figures.examine(
            run,
            machines,
            examples_per_chip=options.examples_per_chip,
            training_only=options.training_only,
            cache=Path(options.cache).expanduser() if options.cache else None,
            workers=options.workers,
        )
        text = report.describe(checked)
        if options.output:
            atomic.write(Path(options.output), json.dumps(report.as_json(checked), indent=1))
    except (ValueError, OSError, ImportError) as error:
        _log.debug("where it happened", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(text)
    refused = any("would be refused" in note for note in checked.notes)
    if refused or not report.fits(checked):
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main, flags_parser=train.parse_flags)

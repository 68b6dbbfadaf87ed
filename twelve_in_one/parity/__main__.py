"""Compares the model with arrays recorded from the reference implementation.

    python -m twelve_in_one.parity FIXTURE.npz [FIXTURE.npz ...]

A fixture holds a state dict (`param/*`), its settings (`meta/config_json`) and what the reference
made of them: outputs, intermediates, attention maps, losses, gradients, training runs. Whatever of
these a file holds is run and compared; the exit code is 1 if anything is off by more than its
tolerance. Files of other sizes, layer orders and options work alike. Arrays of big_vision's ViT, of
SigLIP's two towers, of CapPa's captioner, of open_clip's MaMMUT and of region detectors are told by
their names.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import jax

from twelve_in_one.models.two_stream.config import DTYPES, REMAT_POLICIES
from twelve_in_one.parity import cappa, detection, mammut, two_tower, vit
from twelve_in_one.parity.fixture import Check, Fixture, load_fixture, read_arrays
from twelve_in_one.parity.gradients import compare_losses, loss_function
from twelve_in_one.parity.outputs import compare_outputs
from twelve_in_one.parity.training import compare_training


def compare(fixture: Fixture) -> Iterator[Check]:
    """Every comparison that the fixture's arrays allow."""
    with jax.default_matmul_precision("highest"):
        yield from compare_outputs(fixture, "")
        if any(name.startswith("odd_batch/out/") for name in fixture.arrays):
            yield from compare_outputs(fixture, "odd_batch/")
        value = loss_function(fixture)
        yield from compare_losses(fixture, value)
        yield from compare_training(fixture, value)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a row per comparison; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("fixtures", nargs="+", metavar="FIXTURE.npz")
    parser.add_argument("--failures_only", action="store_true", help="print only what is off")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="compute dtype (default: %(default)s)"
    )
    parser.add_argument("--scan_layers", action="store_true", help="run repeated layers in a scan")
    parser.add_argument(
        "--remat", choices=REMAT_POLICIES, default="none", help="rematerialisation policy"
    )
    args = parser.parse_args(argv)
    if args.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    failed = 0
    for path in args.fixtures:
        print(path)
        try:
            overrides = dict(dtype=args.dtype, scan_layers=args.scan_layers, remat=args.remat)
            arrays = read_arrays(path)
            kinds = (
                (vit.is_vit, vit.compare),
                (two_tower.is_two_tower, two_tower.compare),
                (cappa.is_captioner, cappa.compare),
                (mammut.is_mammut, mammut.compare),
                (detection.is_detection, detection.compare),
            )
            known = [compare_kind for is_kind, compare_kind in kinds if is_kind(arrays)]
            if known:
                with jax.default_matmul_precision("highest"):
                    checks = list(known[0](arrays, **overrides))
            else:
                checks = list(compare(load_fixture(path, **overrides)))
        except ValueError as error:
            message = str(error) if str(path) in str(error) else f"{path}: {error}"
            print(message, file=sys.stderr)
            failed += 1
            continue
        if not checks:
            print(f"{path}: holds nothing to compare (no out/, loss/ or train/)", file=sys.stderr)
            failed += 1
        for check in checks:
            if not (check.ok and args.failures_only):
                verdict = "ok  " if check.ok else "FAIL"
                print(
                    f"  {verdict} {check.error:9.2e} <= {check.tolerance:.0e} {check.unit}  "
                    f"{check.name}"
                )
        bad = sum(not check.ok for check in checks)
        print(f"  {len(checks)} comparisons, {bad} beyond their tolerance")
        failed += bad
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

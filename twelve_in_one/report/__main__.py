"""Writes the report of a workdir: python -m twelve_in_one.report --workdir DIR."""

import argparse
import json
import sys
from collections.abc import Sequence

from twelve_in_one import extras
from twelve_in_one.config.paths import local_path
from twelve_in_one.report.results import results_table
from twelve_in_one.report.write import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 if the report was written, else 1 with a line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.report",
        description="Writes DIR/report.html with the plots and results of a run, also of one that "
        "goes on, and prints the table of results.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workdir", type=local_path, required=True, metavar="DIR", help="of the run"
    )
    workdir = parser.parse_args(argv).workdir
    try:
        extras.require("the report", "data")
        path = write_report(workdir)
        results = workdir / "results.json"
        if results.exists():
            print(results_table(json.loads(results.read_bytes())))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

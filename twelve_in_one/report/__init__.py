"""The readable results of a run: a table, plots, example pictures and one HTML page.

    python -m twelve_in_one.report --workdir DIR

Everything is made from the contents of a workdir (`metrics.jsonl`, `results.json`, `config.json`,
`examples/`), at any time, even during a run.
"""

from twelve_in_one.report.results import results_table
from twelve_in_one.report.write import write_report

__all__ = ["results_table", "write_report"]

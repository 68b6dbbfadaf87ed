"""Notebooks as they lie in the repository; that they run, .ci/run sees to."""

import ast
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_some():
    assert len(NOTEBOOKS) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat = pytest.importorskip("nbformat", reason="comes with the extra twelve_in_one[dev]")
    nbformat.validate(notebook)
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            # Numbers and pictures belong to a run.
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse(text)
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert "://" in link or (FOLDER / link).exists(), link
    assert "metadata" in notebook and set(notebook["metadata"]) == {"kernelspec", "language_info"}

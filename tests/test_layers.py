"""Imports run one way: the graph of folders, read from the files, against the order of the map."""

import ast
import collections
from pathlib import Path

import pytest

import twelve_in_one

PACKAGE = Path(twelve_in_one.__file__).parent
# From those that use to those that are used; what stands in one row does not know each other.
LAYERS = (
    ("demo", "experiments", "preflight"),
    ("train", "evaluate", "export", "data.build", "data.real_samples", "data.regions.extract"),
    ("predict", "parity"),
    ("convert", "training"),
    ("report", "exporting"),
    ("evaluators",),
    ("checkpoints",),
    ("world", "logs"),
    ("data",),
    ("config",),
    ("systems",),
    ("tasks",),
    ("mixing", "optim"),
    ("models",),
    ("parallel",),
    ("configs", "extras", "atomic"),
    # Plain data, which everybody may read.
    ("config.settings", "config.paths"),
    ("config.image_settings",),
    ("config.fields",),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
# These work for every system.
KNOW_NO_MODEL = ("training", "evaluators", "checkpoints", "exporting", "mixing", "parallel", "logs")


def place(module: str) -> str:
    """Folder or file below the package that a module or what it holds belongs to."""
    parts = module.split(".")[1:]
    for length in (3, 2):
        if (longer := ".".join(parts[:length])) in RANK:
            return longer
    return parts[0] if parts else ""


def imports(file: Path) -> list[str]:
    """Full names of what a file imports of the package, at any place in it."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("twelve_in_one"):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("twelve_in_one")]
    return found


@pytest.fixture(scope="module")
def graph() -> dict[tuple[str, str], list[str]]:
    """(folder that imports, folder that is imported) -> "file: name" of each import."""
    edges = collections.defaultdict(list)
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = ("twelve_in_one", *file.relative_to(PACKAGE).with_suffix("").parts)
        module = ".".join(part for part in parts if part not in ("__init__", "__main__"))
        for name in imports(file):
            if place(name) and place(module) != place(name):
                edges[place(module), place(name)].append(f"{file.relative_to(PACKAGE)}: {name}")
    return edges


def draw(graph: dict[tuple[str, str], list[str]]) -> str:
    """The folders in their order, and what each imports."""
    rows = [f"{name:16} -> {', '.join(to for a, to in graph if a == name)}" for name in RANK]
    return "\n".join(rows)


def test_every_folder_has_its_place(graph):
    assert {name for edge in graph for name in edge} <= set(RANK), draw(graph)
    known = {name for name in RANK if "." not in name}
    there = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert there - {"__init__"} == known


def test_no_import_runs_upwards(graph):
    upwards = {edge: lines for edge, lines in graph.items() if RANK[edge[0]] >= RANK[edge[1]]}
    assert not upwards, f"{upwards}\n{draw(graph)}"


@pytest.mark.parametrize("folder", KNOW_NO_MODEL)
def test_the_trainer_knows_no_model(graph, folder):
    assert not graph.get((folder, "models")), graph[folder, "models"]
    systems = [line for line in graph.get((folder, "systems"), ()) if "systems.base" not in line]
    # Who reads a model asks for it by what is written in its folder.
    assert systems in ([], ["checkpoints/weights.py: twelve_in_one.systems"])
    named = [line for line in graph.get((folder, "tasks"), ()) if "tasks.twelve" in line]
    # What a folder without a run is tested on: the splits of the paper's tables.
    assert named in ([], ["evaluators/target.py: twelve_in_one.tasks.twelve.TASKS"])

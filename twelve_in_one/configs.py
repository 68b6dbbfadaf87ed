"""The configs that ship with the package, by name.

    from twelve_in_one import configs

    config = configs.get("world:small")    # as --config=world:small
    config.schedule.num_rounds = 100
    print(configs.listing())

Their files are those of the repository's folder `configs/`; an installation keeps it next to this
module. Your own config is a Python file with a function `get_config`, given by its path.
"""

import ast
import difflib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_INSTALLED = "config_files"  # see setup.py


def folder() -> Path:
    """The folder of the files: in an installation inside the package, in a clone next to it."""
    here = Path(__file__).resolve()
    installed = here.with_name(_INSTALLED)
    return installed if installed.is_dir() else here.parents[1] / "configs"


def names() -> tuple[str, ...]:
    """Names of the shipped configs, sorted, but "world", the default job, first."""
    found = (path.stem for path in folder().glob("*.py") if not path.stem.startswith("_"))
    return tuple(sorted(found, key=lambda name: (name != "world", name)))


def listing() -> str:
    """One line per config: its name, and the first line of its docstring."""
    width = max(map(len, names()), default=0)
    return "\n".join(f"{name:<{width}}  {_summary(folder() / f'{name}.py')}" for name in names())


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def locate(config: str) -> str:
    """The path of a config's file, with its argument if it has one: "world:small" gives
    ".../world.py:small".

    Args:
      config: name or path, perhaps with ":ARGUMENT".

    Raises:
      ValueError: neither a config nor a file of this name exists.
    """
    name, colon, argument = config.partition(":")
    if name in names():
        return f"{folder() / name}.py{colon}{argument}"
    path = Path(name).expanduser()
    if path.is_file():
        return f"{path}{colon}{argument}"
    if path.suffix == ".py" or len(path.parts) > 1:
        hint = f"; the one that ships is called {path.stem}" if path.stem in names() else ""
        raise ValueError(f"there is no file {name}{hint}")
    close = difflib.get_close_matches(name, names(), n=1)
    hint = f" did you mean {close[0]}?" if close else ""
    raise ValueError(
        f"there is no config {name!r};{hint} known: {', '.join(names())}, or the path of a file"
    )


def get(config: str) -> "ConfigDict":
    """The settings of a config, to change as you like.

    Args:
      config: as after `--config=`: the name of a shipped config, or the path of a file, perhaps
        with an argument: "world", "world:small", "group:G1,G3", "mine.py".

    Returns:
      A locked ConfigDict: unknown settings cannot be set by mistake.

    Raises:
      ValueError: there is no such config, or it does not take this argument.
    """
    path, _, argument = locate(config).partition(":")
    spec = importlib.util.spec_from_file_location(f"{Path(path).stem}_config", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: a config is a Python file, NAME.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.get_config(*([argument] if argument else []))
    return found.lock()

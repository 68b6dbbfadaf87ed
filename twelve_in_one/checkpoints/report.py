"""The loaded, initialised and refused entries of a conversion, and the error that carries them."""

import collections
import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence

_SHOWN = 20  # names listed per kind; a wrong config misses hundreds


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of reading a state dict.

    Attributes:
      loaded: entries that became parameters.
      initialised: absent entries that were allowed to be absent and were drawn at random.
      missing: absent entries that were not allowed to be absent.
      unexpected: entries that the model does not know and that were not allowed.
      wrong_shape: (name, shape in the file, shape in the model).
      unused: entries of the file that no parameter uses.
      notes: anything else that a user should know, one line each.
      nearest: for some missing and unexpected names, the most similar name on the other side.
    """

    loaded: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[tuple[str, str, str], ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    nearest: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True if nothing is missing, unexpected or of a wrong shape."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        shapes = [f"{name}: {found}, expected {needed}" for name, found, needed in self.wrong_shape]
        lines = [
            _line("loaded", self.loaded, "became parameters"),
            _line("initialised", self.initialised, "absent, drawn at random"),
            *_listing(_groups(self.initialised)),
            _line("unused", self.unused, "in the file, not needed by the model"),
            *_listing(_groups(self.unused)),
            _line("missing", self.missing, "not in the file"),
            *_listing([self._with_near(name, "the file has") for name in self.missing]),
            _line("unexpected", self.unexpected, "in the file, unknown to the model"),
            *_listing([self._with_near(name, "did you mean") for name in self.unexpected]),
            _line("wrong shape", self.wrong_shape, ""),
            *_listing(shapes),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def _with_near(self, name: str, words: str) -> str:
        return f"{name} ({words} {self.nearest[name]})" if name in self.nearest else name


class StateDictError(ValueError):
    """A state dict that does not fit the model; `report` has the details."""

    def __init__(self, report: Report):
        super().__init__(f"the state dict does not fit the model\n{report}")
        self.report = report


def nearest_names(names: Sequence[str], candidates: Iterable[str]) -> dict[str, str]:
    """The most similar of `candidates` for each of the first few `names` that have one."""
    candidates = list(candidates)
    found = {}
    for name in names[:_SHOWN]:
        near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.75)
        if near:
            found[name] = near[0]
    return found


def _line(kind: str, names: Sequence[object], meaning: str) -> str:
    return f"{kind:<12}{len(names):>5}  {meaning}".rstrip()


def _groups(names: Sequence[str]) -> list[str]:
    """Names counted by module; whole modules are absent or unused, as a rule."""
    depth = {name: 3 if name.startswith("bert.encoder.") else 2 for name in names}
    modules = collections.Counter(".".join(n.split(".")[:d]) for n, d in depth.items())
    return [f"{module} ({count})" for module, count in modules.items()]


def _listing(texts: Sequence[str]) -> list[str]:
    lines = [f"    {text}" for text in texts[:_SHOWN]]
    if len(texts) > _SHOWN:
        lines.append(f"    ... and {len(texts) - _SHOWN} more")
    return lines

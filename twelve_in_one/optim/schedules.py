"""Learning-rate schedules: functions of a clock whose value multiplies the base rate.

The clock is the number of rounds done. A round visits every task that currently trains (rounds in
which no task trains do not count). The clock is not the number of updates: with twelve tasks a
round has up to twelve. A clock is a Python int, an integer NumPy array or an int32 JAX array
of any shape, traced or not; only the last computes on the device, in float32. So a schedule can be
printed or plotted without a device, in float64:

    factor = schedules.make("linear", total=40_000, warmup=4_000)
    optimizer = optim.adamw(lambda clock: 2e-5 * factor(clock), groups)
    updates, state = optimizer.update(grads, state, params, clock=rounds)

The `official_*` options follow the released code where it differs; see `make` and `official`.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from twelve_in_one.optim import official
from twelve_in_one.optim.curves import Clock, Schedule, constant, cosine, linear, step

Kind = Literal["constant", "linear", "cosine", "step"]


def update_clock(
    rounds: Clock, later: Any = False, *, official_advance_within_round: bool = False
) -> Clock:
    """The clock of one update, to be passed to the optimizer.

    Args:
      rounds: rounds done before that of the update.
      later: bool; whether the update is not its round's first.
      official_advance_within_round: as given to `make`, whose schedule then distinguishes a
        round's first update from later ones: the clock counts twice as fast and is odd for those.
    """
    return 2 * rounds + later if official_advance_within_round else rounds


def make(
    kind: Kind,
    total: int,
    warmup: float = 0.0,
    *,
    boundaries: Sequence[int] = (),
    decay: float = 0.2,
    official_advance_before_update: bool = False,
    official_advance_within_round: bool = False,
    official_epoch_rounds: int | None = None,
) -> Schedule:
    """A schedule from a config's values.

    The released task training is `make("linear", T, 0.1 * T, official_advance_within_round=True)`
    for "warmup_linear"; for its default, "mannul", with epochs of I rounds, `make("step", T,
    0.1 * T, boundaries=(5 * I, 7 * I), official_advance_within_round=True,
    official_epoch_rounds=I)`. Its pretraining is `make("linear", T, 0.1 * T,
    official_advance_before_update=True)`.

    Args:
      kind: "constant", "linear", "cosine" or "step", after a linear warm-up.
      total: rounds of the run.
      warmup: rounds of warm-up, need not be whole.
      boundaries: of kind "step": rounds after which the factor is multiplied by `decay`.
      decay: of kind "step".
      official_advance_before_update: an update has the factor of the next clock. The run starts
        above 0, and with "linear" its last update has factor 0.
      official_advance_within_round: the schedule advances after the first update of a round; the
        others have the next round's factor; clocks must be those of `update_clock`. A factor that
        changes at an epoch's end still does so for the whole round.
      official_epoch_rounds: of kind "step": see `official.rewritten_step`.

    Raises:
      ValueError: a value out of range, or given for another kind.
    """
    _check(kind, total, warmup, boundaries, decay, official_epoch_rounds)
    if official_advance_before_update and official_advance_within_round:
        raise ValueError(
            "official_advance_before_update is for pretraining, official_advance_within_round for "
            "several tasks: set one of them"
        )
    first = {
        "constant": lambda: constant(warmup),
        "linear": lambda: linear(total, warmup),
        "cosine": lambda: cosine(total, warmup),
        "step": lambda: (
            official.rewritten_step(boundaries, decay, warmup, official_epoch_rounds)
            if official_epoch_rounds is not None
            else step(boundaries, decay, warmup)
        ),
    }[kind]()
    if official_advance_before_update:
        return official.advance_before_update(first)
    if official_advance_within_round:
        return official.advance_within_round(first, warmup, all_of_it=kind == "linear")
    return first


def _check(
    kind: str,
    total: int,
    warmup: float,
    boundaries: Sequence[int],
    decay: float,
    epoch_rounds: int | None,
) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"schedule {kind!r}: known are {', '.join(get_args(Kind))}")
    if total < 1:
        raise ValueError(f"total={total}: a run has at least one round")
    if not 0 <= warmup <= total:
        raise ValueError(f"warmup={warmup} is not within the {total} rounds of the run")
    if kind != "step":
        if boundaries or epoch_rounds is not None:
            raise ValueError(
                f"boundaries and official_epoch_rounds are for schedule 'step', not {kind!r}"
            )
        return
    if not boundaries:
        raise ValueError("schedule 'step' needs boundaries: the rounds at which the rate decays")
    if list(boundaries) != sorted(set(boundaries)) or boundaries[0] < 1:
        raise ValueError(f"boundaries={tuple(boundaries)} must be positive and increasing")
    if not 0 < decay <= 1:
        raise ValueError(f"decay={decay} must be above 0 and at most 1")
    if epoch_rounds is not None and epoch_rounds < 1:
        raise ValueError(f"official_epoch_rounds={epoch_rounds}: an epoch has at least one round")

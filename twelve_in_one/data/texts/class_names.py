"""Names of classes as texts: a decoder can only tell apart what it writes differently."""

from collections.abc import Sequence

from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.texts.tokenizer import TextTokenizer

_SHOWN = 5  # clashes in a message


def check_class_names(
    tokenizer: TextTokenizer,
    names: Sequence[str],
    *,
    max_tokens: int | None = None,
    where: str = "class names",
) -> tuple[str, ...]:
    """Requires that all names are written differently.

    Names that differ in case only clash if the tokenizer lower-cases; so do names that a vocabulary
    can't write but as unknown, or that are equal up to where they are cut.

    Args:
      tokenizer: of the model.
      names: in the order of their classes.
      max_tokens: a name has room for, with the end of text; None: for all of it.
      where: the names come from, for errors.

    Returns:
      The names as the tokenizer writes them, in their order: what an answer is compared with.

    Raises:
      DataError: there is no name; one is empty or too long; two are equal or have the same tokens.
        Says which, with their numbers from 0.
    """
    if isinstance(names, str) or not names:
        raise DataError(f"{where}: expected a list of names, got {names!r}")
    ids = tokenizer.encode_batch(names)
    faults = []
    first: dict[tuple[int, ...], int] = {}
    for number, tokens in enumerate(ids):
        label = f"{names[number]!r} ({number})"
        if not tokens:
            faults.append(f"{label} is empty")
        elif max_tokens is not None and len(tokens) >= max_tokens:
            faults.append(
                f"{label} has {len(tokens)} tokens, with the end of text more than {max_tokens}; "
                "shorten it or raise the length of sequences"
            )
        elif tokens in first:
            faults.append(_clash(tokenizer, names, first[tokens], number, tokens))
        else:
            first[tokens] = number
    if faults:
        more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
        raise DataError(f"{where}: {'; '.join(faults[:_SHOWN])}{more}")
    return tuple(tokenizer.decode(tokens) for tokens in ids)


def _clash(
    tokenizer: TextTokenizer, names: Sequence[str], one: int, two: int, tokens: tuple[int, ...]
) -> str:
    pair = f"{names[one]!r} ({one}) and {names[two]!r} ({two})"
    if names[one] == names[two]:
        return f"{pair} are equal: rename one, as 'crane' to 'crane bird'"
    if tokenizer.unk_id in tokens:
        return f"{pair} hold what the vocabulary cannot write: rename one, or choose another"
    case = tokenizer.lower_case and names[one].lower() == names[two].lower()
    reason = "once lower-cased" if case else "as tokens"
    return f"{pair} are equal {reason}, {tokenizer.decode(tokens)!r}: rename one"

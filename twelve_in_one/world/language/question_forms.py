"""Forms and words of questions in the styles of VQA v2, Visual Genome and GQA."""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np

from twelve_in_one.world.language import claims, queries
from twelve_in_one.world.language.claims import Claim
from twelve_in_one.world.language.naming import in_row, names, neighbours
from twelve_in_one.world.language.queries import Draft
from twelve_in_one.world.scene import Scene


@dataclasses.dataclass(frozen=True)
class Form:
    """A question's origin, its templates, its structure in GQA's terms, and its weight."""

    draft: Callable[[Scene, np.random.Generator], Draft | None]
    templates: tuple[str, ...]
    structure: str = ""
    weight: int = 1

    @property
    def kind(self) -> str:
        """One of "yes/no", "narrow" (two or three possible answers) and "open"."""
        asks = getattr(self.draft, "func", self.draft)
        what = getattr(self.draft, "keywords", {}).get("what")
        if asks is queries.truth:
            return "yes/no"
        narrow = asks in (queries.side, queries.larger_of_two) or what in ("size", "pattern")
        return "narrow" if narrow or self.structure == "choose" else "open"


def _verify(propose: Callable[..., list[Claim]], **settings: object) -> Callable[..., Draft | None]:
    return partial(queries.truth, propose=partial(propose, **settings))


_UNCOLOURED = partial(names, hide=("colour",))
_UNPATTERNED = partial(names, hide=("pattern",))
_UNSIZED = partial(names, hide=("size",))
_SHAPELESS = partial(names, hide=("shape",))
_BY_SHAPE = partial(names, hide=("colour", "pattern", "dark"))
_PICTURE = "[picture|image|scene]"
_HERE = "[ in the picture| in the image| in this scene|]"
_KINDS = (("shape",), ("colour", "shape"), ("colour",), ("size", "shape"), ("pattern", "shape"))
_NUMBERED = (("shape",), ("colour",), ("size", "shape"), ("size", "colour"))

_VQA = (
    Form(
        partial(queries.value, what="colour", namer=_UNCOLOURED),
        (
            "what colour is {the:x}",
            "what is the colour of {the:x}",
            "which colour does {the:x} have",
        ),
        weight=3,
    ),
    Form(
        partial(queries.value, what="colour", namer=in_row),
        ("what colour is {the:x}", "what is the colour of {the:x}"),
    ),
    Form(queries.shared_value, ("what colour are the {many:x}",)),
    Form(
        partial(queries.value, what="shape", namer=_SHAPELESS),
        ("what shape is {the:x}", "what is the shape of {the:x}", "what is {the:x}"),
        weight=3,
    ),
    Form(
        partial(queries.value, what="pattern", namer=_UNPATTERNED),
        ("what pattern does {the:x} have", "what is the pattern of {the:x}"),
    ),
    Form(
        partial(queries.number, properties=_NUMBERED),
        ("how many {many:x} {there}", "how many {many:x} {there}" + _HERE),
    ),
    Form(queries.number_of_all, ("how many {many:x} {there}" + _HERE,)),
    Form(
        partial(queries.number_beside, namer=names),
        ("how many {many:x} are {to:relation} {the:y}",),
    ),
    Form(queries.number_alike, ("how many of the {many:x} are {value}",)),
    Form(
        _verify(claims.counted, properties=_KINDS, bounds=((1, None),)),
        (
            "is there {a:x}" + _HERE,
            "are there any {many:x}" + _HERE,
            "does the " + _PICTURE + " [have|show|contain] {a:x}",
            "do you see {a:x}",
        ),
        weight=6,
    ),
    Form(
        _verify(claims.counted, properties=_NUMBERED, bounds=((2, 2), (3, 3))),
        ("are there [exactly |]{number} {many:x}" + _HERE,),
    ),
    Form(
        _verify(claims.counted, properties=_NUMBERED, bounds=((2, None),)),
        ("is there more than one {bare:x}" + _HERE, "are there several {many:x}" + _HERE),
    ),
    Form(
        _verify(claims.standing, namer=names),
        ("is {the:x} {to:relation} {the:y}",),
    ),
    Form(
        _verify(claims.coloured, namer=_UNCOLOURED),
        ("is {the:x} {value}", "is the colour of {the:x} {value}"),
        weight=5,
    ),
    Form(
        _verify(claims.patterned, namer=_UNPATTERNED),
        ("is {the:x} {value}", "does {the:x} have {marks}"),
        weight=3,
    ),
    Form(_verify(claims.sized, namer=_UNSIZED), ("is {the:x} {value}",)),
    Form(
        _verify(claims.shaped, namer=_SHAPELESS),
        ("is {the:x} {a:y}",),
        weight=3,
    ),
    Form(
        _verify(claims.compared, properties=("shape", "colour")),
        ("are there more {many:x} than {many:y}" + _HERE, "do {many:x} outnumber {many:y}"),
    ),
    Form(
        _verify(claims.compared, properties=("shape", "colour"), equal=True),
        ("are there as many {many:x} as {many:y}" + _HERE,),
    ),
    Form(
        _verify(claims.of_each, properties=(("shape", "size"), ("shape", "pattern"))),
        ("are all [the |]{many:x} {value}", "is every {bare:x} {value}"),
    ),
    Form(
        _verify(claims.larger, namer=_UNSIZED),
        ("is {the:x} [larger|bigger] than {the:y}",),
    ),
    Form(
        _verify(claims.in_half, namer=names),
        ("is {the:x} in the {side} half of the " + _PICTURE,),
    ),
    Form(
        queries.ground,
        (
            "what is the ground made of",
            "what covers the ground",
            "what are the [things|objects] lying on",
            "what is in the background",
        ),
    ),
    Form(
        _verify(claims.lies_on),
        (
            "[is this|are the things] on the {ground:ground}",
            "does the " + _PICTURE + " show {scenery:ground}",
        ),
    ),
)

_VG = (
    Form(
        partial(queries.value, what="colour", namer=_UNCOLOURED),
        ("what colour is {the:x}", "which colour is {the:x}", "how is {the:x} coloured"),
        weight=3,
    ),
    Form(
        partial(queries.value, what="shape", namer=_SHAPELESS),
        ("what is {the:x}", "which shape is {the:x}"),
        weight=3,
    ),
    Form(queries.shape_of_kind, ("what is the only {bare:x}", "what do you call {the:x}")),
    Form(
        partial(queries.neighbour, namer=names),
        ("what is {to:relation} {the:y}", "what lies {to:relation} {the:y}"),
    ),
    Form(
        partial(queries.neighbour, namer=names, words=2),
        ("which thing is {to:relation} {the:y}", "which object is {to:relation} {the:y}"),
    ),
    Form(
        partial(queries.ground_under, namer=names, phrase=True),
        ("where is {the:x}", "where does {the:x} lie"),
    ),
    Form(
        partial(queries.ground_under, namer=names),
        ("what does {the:x} lie on", "what is {the:x} [lying |]on"),
    ),
    Form(
        partial(queries.side, namer=names, long=True),
        (
            "where in the " + _PICTURE + " is {the:x}, {one} or {two}",
            "where is {the:x}, {one} or {two}",
        ),
    ),
    Form(
        partial(queries.side, namer=names),
        ("which side is {the:x} on, {one} or {two}",),
    ),
    Form(
        partial(queries.number, properties=_NUMBERED),
        ("how many {many:x}", "how many {many:x} {there}"),
    ),
    Form(queries.number_of_all, ("how many {many:x} {there}",)),
    Form(
        partial(queries.value, what="size", namer=_UNSIZED),
        ("how [large|big] is {the:x}", "what size is {the:x}"),
    ),
    Form(
        partial(queries.value, what="pattern", namer=_UNPATTERNED),
        (
            "how is {the:x} patterned",
            "what pattern is on {the:x}",
            "which pattern does {the:x} show",
        ),
    ),
    Form(queries.larger_of_two, ("which is {size}, {the:x} or {the:y}",)),
    Form(queries.ground, ("what is the ground", "where [is this|are we|are the things]")),
)

_NEAR_UNCOLOURED = partial(neighbours, hide=("colour",))
_GQA = (
    Form(
        partial(queries.value, what="colour", namer=_NEAR_UNCOLOURED),
        ("what colour is {the:x}", "what is the colour of {the:x}", "{the:x} has what colour"),
        "query",
    ),
    Form(
        partial(queries.value, what="shape", namer=partial(neighbours, hide=("shape",))),
        ("what shape is {the:x}", "what is the shape of {the:x}", "what is {the:x}"),
        "query",
    ),
    Form(
        partial(queries.value, what="pattern", namer=partial(neighbours, hide=("pattern",))),
        ("which pattern does {the:x} have", "what is the pattern of {the:x}"),
        "query",
    ),
    Form(
        partial(queries.value, what="size", namer=partial(neighbours, hide=("size",))),
        ("how large is {the:x}", "what is the size of {the:x}"),
        "query",
    ),
    Form(
        partial(queries.neighbour, namer=neighbours),
        ("what is {to:relation} {the:y}", "{to:relation} {the:y} is what"),
        "query",
    ),
    Form(
        partial(queries.value_of_two, what="colour", namer=_NEAR_UNCOLOURED),
        ("is {the:x} {one} or {two}", "which colour does {the:x} have, {one} or {two}"),
        "choose",
    ),
    Form(
        partial(queries.value_of_two, what="shape", namer=partial(neighbours, hide=("shape",))),
        ("what is {the:x}, {one} or {two}", "which shape is {the:x}, {one} or {two}"),
        "choose",
    ),
    Form(
        partial(queries.value_of_two, what="size", namer=partial(neighbours, hide=("size",))),
        ("is {the:x} {one} or {two}",),
        "choose",
    ),
    Form(
        partial(queries.value_of_two, what="pattern", namer=_UNPATTERNED),
        ("is {the:x} {one} or {two}", "which pattern does {the:x} have, {one} or {two}"),
        "choose",
    ),
    Form(
        partial(queries.relation_of_two, namer=names),
        (
            "where is {the:x}, {one} or {two} when seen from {the:y}",
            "{one} or {two}: where is {the:x} when seen from {the:y}",
        ),
        "choose",
    ),
    Form(
        queries.ground_of_two,
        (
            "are the things on the {ground:one} or on the {ground:two}",
            "[does the picture show|do you see] {scenery:one} or {scenery:two}",
        ),
        "choose",
    ),
    Form(queries.larger_of_two, ("which is {size}, {the:x} or {the:y}",), "choose"),
    Form(queries.holder_of_two, ("which is {value}, {the:x} or {the:y}",), "choose"),
    Form(
        partial(queries.side, namer=neighbours),
        ("is {the:x} at the {one} or at the {two} of the " + _PICTURE,),
        "choose",
    ),
    Form(
        _verify(claims.coloured, namer=_NEAR_UNCOLOURED),
        ("is {the:x} {value}", "does {the:x} look {value}"),
        "verify",
        weight=3,
    ),
    Form(
        _verify(claims.patterned, namer=partial(neighbours, hide=("pattern",))),
        ("is {the:x} {value}", "does {the:x} have {marks}"),
        "verify",
    ),
    Form(
        _verify(claims.coloured_and_patterned, namer=partial(names, hide=("colour", "pattern"))),
        ("is {the:x} both {pattern} and {value}", "does {the:x} look {value} and {pattern}"),
        "logical",
    ),
    Form(
        _verify(claims.of_two_colours, namer=_UNCOLOURED),
        ("is {the:x} either {value} or {other}", "does {the:x} look {value} or {other}"),
        "logical",
    ),
    Form(
        _verify(claims.one_of_two, namer=_BY_SHAPE),
        ("is {the:x} or {the:y} {value}", "is either {the:x} or {the:y} {value}"),
        "logical",
    ),
    Form(
        _verify(claims.both_of_two, namer=_BY_SHAPE),
        ("are {the:x} and {the:y} both {value}", "are both {the:x} and {the:y} {value}"),
        "logical",
    ),
    Form(
        _verify(claims.standing, namer=names),
        ("is {the:x} {to:relation} {the:y}", "does {the:x} lie {to:relation} {the:y}"),
        "verify",
    ),
    Form(
        _verify(claims.among, namer=names),
        ("is {the:x} between {the:y} and {the:z}", "does {the:x} lie between {the:y} and {the:z}"),
        "verify",
    ),
    Form(
        _verify(claims.beside, namer=names, properties=_KINDS),
        (
            "is there {a:x} {to:relation} {the:y}",
            "are there any {many:x} {to:relation} {the:y}",
            "do you see {a:x} {to:relation} {the:y}",
        ),
        "verify",
    ),
    Form(
        _verify(claims.exists_on, properties=_KINDS),
        ("is there {a:x} on the {ground:ground}", "does {a:x} lie on the {ground:ground}"),
        "verify",
        weight=3,
    ),
    Form(
        _verify(claims.either_exists),
        ("are there either {many:x} or {many:y}" + _HERE, "is there {a:x} or {a:y}" + _HERE),
        "logical",
        weight=3,
    ),
    Form(
        _verify(claims.both_exist),
        ("are there both {many:x} and {many:y}" + _HERE, "is there {a:x} as well as {a:y}" + _HERE),
        "logical",
    ),
    Form(
        _verify(claims.alike, namer=_BY_SHAPE, properties=("colour", "pattern", "size")),
        (
            "do {the:x} and {the:y} have the same {what}",
            "is {the:x} of the same {what} as {the:y}",
            "does {the:x} have the same {what} as {the:y}",
        ),
        "compare",
    ),
    Form(
        _verify(claims.larger, namer=partial(neighbours, hide=("size",))),
        ("is {the:x} [larger|bigger] than {the:y}",),
        "compare",
    ),
)

STYLES = {"vqa": _VQA, "vg": _VG, "gqa": _GQA}

"""Questions with answers, in the styles of VQA v2, Visual Genome and GQA.

People's answers are the truth with a few variants and mistakes, so soft scores occur.
"""

import dataclasses

import numpy as np

from twelve_in_one.world.language.queries import Draft
from twelve_in_one.world.language.question_forms import STYLES
from twelve_in_one.world.language.words import pick, question, say, shuffled
from twelve_in_one.world.scene import COLOURS, GROUNDS, PATTERNS, SHAPES, Scene

# Frequencies of the kinds of answers. If a question shows what kind of answer it wants, a guess
# among those beats any constant answer; this gain is smaller if fewer questions have few answers
# besides yes and no.
_SHARES = {
    "vqa": {"yes/no": 0.74, "narrow": 0.03, "open": 0.23},
    "vg": {"narrow": 0.08, "open": 0.92},
    "gqa": {"yes/no": 0.75, "narrow": 0.06, "open": 0.19},
}
_TRIES = 8  # of forms, before a scene is given up
_PEOPLE = 10
# How many of ten people do not give the usual answer; they are never the majority.
_DISSENTERS = (0, 0, 0, 1, 1, 2, 3, 4)
# Other ways to say an answer, and answers easily confused with it.
_VARIANTS = {
    "circle": ("disc", "round", "ring"),
    "ring": ("circle", "hoop"),
    "crescent": ("moon",),
    "square": ("box", "diamond"),
    "diamond": ("square", "rhombus"),
    "cross": ("plus",),
    "triangle": ("arrow",),
    "arrow": ("triangle",),
    "plain": ("none", "no pattern"),
    "striped": ("stripes", "lines"),
    "dotted": ("dots", "spots"),
    "large": ("big",),
    "small": ("little",),
    "grass": ("lawn", "meadow"),
    "sand": ("beach", "desert"),
    "sea": ("water", "ocean"),
    "snow": ("ice",),
    "street": ("road",),
    "red": ("orange",),
    "orange": ("red", "yellow"),
    "yellow": ("orange",),
    "purple": ("blue", "violet"),
    "brown": ("dark orange",),
    "white": ("grey",),
    "above": ("over",),
    "below": ("under",),
    "top": ("up",),
    "bottom": ("down",),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene.

    Attributes:
      text: the question.
      answer: the right answer.
      human_answers: of ten people; most give the right one.
      question_type: its first words (VQA), its first word (Visual Genome) or its structure (GQA:
        "verify", "query", "choose", "logical", "compare").
      answer_type: "yes/no", "number" or "other".
      objects: indices of the things it is about.
    """

    text: str
    answer: str
    human_answers: tuple[str, ...]
    question_type: str
    answer_type: str
    objects: tuple[int, ...]


def ask(scene: Scene, rng: np.random.Generator, style: str) -> Question | None:
    """A question with a certain answer in the picture.

    Args:
      scene: contents of the picture.
      rng: source of all random draws.
      style: "vqa", "vg" or "gqa".

    Returns:
      The question, or None if the scene does not support the drawn forms.

    Raises:
      ValueError: the style is not one of these.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {tuple(STYLES)}, got {style!r}")
    shares = _SHARES[style]
    kind = tuple(shares)[int(rng.choice(len(shares), p=tuple(shares.values())))]
    forms = [form for form in STYLES[style] if form.kind == kind for _ in range(form.weight)]
    for _ in range(_TRIES):
        form = pick(rng, forms)
        draft = form.draft(scene, rng)
        if draft is not None:
            break
    else:
        return None
    text = question(say(rng, pick(rng, form.templates), **draft.fields))
    words = text.lower().split()
    kinds = {"vqa": " ".join(words[:2]), "vg": words[0], "gqa": form.structure}
    other = "number" if draft.answer.isdigit() else "other"
    return Question(
        text=text,
        answer=draft.answer,
        human_answers=_people(draft, rng),
        question_type=kinds[style],
        answer_type="yes/no" if draft.answer in ("yes", "no") else other,
        objects=draft.things,
    )


def _people(draft: Draft, rng: np.random.Generator) -> tuple[str, ...]:
    answer = draft.answer
    others = draft.wrong + _VARIANTS.get(answer, ())
    if answer.isdigit():
        others += tuple(str(n) for n in (int(answer) - 1, int(answer) + 1) if n >= 0)
    elif answer.startswith("on the "):
        others += (answer.removeprefix("on the "),)
    elif answer.startswith("at the "):
        others += (answer.removeprefix("at the "),)
    elif " " in answer:
        others += (answer.split()[-1],)
    if not others:
        for values in (tuple(COLOURS), SHAPES, PATTERNS, GROUNDS):
            if answer in values:
                others = tuple(value for value in values if value != answer)
    dissenters = pick(rng, _DISSENTERS) if others else 0
    given = [pick(rng, others) for _ in range(dissenters)]
    return tuple(shuffled(rng, given + [answer] * (_PEOPLE - len(given))))

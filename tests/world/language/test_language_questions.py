"""Questions: answers against an own reading of their text, and texts that do not tell answers."""

import collections
import re

import numpy as np
import pytest

from twelve_in_one.world.language import questions
from twelve_in_one.world.scene import COLOURS, GROUNDS, PATTERNS, SHAPES, SIZES

STYLES = ("vqa", "vg", "gqa")


@pytest.fixture(scope="module")
def asked(scenes):
    rng = np.random.default_rng(11)
    found = {style: [] for style in STYLES}
    for style in STYLES:
        for scene in scenes + scenes * (style != "vg"):
            question = questions.ask(scene, rng, style)
            if question is not None:
                found[style].append((scene, question))
    return found


def test_record(asked):
    for style in STYLES:
        assert len(asked[style]) > 2000
        for scene, question in asked[style]:
            assert re.fullmatch(r"[A-Z].*[^ ]\?", question.text)
            assert len(question.human_answers) == 10
            assert collections.Counter(question.human_answers).most_common(1)[0][0] == (
                question.answer
            )
            assert set(question.objects) <= set(range(len(scene.things)))
            kind = {"yes": "yes/no", "no": "yes/no"}.get(question.answer, "other")
            kind = "number" if question.answer.isdigit() else kind
            assert question.answer_type == kind
            start = question.text.lower()
            if style == "gqa":
                known = ("verify", "query", "choose", "logical", "compare")
                assert question.question_type in known
            else:
                assert start.startswith(question.question_type)
    soft = [len(set(question.human_answers)) > 1 for _, question in asked["vqa"]]
    assert 0.3 < np.mean(soft) < 0.8


def _readers(reading):
    """Own answers: pattern of the text -> what the groups' words make of the scene."""
    noun = re.sub(r"\((?!\?)", "(?:", reading.PHRASE)
    relations = {
        "left": "to the left of|left of|on the left side of",
        "right": "to the right of|right of|on the right side of",
        "above": "above|over|higher than",
        "below": "below|under|lower than",
        "near": "near|next to|close to|beside",
    }
    relation = "|".join(relations.values())
    looks = "|".join((*COLOURS, *PATTERNS, *SIZES))
    here = r"(?: in (?:the|this) (?:picture|image|scene))?"

    def the(phrase, scene):
        (index,) = reading.fitting(phrase, scene)
        return scene.things[index]

    def yes(truth):
        assert truth is not None
        return "yes" if truth else "no"

    def stands(one, words, other):
        name = next(n for n, w in relations.items() if words in w.split("|"))
        return reading.stands(one, name, other)

    def has(thing, look):
        name = "colour" if look in COLOURS else "pattern" if look in PATTERNS else "size"
        assert name == "size" or not thing.shaded
        return getattr(thing, name) == look

    def exists(phrase, scene):
        """None where what is not seen may be behind a curtain, or be what a shaded thing is."""
        if reading.fitting(phrase, scene):
            return True
        parts = reading.parts(phrase)
        told = {name: value for name, value in parts.items() if name in ("shape", "size")}
        unsure = parts.keys() & {"colour", "pattern"} and any(
            thing.shaded and all(getattr(thing, name) == value for name, value in told.items())
            for thing in scene.things
        )
        return None if unsure or scene.curtain else False

    def least(told):
        return False if False in told else None if None in told else True

    def most(told):
        return True if True in told else None if None in told else False

    def neighbour(scene, words, phrase):
        anchor = the(phrase, scene)
        told = [(t, stands(t, words, anchor)) for t in scene.things if t is not anchor]
        assert None not in [holds for _, holds in told]
        (thing,) = [thing for thing, holds in told if holds]
        return thing

    return {
        rf"(?:what|which) colour is the ({noun})": lambda s, p: (
            the(p, s).colour if not the(p, s).shaded else None
        ),
        rf"what is the (colour|shape|pattern|size) of the ({noun})": lambda s, n, p: getattr(
            the(p, s), n
        ),
        rf"is there an? ({noun}){here}": lambda s, p: yes(exists(p, s)),
        rf"is there an? ({noun}) or an? ({noun}){here}": lambda s, p, q: yes(
            most([exists(p, s), exists(q, s)])
        ),
        rf"is there an? ({noun}) as well as an? ({noun}){here}": lambda s, p, q: yes(
            least([exists(p, s), exists(q, s)])
        ),
        rf"how many ({noun}) (?:are there|can be seen){here}": lambda s, p: str(
            len(reading.fitting(p, s))
        ),
        rf"are there (?:exactly )?({'|'.join(reading.NUMBERS)}) ({noun}){here}": lambda s, n, p: (
            yes(len(reading.fitting(p, s)) == reading.NUMBERS.index(n))
        ),
        rf"are there more ({noun}) than ({noun}){here}": lambda s, p, q: yes(
            len(reading.fitting(p, s)) > len(reading.fitting(q, s))
        ),
        rf"are there as many ({noun}) as ({noun}){here}": lambda s, p, q: yes(
            len(reading.fitting(p, s)) == len(reading.fitting(q, s))
        ),
        rf"is the ({noun}) ({relation}) the ({noun})": lambda s, p, r, q: yes(
            stands(the(p, s), r, the(q, s))
        ),
        rf"is the ({noun}) ({looks})": lambda s, p, look: yes(has(the(p, s), look)),
        rf"is the ({noun}) an? ({noun})": lambda s, p, q: yes(
            the(p, s).shape == reading.parts(q)["shape"]
        ),
        rf"is the ({noun}) both ({looks}) and ({looks})": lambda s, p, a, b: yes(
            has(the(p, s), a) and has(the(p, s), b)
        ),
        rf"is the ({noun}) either ({looks}) or ({looks})": lambda s, p, a, b: yes(
            has(the(p, s), a) or has(the(p, s), b)
        ),
        rf"is the ({noun}) (?:larger|bigger) than the ({noun})": lambda s, p, q: yes(
            the(p, s).radius > the(q, s).radius
        ),
        rf"which is (larger|smaller), the ({noun}) or the ({noun})": lambda s, how, p, q: (
            max(the(p, s), the(q, s), key=lambda t: t.radius * (1 if how == "larger" else -1)).shape
        ),
        rf"what is ({relation}) the ({noun})": lambda s, r, p: neighbour(s, r, p).shape,
        rf"which (?:thing|object) is ({relation}) the ({noun})": lambda s, r, p: (
            f"{neighbour(s, r, p).colour} {neighbour(s, r, p).shape}"
        ),
        rf"do the ({noun}) and the ({noun}) have the same (\w+)": lambda s, p, q, n: yes(
            getattr(the(p, s), n) == getattr(the(q, s), n)
        ),
        rf"is the ({noun}) between the ({noun}) and the ({noun})": lambda s, p, q, r: yes(
            reading.between(the(p, s), the(q, s), the(r, s))
        ),
        "what (?:covers the ground|is the ground)": lambda s: s.ground,
        rf"where is the ({noun})": lambda s, p: f"on the {s.ground}",
    }


def test_answers_are_what_the_text_asks_for(asked, reading):
    readers = _readers(reading)
    read = collections.Counter()
    for style in STYLES:
        for scene, question in asked[style]:
            for pattern, answer in readers.items():
                match = re.fullmatch(pattern, question.text[:-1].lower())
                if match:
                    assert answer(scene, *match.groups()) == question.answer, (question, scene)
                    read[pattern] += 1
                    break
    assert min(read[pattern] for pattern in readers) > 8, read
    assert read.total() > 3000


@pytest.mark.parametrize("style", ["vqa", "gqa"])
def test_words_do_not_tell_yes_from_no(scenes, asked, style, blind_accuracy):
    found = [question for _, question in asked[style] if question.answer_type == "yes/no"]
    rng = np.random.default_rng(13)
    while len(found) < 4000:
        question = questions.ask(scenes[rng.integers(len(scenes))], rng, style)
        if question is not None and question.answer_type == "yes/no":
            found.append(question)
    texts = [question.text.lower() for question in found]
    yes = np.array([question.answer == "yes" for question in found])
    assert yes.mean() == pytest.approx(0.5, abs=0.03)
    assert blind_accuracy(texts, yes) < 0.55
    rows = collections.defaultdict(list)
    for row, text in enumerate(texts):
        for word in set(re.findall(r"\w+", text)):
            rows[word].append(row)
    frequent = {word: found for word, found in rows.items() if len(found) >= 200}
    assert len(frequent) > 40
    for word, found in frequent.items():
        assert 0.4 < yes[found].mean() < 0.6, word


@pytest.mark.parametrize(
    "answers, most",
    [
        (tuple(COLOURS), 0.19),
        (SHAPES, 0.17),
        (PATTERNS, 0.42),
        (SIZES, 0.57),
        (GROUNDS, 0.26),
        (("left", "right"), 0.58),
        (("top", "bottom"), 0.58),
        (("above", "below"), 0.6),
        (("0", "1", "2"), 0.44),
    ],
    ids=lambda values: values[0] if isinstance(values, tuple) else None,
)
def test_open_answers_are_about_even(asked, answers, most):
    given = collections.Counter(
        question.answer
        for style in STYLES
        for _, question in asked[style]
        if question.answer in answers
        and not re.match("How many (things|objects) (are there|can be seen)", question.text)
    )
    assert given.total() > 15
    even = 1 / len(answers)  # with few draws, fair ones spread wide
    spread = 3.5 * (even * (1 - even) / given.total()) ** 0.5
    assert max(given.values()) / given.total() < max(most, even + spread), given
    assert min(given[answer] for answer in answers) > 0


def test_choices_come_in_random_order(asked):
    first = [
        match[1] == question.answer
        for _, question in asked["gqa"]
        for match in [re.search(r"(\w+) or (\w+)\?", question.text)]
        if match and question.answer in match.groups()
    ]
    assert len(first) > 120
    assert np.mean(first) == pytest.approx(0.5, abs=3.5 * 0.5 / len(first) ** 0.5)


def test_what_a_question_wants_tells_little(asked):
    """Always "yes" is nearly as good as the best answer to each kind of question."""
    for style, gain in (("vqa", 0.08), ("gqa", 0.08)):
        kinds = collections.defaultdict(collections.Counter)
        for _, question in asked[style]:
            kinds[question.answer_type, question.text.split()[0]][question.answer] += 1
        everything = sum(kinds.values(), collections.Counter())
        constant = max(everything.values())
        by_kind = sum(max(answers.values()) for answers in kinds.values())
        assert by_kind - constant < gain * everything.total(), style


def test_forms(asked, reading):
    for style, least in (("vqa", 80), ("vg", 50), ("gqa", 120)):
        assert len(reading.forms(question.text for _, question in asked[style][:2000])) > least


def test_deterministic(scenes):
    for style in STYLES:
        for scene in scenes[:50]:
            one, two = (questions.ask(scene, np.random.default_rng(2), style) for _ in range(2))
            assert one == two


def test_unknown_style(scenes):
    with pytest.raises(ValueError, match="style must be one of .* got 'okvqa'"):
        questions.ask(scenes[0], np.random.default_rng(0), "okvqa")

"""Sentences about two pictures: their truth as an own reader of the words sees it, and its rate."""

import collections
import re

import numpy as np
import pytest

from twelve_in_one.world.language import pairs


@pytest.fixture(scope="module")
def sentences():
    rng = np.random.default_rng(31)
    return [pairs.sentence(rng) for _ in range(1500)]


@pytest.fixture(scope="module")
def couples(scenes):
    rng = np.random.default_rng(37)
    return [(scenes[i], scenes[j]) for i, j in rng.integers(len(scenes), size=(60, 2))]


_GROUNDS = {
    **{name: name for name in ("grass", "sand", "snow")},
    **{"the sea": "sea", "water": "sea", "a street": "street", "a road": "street"},
}


def _amount(text, reading):
    """Phrase and bounds of "at least two red stars", None if the text is something else."""
    numbers = "|".join(reading.NUMBERS)
    for pattern, bounds in (
        (rf"(?:at least|no fewer than) ({numbers}) (.*)", lambda n: (n, 99)),
        (rf"({numbers}) or more (.*)", lambda n: (n, 99)),
        (rf"(?:exactly|just|only) ({numbers}) (.*)", lambda n: (n, n)),
        (rf"(?:at most|no more than) ({numbers}) (.*)", lambda n: (0, n)),
        (r"(no|not a single) (.*)", lambda n: (0, 0)),
        (r"(an?) (.*)", lambda n: (1, 99)),
    ):
        match = re.fullmatch(pattern, text)
        if match and re.fullmatch(reading.PHRASE, match[2]):
            words = match[1]
            number = reading.NUMBERS.index(words) if words in reading.NUMBERS else 0
            return match[2], bounds(number)
    return None


def _shown(text, scene, reading):
    """Whether a picture shows what the text says."""
    count = lambda phrase: len(reading.fitting(phrase, scene))  # noqa: E731
    if amount := _amount(text, reading):
        return amount[1][0] <= count(amount[0]) <= amount[1][1]
    if match := re.fullmatch(r"more (.*) than (.*)", text):
        return count(match[1]) > count(match[2])
    if match := re.fullmatch(r"(.*) that are all (small|large)", text):
        fit = reading.fitting(match[1], scene)
        return bool(fit) and all(scene.things[i].size == match[2] for i in fit)
    return scene.ground in [_GROUNDS[name] for name in text.split(" or ")]


def _truth(text, left, right, reading):
    """Own judgement of a whole sentence."""
    has, pictures = "(?:shows?|contains?|have|has)", "(?:pictures?|images?)"
    told = lambda words: [_shown(words, scene, reading) for scene in (left, right)]  # noqa: E731
    counts = lambda words: [len(reading.fitting(words, s)) for s in (left, right)]  # noqa: E731
    sides = ("left", "right")
    for pattern, judge in (
        (
            rf"the (left|right) {pictures} {has} (fewer|more) (.*) than the (?:left|right) one",
            lambda side, how, x: _gap(counts(x), side, how),
        ),
        (
            rf"there are (fewer|more) (.*) in the (left|right) {pictures} than in the .* one",
            lambda how, x, side: _gap(counts(x), side, how),
        ),
        (
            rf"(fewer|more) (.*) are in the (left|right) {pictures} than in the .* one",
            lambda how, x, side: _gap(counts(x), side, how),
        ),
        (
            rf"there are not more (.*) in the (left|right) {pictures} than in the .* one",
            lambda x, side: not _gap(counts(x), side, "more"),
        ),
        (
            rf"the (left|right) {pictures} {has} at least as many (.*) as the .* one",
            lambda side, x: not _gap(counts(x), side, "fewer"),
        ),
        (rf"both {pictures} {has} the same number of (.*)", lambda x: len(set(counts(x))) == 1),
        (
            r"there are as many (.*) in the left .* as in the right one",
            lambda x: len({*counts(x)}) == 1,
        ),
        (r"the number of (.*) is the same in .*", lambda x: len(set(counts(x))) == 1),
        (
            rf"the number of (.*) in both {pictures} together is (\w+)",
            lambda x, n: sum(counts(x)) == reading.NUMBERS.index(n),
        ),
        (
            rf"(?:there (?:is|are) (.*) in both {pictures} together"
            rf"|together the two {pictures} {has} (.*)|the {pictures} {has} (.*) in (?:all|total))",
            lambda *x: _together(next(filter(None, x)), counts, reading),
        ),
        (
            rf"one (?:of the )?{pictures} {has} (.*), but the other one does not",
            lambda x: sum(told(x)) == 1,
        ),
        (
            rf"(?:one (?:of the )?|there is one ){pictures} (?:that )?{has} (.*?),?"
            rf" (?:and|while) the other (?:one )?(?:{has} )?(.*)",
            lambda x, y: any(a and b for a, b in zip(told(x), told(y)[::-1], strict=True)),
        ),
        (rf"(?:exactly|only|just) one of the {pictures} {has} (.*)", lambda x: sum(told(x)) == 1),
        (rf"(?:at least one|one or both) of the {pictures} {has} (.*)", lambda x: any(told(x))),
        (rf"neither (?:of the )?{pictures} {has} (.*)", lambda x: not any(told(x))),
        (
            rf"(?:each|both|each of the two) {pictures} {has} (.*)",
            lambda x: all(told(x)),
        ),
        (
            rf"the (left|right) {pictures} {has} (.*)",
            lambda side, x: told(x)[sides.index(side)],
        ),
        (
            rf"(?:on|to) the (left|right) is a {pictures} that {has} (.*)",
            lambda side, x: told(x)[sides.index(side)],
        ),
        (
            rf"(.*) can be seen in the (left|right) {pictures}",
            lambda x, side: told(x)[sides.index(side)],
        ),
    ):
        match = re.fullmatch(pattern, text)
        if match:
            return judge(*match.groups())
    raise AssertionError(f"not understood: {text}")


def _gap(counts, side, how):
    more = counts[0] - counts[1] if side == "left" else counts[1] - counts[0]
    return more > 0 if how == "more" else more < 0


def _together(text, counts, reading):
    phrase, (low, high) = _amount(text, reading)
    return low <= sum(counts(phrase)) <= high


def test_truth_is_what_the_words_say(sentences, couples, reading):
    for sentence in sentences:
        for left, right in couples[:6]:
            expected = _truth(sentence.text[:-1].lower(), left, right, reading)
            assert sentence.truth(left, right) is expected, sentence


def test_rates(sentences, couples):
    rates = [np.mean([s.truth(*couple) for couple in couples]) for s in sentences[:700]]
    assert np.mean(rates) == pytest.approx(0.45, abs=0.07)
    assert np.quantile(rates, 0.02) > 0.12 and np.quantile(rates, 0.98) < 0.82
    assert np.mean([0.25 < rate < 0.75 for rate in rates]) > 0.85


def test_words_tell_nothing_once_pairs_are_chosen(sentences, couples, blind_accuracy):
    """As a writer does: equally many pairs of which a sentence is true and false."""
    rng = np.random.default_rng(0)
    texts, truths = [], []
    for sentence in sentences:
        found = collections.defaultdict(list)
        for couple in couples:
            found[sentence.truth(*couple)].append(couple)
        uses = min(2, len(found[True]), len(found[False]))
        texts += [sentence.text] * 2 * uses
        truths += [True, False] * uses
    order = rng.permutation(len(texts))
    assert len(texts) > 4000
    accuracy = blind_accuracy([texts[i] for i in order], np.array(truths)[order])
    assert accuracy < 0.55


def test_forms(sentences, reading):
    assert len(reading.forms(sentence.text for sentence in sentences)) > 120
    assert len({type(sentence.rule) for sentence in sentences}) == 4


def test_deterministic():
    one, two = (pairs.sentence(np.random.default_rng(3)) for _ in range(2))
    assert one == two

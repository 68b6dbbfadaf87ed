"""Scores of captions against the official evaluation's results and against their definitions."""

import collections
import itertools
import json
import math
import random

import numpy as np
import pytest

from twelve_in_one.tasks.metrics import captions, result_files, texts
from twelve_in_one.tasks.metrics.ptb import tokenize

SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")


def _check_recorded(recorded):
    images = recorded["images"]
    for image in images:
        pairs = zip(image["references"], image["references_tokenised"], strict=True)
        for text, words in [(image["candidate"], image["candidate_tokenised"]), *pairs]:
            assert " ".join(tokenize(text)) == words
    found = captions.evaluate(
        [{"image_id": x["image_id"], "caption": x["candidate"]} for x in images],
        {x["image_id"]: x["references"] for x in images},
    )
    for name in SCORES:
        assert found[name] / 100 == pytest.approx(recorded["corpus"][name], abs=1e-12)
        for image in images:
            score = found["per_image"][image["image_id"]][name] / 100
            assert score == pytest.approx(image[name], abs=1e-12)
    assert found["num_images"] == len(images)
    assert found["empty"] == sum(not x["candidate_tokenised"] for x in images)


@pytest.mark.parametrize("name", ["many", "single_image"])
def test_official_scores_of_invented_captions(recorded_dir, name):
    recorded = json.loads((recorded_dir / "metrics/captions_invented.json").read_text())
    _check_recorded(recorded[name])


@pytest.mark.parametrize("name", ["hard", "mild_leave_one_out"])
def test_official_scores_of_real_captions(shared_dir, name):
    path = shared_dir / "fixtures/metrics/captions_real.json"
    _check_recorded(json.loads(path.read_text())[name])


def test_official_words(recorded_dir):
    recorded = json.loads((recorded_dir / "metrics/captions_tokeniser.json").read_text())
    assert {text: " ".join(tokenize(text)) for text, _ in recorded["rows"]} == dict(
        recorded["rows"]
    )


@pytest.mark.parametrize(
    "text, words",
    [  # what the official tokenizer gives
        ("vitamin C. The dog", "vitamin c the dog"),
        ("in D.C. The dog. F.B.I. men", "in d.c. the dog f.b.i. men"),
        ("No. 5, the no. of nos. 5", "no. 5 the no of nos. 5"),
        ("Cannot. 'Twas CAN'T gonna're", "can not 't was ca n't gonna 're"),
        ("ri'llght 'made up, 's 'tisn n't\u00e9", "ri llght made up 's 't isn n't\u00e9"),
        ("call (555) 123 4567 or 555-1234", "call -lrb-555-rrb-\u00a0123\u00a04567 or 555-1234"),
        ("1 1/2 cups, 3rd; 9:30am -5", "1\u00a01/2 cups 3rd 9:30 am -5"),
        ("two--three ---- five-----six", "two three five ----- six"),
        ("wait.. what etc.a and the U.S.-based", "wait what etc. a and the u.s.-based"),
        ("A&B Mr.Smith miss. Miss. wash.", "a&b mr.smith miss miss. wash"),
        ("<b>bold</b> a < b [x] ;] <:)", "<b> bold </b> a < b -lsb- x -rsb- ;] <:-rrb-"),
        ("&amp; &quot;hi&quot; don\u2019t o\u2019clock", "& hi do n't o\u2019clock"),
        ("\u65e5\u672c dog\U0001f600s a\u00adb 90\u00b0", "\u65e5\u672c dog s ab 90 \u00b0"),
        ("rock'n'roll the '90s y'know hawai'i", "rock 'n' roll the '90s y' know hawai'i"),
        ("me@site.org http://a.com/b, www.x.org/yz.", "me@site.org http://a.com/b www.x.org/yz"),
        ("\n\t ", ""),
    ],
)
def test_words(text, words):
    assert " ".join(tokenize(text)) == words


# By definition


def _ngrams(words, n):
    return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _cider_d(candidates, references):
    """The formula as it is written, for words in place of captions."""
    df = collections.Counter(
        ngram
        for given in references
        for ngram in {x for r in given for n in range(1, 5) for x in _ngrams(r, n)}
    )
    scores = []
    for candidate, given in zip(candidates, references, strict=True):
        terms = []
        for n, reference in itertools.product(range(1, 5), given):
            idf = {x: math.log(len(references) / max(1, df[x])) for x in _ngrams(candidate, n)}
            idf |= {x: math.log(len(references) / max(1, df[x])) for x in _ngrams(reference, n)}
            c, r = (
                {x: count * idf[x] for x, count in _ngrams(words, n).items()}
                for words in (candidate, reference)
            )
            norms = np.linalg.norm(list(c.values())) * np.linalg.norm(list(r.values()))
            gap = sum(_ngrams(candidate, 2).values()) - sum(_ngrams(reference, 2).values())
            overlap = sum(min(c[x], r[x]) * r[x] for x in c if x in r)
            terms.append(math.exp(-(gap**2) / 72) * overlap / norms if norms else 0.0)
        scores.append(10 * sum(terms) / 4 / len(given))
    return scores


def _lcs(one, two):
    if not one or not two:
        return 0
    if one[-1] == two[-1]:
        return _lcs(one[:-1], two[:-1]) + 1
    return max(_lcs(one[:-1], two), _lcs(one, two[:-1]))


@pytest.fixture(scope="module")
def invented():
    """(candidates, references), lists of words; some candidates are empty."""
    rng = random.Random(5)

    def words(low, high):
        return rng.choices(["red", "blue", "dog", "cat", "runs", "on"], k=rng.randint(low, high))

    references = [[words(1, 9) for _ in range(rng.randint(1, 4))] for _ in range(30)]
    candidates = [rng.choice([words(0, 9), rng.choice(given)]) for given in references]
    return candidates, references


def _evaluate(candidates, references, **options):
    return captions.evaluate(
        [{"image_id": i, "caption": " ".join(words)} for i, words in enumerate(candidates)],
        {i: [" ".join(words) for words in given] for i, given in enumerate(references)},
        **options,
    )


def test_scores_by_definition(invented):
    candidates, references = invented
    found = _evaluate(candidates, references)
    for i, expected in enumerate(_cider_d(candidates, references)):
        assert found["per_image"][i]["CIDEr-D"] == pytest.approx(100 * expected, abs=1e-9)
    for i, (candidate, given) in enumerate(zip(candidates, references, strict=True)):
        precision = max(_lcs(candidate, r) for r in given) / max(1, len(candidate))
        recall = max(_lcs(candidate, r) / len(r) for r in given)
        f = precision and (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
        assert found["per_image"][i]["ROUGE-L"] == pytest.approx(100 * f, abs=1e-9)
    right = total = length = 0
    for candidate, given in zip(candidates, references, strict=True):
        limits = [_ngrams(r, 2) for r in given]
        right += sum(min(k, max(r[x] for r in limits)) for x, k in _ngrams(candidate, 2).items())
        total += sum(_ngrams(candidate, 2).values())
        length += min((abs(len(r) - len(candidate)), len(r)) for r in given)[1]
    ones = sum(
        min(k, max(_ngrams(r, 1)[x] for r in given))
        for candidate, given in zip(candidates, references, strict=True)
        for x, k in _ngrams(candidate, 1).items()
    )
    written = sum(map(len, candidates))
    brevity = min(1.0, math.exp(1 - length / written))
    expected = brevity * math.sqrt(ones / written * right / total)
    assert found["BLEU-2"] == pytest.approx(100 * expected, rel=1e-9)


def test_frequencies_of_a_whole_split(invented):
    candidates, references = invented
    whole = _evaluate(candidates, references)
    texts_of = {i: [" ".join(r) for r in given] for i, given in enumerate(references)}
    frequencies = captions.document_frequencies(texts_of)
    part = _evaluate(candidates[:3], references[:3], frequencies=frequencies)
    for i in range(3):
        assert part["per_image"][i] == whole["per_image"][i]
    assert part["CIDEr-D"] != _evaluate(candidates[:3], references[:3])["CIDEr-D"]
    with pytest.raises(ValueError, match="over no image"):
        _evaluate(candidates, references, frequencies=captions.document_frequencies({}))


def test_faults_name_the_images():
    predictions = [{"image_id": i, "caption": "a dog"} for i in (1, 2)]
    references = {1: ["a dog"], 2: ["a cat"]}
    assert captions.evaluate(predictions, references)["BLEU-1"] == pytest.approx(75, abs=1e-6)
    for given, known, message in (
        (predictions[:1], references, r"images without a prediction: 1 \(2\)"),
        (predictions, {1: ["a dog"]}, r"images without references: 1 \(2\)"),
        (predictions, references | {2: []}, r"with an empty list of references: 1 \(2\)"),
        (predictions, references | {2: "a cat"}, r"references are one text: 1 \(2\)"),
        (predictions * 2, references, r"image ids predicted more than once: 2 \(1, 2\)"),
        ([{"image_id": 7, "caption": None}], {7: ["a"]}, "'caption' of image 7 must be a string"),
        ([{"image": 7}], {7: ["a"]}, "prediction 0 needs 'image_id' and 'caption'"),
        ([], references, "no predictions"),
    ):
        with pytest.raises(ValueError, match=message):
            captions.evaluate(given, known)


# Result files


def test_result_files():
    pairs = [("000000000139", "A dog."), (42, "")]
    assert result_files.caption_results(pairs, ["42", 139]) == [
        {"image_id": 139, "caption": "A dog."},
        {"image_id": 42, "caption": ""},
    ]
    assert result_files.answer_results([("7", "red")]) == [{"question_id": 7, "answer": "red"}]
    assert result_files.caption_file_name("val2014", "lit") == "captions_val2014_lit_results.json"
    for given, expected, message in (
        (pairs, [139, 42, 43], r"image ids 1 \(43\) have no caption; the server wants all"),
        (pairs, [139], r"image ids 1 \(42\) are not of this split"),
        ([*pairs, (139, "x")], None, r"image ids 1 \(139\) have several captions"),
        ([("a1", "x")], None, "image id 'a1' is no number"),
        ([(True, "x")], None, "image id True is no number"),
        ([(1, None)], None, "the caption of image 1 must be a text, got None"),
    ):
        with pytest.raises(ValueError, match=message):
            result_files.caption_results(given, expected)
    with pytest.raises(ValueError, match="'my_run'"):
        result_files.caption_file_name("val2014", "my_run")


# Written texts


def test_exact_match():
    assert texts.exact_match(" Pet  Shop", ["pet shop"]) == 1
    assert texts.exact_match("pet shops", ["pet shop"]) == 0
    assert texts.exact_match("a", ["A", "b", "a", "c"]) == pytest.approx(2 / 3)
    assert texts.exact_match("a", ["a"] * 5) == 1
    for answers in ([], "a"):
        with pytest.raises(ValueError, match="must be a list of texts"):
            texts.exact_match("a", answers)


def _levenshtein(one, two):
    if not one or not two:
        return len(one) + len(two)
    return min(
        _levenshtein(one[1:], two) + 1,
        _levenshtein(one, two[1:]) + 1,
        _levenshtein(one[1:], two[1:]) + (one[0] != two[0]),
    )


def test_nearest_names():
    rng = random.Random(3)
    names = ["".join(rng.choices("abc", k=rng.randint(1, 5))) for _ in range(12)]
    predictions = [*names[:3], "", "ABC", *("".join(rng.choices("abcd", k=4)) for _ in range(8))]
    found = texts.nearest_names(predictions, names)
    for prediction, index, distance in zip(predictions, *found, strict=True):
        exact = [
            _levenshtein(prediction.lower(), name) / max(len(prediction), len(name))
            for name in names
        ]
        assert index == int(np.argmin(exact))
        assert distance == exact[index]
    assert texts.nearest_names([], names).index.shape == (0,)
    with pytest.raises(ValueError, match="must be a list"):
        texts.nearest_names(["a"], "abc")


def test_log_perplexity():
    found = texts.log_perplexity(np.array([2.0, 9.0], np.float32), [2, 3])
    assert found == texts.LogPerplexity(2.0, 5.5, 2.2)
    with pytest.raises(ValueError, match="text 1 has no token"):
        texts.log_perplexity([1.0, 0.0], [1, 0])
    with pytest.raises(ValueError, match="need two vectors"):
        texts.log_perplexity([1.0], [1, 2])

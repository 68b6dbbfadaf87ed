"""The nearest picture and a linear classifier, on tokens whose answers are known."""

import numpy as np

from twelve_in_one.data.images.features import ImageFeatures
from twelve_in_one.data.images.image_set import ImageExample, ImageSet
from twelve_in_one.evaluators import feature_baselines

# Mean tokens along four axes; the last picture has the tokens of the first.
TOKENS = np.float16([[[2, 0], [2, 1]], [[0, 3], [0, 2]], [[-1, 0], [-2, 0]], [[0, -1], [0, -5]]])
PLACES = np.array([[0, 0], [0, 1], [0, 2], [0, 3], [0, 0]])


def _seen(numbers, questions, texts):
    images = ImageSet("x", (5,), lambda number: ImageExample(b"", str(number)))
    features = ImageFeatures(images, (2, 2), (TOKENS,), PLACES, (), 0)
    examples = [ImageExample(b"", str(i), question=asked) for i, asked in enumerate(questions)]
    return feature_baselines.seen(features, numbers, examples, texts)


def test_pictures_are_mean_tokens_of_unit_length():
    found = _seen([4, 0, 2], ["What  is it?", "", ""], "abc")
    expected = np.array([4, 1]) / 17**0.5
    np.testing.assert_allclose(found.pictures, [expected, expected, [-1, 0]], rtol=1e-3)
    assert found.questions == ("what is it?", "", "")


def test_the_answer_of_the_nearest_picture_to_the_same_question():
    train = _seen(
        [0, 1, 2, 3, 0, 1], ["which?"] * 4 + ["is it?"] * 2, ["e", "n", "w", "s", "yes", "no"]
    )
    test = _seen([4, 3, 3, 2], ["which?", "which?", "is it?", "new?"], "....")
    assert feature_baselines.nearest(train, test)[:2] == ["e", "s"]
    assert feature_baselines.nearest(train, test)[2] in ("yes", "no")
    assert feature_baselines.nearest(train, test)[3] == "w"


def test_a_linear_classifier_for_each_question():
    numbers, rng = [0, 1, 2, 3] * 3, np.random.default_rng(0)
    order = rng.permutation(12)
    train = _seen([numbers[i] for i in order], [""] * 12, [f"class {numbers[i]}" for i in order])
    test = _seen([3, 2, 1, 4], [""] * 4, "....")
    assert feature_baselines.probe(train, test) == ["class 3", "class 2", "class 1", "class 0"]
    one = _seen([0, 1, 2], [""] * 3, ["same"] * 3)
    assert feature_baselines.probe(one, test) == ["same"] * 4
    many = _seen([0] * 501, [str(i) for i in range(501)], ["a"] * 501)
    assert feature_baselines.probe(many, test) is None

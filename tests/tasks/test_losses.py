"""Losses against loops in NumPy, and that nothing masked reaches a loss or a gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.tasks import losses
from twelve_in_one.tasks.losses import Sums

RNG = np.random.default_rng(0)
B, L, R, M, F = 5, 6, 7, 4, 3
ROWS = np.array([True, True, False, True, False])
REGIONS = np.arange(R) < np.array([7, 3, 7, 5, 2])[:, None]
CHOICES = RNG.integers(0, R, (B, M)).astype(np.int32)
CHOICE_MASK = np.arange(M) < np.array([4, 2, 4, 3, 1])[:, None]


def normal(*shape):
    return RNG.normal(0, 2, shape).astype(np.float32)


def uniform(*shape):
    return RNG.uniform(size=shape).astype(np.float32)


def one_hot(count, width):
    return np.eye(width, dtype=np.float32)[RNG.integers(0, width, count)]


def bce(logit, target):
    """-[t log s + (1 - t) log(1 - s)] with s = sigmoid(logit), in float64."""
    logit = float(logit)
    s = 1 / (1 + np.exp(-logit))
    return -(target * np.log(s) + (1 - target) * np.log(1 - s))


def cross_entropy(logits, label):
    logits = logits.astype(np.float64)
    return np.log(np.exp(logits).sum()) - logits[label]


# --------------------------------------------------------------------------- loops in NumPy
# Each gives (loss, score) of one thing that counts, at index `i`.


def answer(x, i):
    loss = sum(bce(a, t) for a, t in zip(x["logits"][i], x["targets"][i], strict=True))
    return loss, x["targets"][i][x["logits"][i].argmax()]


def verdict(x, i):
    loss, score = answer(x, i)
    return loss / x["logits"].shape[-1], score


def match(x, i):
    label = x.get("targets", x.get("labels"))[i]
    return cross_entropy(x["logits"][i], label), x["logits"][i].argmax() == label


def region(x, i):
    real = [r for r in range(R) if x["region_mask"][i, r]]
    loss = sum(bce(x["logits"][i, r], x["targets"][i, r]) for r in real)
    best = max(real, key=lambda r: x["logits"][i, r])
    return loss, x["targets"][i, best] > 0.5


def choice(x, i):
    real = [m for m in range(M) if x["choice_mask"][i, m]]
    scores = {m: x["logits"][i, x["choices"][i, m]] for m in real}
    loss = sum(bce(scores[m], x["targets"][i, m]) for m in real)
    return loss, max(real, key=scores.get) == max(real, key=lambda m: x["targets"][i, m])


def masked_language(x, i):
    label = x["labels"][i]
    return cross_entropy(x["logits"][i], label), x["logits"][i].argmax() == label


def region_class(x, i):
    logits, p = x["logits"][i].astype(np.float64), x["targets"][i].astype(np.float64)
    q = np.exp(logits) / np.exp(logits).sum()
    loss = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    return loss, q.argmax() == p.argmax()


def region_feature(x, i):
    loss = np.mean((x["predictions"][i].astype(np.float64) - x["targets"][i]) ** 2)
    return loss, -loss


def region_contrast(x, i):
    flat = x["targets"].reshape(-1, F).astype(np.float64)
    features = np.stack([x["targets"][i], *flat[x["negatives"][i]]])
    logits = features @ x["predictions"][i].astype(np.float64)
    return cross_entropy(logits, 0), logits.argmax() == 0


def sigmoid_contrast(x, i):
    own = x["logits"][i][ROWS]
    loss = sum(bce(x["logits"][i, j], float(i == j)) for j in np.flatnonzero(ROWS))
    return loss, x["logits"][i, i] == own.max()


def softmax_contrast(x, i):
    place = np.flatnonzero(ROWS).tolist().index(i)
    _, right = sigmoid_contrast(x, i)
    ways = [cross_entropy(z[i][ROWS], place) for z in (x["logits"], x["logits"].T)]
    return sum(ways) / 2, right


def distributions():
    """With exact zeros, where p log p needs care."""
    p = uniform(B, R, L) * (RNG.uniform(size=(B, R, L)) > 0.3)
    p[..., 0] += 0.1
    return (p / p.sum(-1, keepdims=True)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss, its inputs, the brute force, which input is masked out how, and what counts."""

    function: object
    brute: object
    inputs: dict
    noisy: dict  # input -> where its values must not matter
    counted: np.ndarray

    @property
    def name(self):
        """The input with a gradient."""
        return "logits" if "logits" in self.inputs else "predictions"

    @functools.cached_property
    def sums(self):
        """The loss as one program, `sums(**inputs)`."""
        return jax.jit(self.function)

    @functools.cached_property
    def mean_gradient(self):
        return self._gradient(Sums.mean_loss)

    @functools.cached_property
    def gradient(self):
        """The gradient of the summed loss with respect to `name`, `gradient(inputs)`."""
        return self._gradient(lambda sums: sums.loss)

    def _gradient(self, loss_of):
        def loss(x, inputs):
            return loss_of(self.function(**inputs | {self.name: x}))

        return jax.jit(lambda inputs: jax.grad(loss)(inputs[self.name], inputs))


def spread(mask, ndim):
    return np.expand_dims(mask, tuple(range(mask.ndim, ndim)))


_TOKENS = np.where(RNG.random((B, R)) < 0.4, RNG.integers(0, L, (B, R)), -1).astype(np.int32)
_CHOSEN = (RNG.random((B, R)) < 0.5) & REGIONS & ROWS[:, None]
_ZERO_ROW = one_hot(B, L)
_ZERO_ROW[1] = 0  # a row without gold label
_PER_ROW = dict(logits=~ROWS, targets=~ROWS)
_PADDED_REGIONS = ~(REGIONS & ROWS[:, None])
_PAIRS = ~(ROWS[:, None] & ROWS)
_READ = np.zeros((B, R), bool)
for _i, _m in np.argwhere(CHOICE_MASK & ROWS[:, None]):
    _READ[_i, CHOICES[_i, _m]] = True

CASES = {
    "answer": Case(
        losses.answer_loss, answer,
        dict(logits=normal(B, L), targets=uniform(B, L), mask=ROWS), _PER_ROW, ROWS,
    ),
    "verdict": Case(
        losses.verdict_loss, verdict,
        dict(logits=normal(B, L), targets=_ZERO_ROW, mask=ROWS), _PER_ROW, ROWS,
    ),
    "match": Case(
        losses.match_loss, match,
        dict(logits=normal(B, 4), targets=RNG.integers(0, 4, B).astype(np.int32), mask=ROWS),
        dict(logits=~ROWS), ROWS,
    ),
    "region": Case(
        losses.region_loss, region,
        dict(logits=normal(B, R), targets=uniform(B, R), region_mask=REGIONS, mask=ROWS),
        dict(logits=_PADDED_REGIONS, targets=_PADDED_REGIONS), ROWS,
    ),
    "choice": Case(
        losses.choice_loss, choice,
        dict(
            logits=normal(B, R), targets=uniform(B, M), choices=CHOICES, choice_mask=CHOICE_MASK,
            mask=ROWS,
        ),
        dict(logits=~_READ, targets=~(CHOICE_MASK & ROWS[:, None])), ROWS,
    ),
    "masked_language": Case(
        losses.masked_language_loss, masked_language,
        dict(logits=normal(B, R, L), labels=_TOKENS, mask=ROWS),
        dict(logits=~((_TOKENS >= 0) & ROWS[:, None])), (_TOKENS >= 0) & ROWS[:, None],
    ),
    "masked_region_class": Case(
        losses.masked_region_class_loss, region_class,
        dict(logits=normal(B, R, L), targets=distributions(), chosen=_CHOSEN),
        dict(logits=~_CHOSEN, targets=~_CHOSEN), _CHOSEN,
    ),
    "masked_region_feature": Case(
        losses.masked_region_feature_loss, region_feature,
        dict(predictions=normal(B, R, F), targets=normal(B, R, F), chosen=_CHOSEN),
        dict(predictions=~_CHOSEN, targets=~_CHOSEN), _CHOSEN,
    ),
    "masked_region_contrast": Case(
        losses.masked_region_contrast_loss, region_contrast,
        dict(
            predictions=normal(B, R, F), targets=normal(B, R, F),
            negatives=RNG.integers(0, B * R, (B, R, 4)).astype(np.int32), chosen=_CHOSEN,
        ),
        dict(predictions=~_CHOSEN), _CHOSEN,
    ),
    "alignment": Case(
        losses.alignment_loss, match,
        dict(logits=normal(B, 2), labels=RNG.integers(0, 2, B).astype(np.int32), mask=ROWS),
        dict(logits=~ROWS), ROWS,
    ),
    "sigmoid_contrast": Case(
        losses.sigmoid_contrast_loss, sigmoid_contrast,
        dict(logits=normal(B, B), mask=ROWS), dict(logits=_PAIRS), ROWS,
    ),
    "softmax_contrast": Case(
        losses.softmax_contrast_loss, softmax_contrast,
        dict(logits=normal(B, B), mask=ROWS), dict(logits=_PAIRS), ROWS,
    ),
}  # fmt: skip


def test_options_that_are_scored_alike_are_not_right():
    rows, zeros = np.ones(3, bool), np.zeros(3, np.int32)
    match_loss = jax.jit(losses.match_loss)
    assert match_loss(np.zeros((3, 4), np.float32), zeros, rows).score == 0
    assert match_loss(np.eye(3, 4, dtype=np.float32), zeros, rows).score == 1
    features = np.ones((3, 2, 5), np.float32)
    negatives, chosen = np.zeros((3, 2, 4), np.int32), np.ones((3, 2), bool)
    loss = jax.jit(losses.masked_region_contrast_loss)
    found = loss(features, features, negatives, chosen)
    assert found.score == 0 and found.count == 6


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def fill(case, value):
    """The inputs with `value` wherever they must not matter."""
    filled = dict(case.inputs)
    for name, where in case.noisy.items():
        x = filled[name]
        filled[name] = np.where(spread(where, x.ndim), x.dtype.type(value), x)
    return filled


def test_loss_and_score_are_those_of_a_loop(case):
    ours = case.sums(**case.inputs)
    index = [tuple(i) if len(i) > 1 else i[0] for i in np.argwhere(case.counted)]
    rows = np.array([case.brute(case.inputs, i) for i in index], float)
    assert all(x.dtype == jnp.float32 and x.shape == () for x in ours)
    np.testing.assert_allclose(ours.loss, rows[:, 0].sum(), rtol=2e-6)
    np.testing.assert_allclose(ours.score, rows[:, 1].sum(), rtol=2e-6)
    assert ours.count == len(index) > 0
    np.testing.assert_allclose(ours.mean_loss(), rows[:, 0].mean(), rtol=2e-6)
    np.testing.assert_allclose(ours.mean_score(), rows[:, 1].mean(), rtol=2e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e30])
def test_what_is_masked_adds_nothing_and_gets_no_gradient(case, value):
    """Neither to the sums, bit for bit, nor as NaN times zero in a gradient."""
    filled = fill(case, value)
    np.testing.assert_array_equal(case.sums(**filled), case.sums(**case.inputs))
    grad = np.asarray(case.gradient(filled))
    np.testing.assert_array_equal(grad, case.gradient(case.inputs))
    where = np.broadcast_to(spread(case.noisy[case.name], grad.ndim), grad.shape)
    assert (grad[where] == 0).all()
    assert np.abs(grad[~where]).max() > 0


def test_gradient_is_that_of_finite_differences(case):
    x = case.inputs[case.name]
    direction = normal(*x.shape)

    def loss(x):
        return float(case.sums(**case.inputs | {case.name: x}).loss)

    # Losses are float32: a wide step keeps rounding small.
    step = np.float32(1e-2) * direction
    slope = (loss(x + step) - loss(x - step)) / 2e-2
    ours = np.sum(np.asarray(case.gradient(case.inputs), np.float64) * direction)
    np.testing.assert_allclose(ours, slope, rtol=2e-3, atol=2e-3)


def test_nothing_counts(case):
    """Not 0 / 0, in the mean and in its gradient; the released code gives NaN here."""
    nothing = dict(case.inputs)
    masks = {"mask", "chosen"} & set(nothing)
    nothing |= {name: np.zeros_like(nothing[name]) for name in masks}
    sums = case.sums(**nothing)
    np.testing.assert_array_equal(sums, (0, 0, 0))
    assert sums.mean_loss() == sums.mean_score() == 0
    assert (np.asarray(case.mean_gradient(nothing)) == 0).all()


def test_no_labelled_token_is_no_loss():
    """Nothing masked for prediction, which happens by chance, though every row counts."""
    labels = np.full((B, R), -1, np.int32)
    sums = losses.masked_language_loss(normal(B, R, L), labels, np.ones(B, bool))
    np.testing.assert_array_equal(sums, (0, 0, 0))


def test_bfloat16_logits_are_summed_in_float32(case):
    narrow = case.inputs[case.name].astype(jnp.bfloat16)
    ours = case.sums(**case.inputs | {case.name: narrow})
    expected = case.sums(**case.inputs | {case.name: narrow.astype(np.float32)})
    assert ours.loss.dtype == jnp.float32
    np.testing.assert_allclose(ours.loss, expected.loss, rtol=1e-6)


# A contrast is with the whole batch.
@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith("contrast")])
def test_parts_add_up(name):
    """Sums of two halves are those of the whole."""
    case = CASES[name]
    whole = case.sums(**case.inputs)
    halves = [
        case.sums(**{name: x[part] for name, x in case.inputs.items()})
        for part in (slice(0, 2), slice(2, B))
    ]
    np.testing.assert_allclose(jax.tree.map(np.add, *jax.device_get(halves)), whole, rtol=1e-6)


def test_region_score_wants_more_than_half_an_overlap():
    targets = np.array([[0.5, 0.0], [0.51, 0.0]], np.float32)
    logits = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    sums = losses.region_loss(logits, targets, np.ones((2, 2), bool), np.ones(2, bool))
    assert sums.score == 1


def test_sums_average():
    sums = Sums(*map(jnp.float32, (6.0, 3.0, 4.0)))
    assert (sums.mean_loss(), sums.mean_score()) == (1.5, 0.75)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sequence_loss_equals_loops(per_token, smoothing):
    """Prompts and padding have no weight; row 1 has none at all, and counts unless per token."""
    vocab, logits = 6, normal(B, L, 6)
    labels = RNG.integers(0, vocab, (B, L)).astype(np.int32)
    weights = uniform(B, L) * (RNG.uniform(size=(B, L)) < 0.6)
    weights[1] = 0.0
    losses_, scores, totals = np.zeros(B), np.zeros(B), np.zeros(B)
    for i, t in np.ndindex(B, L):
        each = [cross_entropy(logits[i, t], v) for v in range(vocab)]
        target = np.full(vocab, smoothing / (vocab - 1))
        target[labels[i, t]] = 1.0 - smoothing
        losses_[i] += weights[i, t] * np.dot(target, each)
        scores[i] += weights[i, t] * (logits[i, t].argmax() == labels[i, t])
        totals[i] += weights[i, t]
    if per_token:
        expected = losses_[ROWS].sum(), scores[ROWS].sum(), totals[ROWS].sum()
    else:
        share = np.where(totals > 0, totals, 1.0)
        expected = (losses_ / share)[ROWS].sum(), (scores / share)[ROWS].sum(), ROWS.sum()
    nan = np.where((weights > 0)[..., None] & ROWS[:, None, None], logits, np.nan)
    sums = losses.sequence_loss(
        nan, labels, weights, ROWS, label_smoothing=smoothing, per_token=per_token
    )
    np.testing.assert_allclose(sums, expected, rtol=2e-5)

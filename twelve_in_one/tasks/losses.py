"""Losses and training scores of all task types, as sums and counts.

Every function returns a `Sums` over the rows (or tokens, or regions) that count, so hosts,
devices and micro-batches add up exactly: mean loss = loss / count, accuracy = score / count.
Masks remove padded rows, regions and choices before any arithmetic reaches them,
so they add exactly nothing, never a NaN, and their logits get a gradient of exactly zero.

Reductions follow the released code (its `LoadLosses` and `ForwardModelsTrain`): the answer, region
and choice losses are summed over classes, the pair and three-way losses averaged over them.

Contrastive losses compare every row with every other, so their batches cannot be split.

Letters: B rows, L labels, R regions, M choices, S text positions, F feature size, K negatives.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array

_MASKED_LOGIT = -1e9


class Sums(NamedTuple):
    """Sufficient statistics of a loss; add them up, then divide.

    A loss of several parts that count different things (pretraining) has arrays of shape [parts].

    Attributes:
      loss: float32[] sum of the loss.
      score: float32[] sum of the score (share of right answers, or soft scores).
      count: float32[] number of rows, tokens or regions in the sums.
    """

    loss: Array
    score: Array
    count: Array

    def mean_loss(self) -> Array:
        """loss / count, or 0 if nothing counted; for several parts the sum over them."""
        return jnp.sum(self.loss / jnp.maximum(self.count, 1))

    def mean_score(self) -> Array:
        """score / count, or 0 if nothing counted; for several parts that of the first."""
        return jnp.ravel(self.score / jnp.maximum(self.count, 1))[0]


def _keep(x: Array, mask: Array, fill: float = 0.0) -> Array:
    """`x` where `mask`, else `fill`. Applied to inputs, so none of their NaNs reach a gradient."""
    return jnp.where(mask, x.astype(jnp.float32), jnp.float32(fill))


def _sum(loss: Array, score: Array, mask: Array) -> Sums:
    weights = mask.astype(jnp.float32)
    return Sums(
        jnp.sum(_keep(loss, mask)), jnp.sum(_keep(score, mask)), jnp.sum(weights, dtype=jnp.float32)
    )


def _target_at_best(logits: Array, targets: Array) -> Array:
    """The target value of each row's highest logit: [B, L], [B, L] -> [B]."""
    best = jnp.argmax(logits, axis=-1)
    return jnp.take_along_axis(targets, best[:, None], axis=-1)[:, 0]


def answer_loss(logits: Array, targets: Array, mask: Array) -> Sums:
    """Answers from a vocabulary (VQAv2, Visual Genome QA, GQA): sigmoid cross-entropy.

    Summed over labels, so a mean over rows is the released "mean times number of labels".
    The score is the soft score of the best answer.

    Args:
      logits: float[B, L].
      targets: float[B, L] soft scores in [0, 1].
      mask: bool[B], False for padded rows.
    """
    logits, targets = _keep(logits, mask[:, None]), _keep(targets, mask[:, None])
    loss = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)
    return _sum(loss, _target_at_best(logits, targets), mask)


def verdict_loss(logits: Array, targets: Array, mask: Array) -> Sums:
    """Pair and three-way verdicts (NLVR2, SNLI-VE): sigmoid cross-entropy, mean over classes.

    The released code trains these per class with a sigmoid, not with a softmax. A row whose targets
    are all zero (SNLI-VE without gold label) trains as all-negative and scores 0.

    Args:
      logits: float[B, L], L = 2 or 3.
      targets: float[B, L] one-hot.
      mask: bool[B].
    """
    sums = answer_loss(logits, targets, mask)
    return sums._replace(loss=sums.loss / logits.shape[-1])


def _stands_out(logits: Array, labels: Array) -> Array:
    """bool[...], whether the label's logit in [..., C] is above all others.

    The right option always comes first, so a model that scores all options equally would be right
    under the rule that the first of the best counts.
    """
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    right = jnp.max(jnp.where(own, logits, -jnp.inf), axis=-1)
    return right > jnp.max(jnp.where(own, -jnp.inf, logits), axis=-1, initial=-jnp.inf)


def match_loss(logits: Array, targets: Array, mask: Array) -> Sums:
    """Which of the options matches (COCO and Flickr30k retrieval): softmax cross-entropy.

    Args:
      logits: float[B, M] image-text match scores of the options of each row.
      targets: int32[B] the matching option.
      mask: bool[B].
    """
    logits = _keep(logits, mask[:, None])
    targets = jnp.where(mask, targets, 0)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return _sum(loss, _stands_out(logits, targets), mask)


def region_loss(logits: Array, targets: Array, region_mask: Array, mask: Array) -> Sums:
    """Which region is meant (RefCOCO, RefCOCO+, RefCOCOg): sigmoid cross-entropy over regions.

    Summed over real regions. The score is 1 where the best region's target exceeds 0.5.

    Args:
      logits: float[B, R] region scores.
      targets: float[B, R] IoU with the true box, 0 below the threshold.
      region_mask: bool[B, R], False for padded regions.
      mask: bool[B].
    """
    real = region_mask & mask[:, None]
    loss = optax.sigmoid_binary_cross_entropy(_keep(logits, real), _keep(targets, real))
    loss = jnp.sum(_keep(loss, real), axis=-1)
    best = _target_at_best(_keep(logits, real, -jnp.inf), _keep(targets, real))
    return _sum(loss, best > 0.5, mask)


def choice_loss(
    logits: Array, targets: Array, choices: Array, choice_mask: Array, mask: Array
) -> Sums:
    """Which of the given boxes is meant (Visual7W, GuessWhat): sigmoid cross-entropy over choices.

    Summed over real choices. The score is 1 where the best choice has the highest target.

    Args:
      logits: float[B, R] region scores.
      targets: float[B, M] IoU of each choice with the true box.
      choices: int32[B, M] region of each choice.
      choice_mask: bool[B, M], False for padded choices, and for choices on padded regions.
      mask: bool[B].
    """
    real = choice_mask & mask[:, None]
    picked = jnp.take_along_axis(logits, jnp.where(real, choices, 0), axis=-1)
    loss = optax.sigmoid_binary_cross_entropy(_keep(picked, real), _keep(targets, real))
    loss = jnp.sum(_keep(loss, real), axis=-1)
    best = jnp.argmax(_keep(picked, real, -jnp.inf), axis=-1)
    return _sum(loss, best == jnp.argmax(_keep(targets, real, -jnp.inf), axis=-1), mask)


def by_part(
    loss: Array,
    score: Array,
    mask: Array,
    part: Array,
    num_parts: int,
    count: Array | None = None,
) -> Sums:
    """The sums of a mixed batch, task by task.

    Args:
      loss: float[B] of the rows.
      score: float or bool[B].
      mask: bool[B], rows that count.
      part: int32[B], place of each row's task among the parts.
      num_parts: how many there are.
      count: float32[B], what each row counts; 1 if None.

    Returns:
      Sums with arrays [num_parts].
    """
    # [B, parts]
    of_part = (part[:, None] == jnp.arange(num_parts)[None]) & mask[:, None]
    return Sums(
        jnp.sum(_keep(loss[:, None], of_part), axis=0),
        jnp.sum(_keep(score[:, None], of_part), axis=0),
        jnp.sum(
            of_part if count is None else _keep(count[:, None], of_part), axis=0, dtype=jnp.float32
        ),
    )


# --------------------------------------------------------------------------------- pretraining


def masked_language_loss(logits: Array, labels: Array, mask: Array) -> Sums:
    """Masked language modelling: softmax cross-entropy at the masked tokens; counts tokens.

    Args:
      logits: float[B, S, vocabulary] or, without the task slot, [B, T, vocabulary].
      labels: int32 of the shape of `logits` without the last axis; the original id at masked
        tokens, -1 elsewhere.
      mask: bool[B]; False also for rows whose caption is not their own (12-in-1, section 4:
        no masked loss on negative pairs).
    """
    chosen = (labels >= 0) & mask[:, None]
    logits = _keep(logits, chosen[..., None])
    labels = jnp.where(chosen, labels, 0)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return _sum(loss, jnp.argmax(logits, axis=-1) == labels, chosen)


def masked_region_class_loss(logits: Array, targets: Array, chosen: Array) -> Sums:
    """Masked regions, target 0: KL(target || prediction) of class distributions; counts regions.

    Args:
      logits: float[B, R, L], the global region left out.
      targets: float[B, R, L] the detector's class distribution.
      chosen: bool[B, R], True for masked regions of rows that count.
    """
    logits, targets = _keep(logits, chosen[..., None]), _keep(targets, chosen[..., None])
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    # x log x -> 0 for x -> 0
    entropy = jnp.sum(jax.scipy.special.xlogy(targets, targets), axis=-1)
    loss = entropy - jnp.sum(targets * log_probabilities, axis=-1)
    right = jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1)
    return _sum(loss, right, chosen)


def masked_region_feature_loss(predictions: Array, targets: Array, chosen: Array) -> Sums:
    """Masked regions, target 1: squared error of the feature, mean over F; counts regions.

    The score is minus the loss, since a regression has no right answer to count.

    Args:
      predictions: float[B, R, F], the global region left out.
      targets: float[B, R, F].
      chosen: bool[B, R].
    """
    error = _keep(predictions, chosen[..., None]) - _keep(targets, chosen[..., None])
    loss = jnp.mean(jnp.square(error), axis=-1)
    return _sum(loss, -loss, chosen)


def masked_region_contrast_loss(
    predictions: Array,
    targets: Array,
    negatives: Array,
    chosen: Array,
    negative_mask: Array | None = None,
) -> Sums:
    """Masked regions, target 2: which feature is the region's own (NCE); counts regions.

    Scores are dot products of the prediction with the true feature and with K others.

    Args:
      predictions: float[B, R, F], the global region left out.
      targets: float[B, R, F].
      negatives: int32[B, R, K] rows of `targets` flattened to [B * R, F].
      chosen: bool[B, R].
      negative_mask: bool[B, R, K], False for negatives to leave out; None takes all.
    """
    predictions = _keep(predictions, chosen[..., None])
    targets = targets.astype(jnp.float32)
    # [B, R, F] x [B * R, F] -> [B, R, B * R]: cheaper than gathering K features per region
    scores = jnp.einsum("brf,nf->brn", predictions, targets.reshape(-1, targets.shape[-1]))
    own = jnp.einsum("brf,brf->br", predictions, targets)[..., None]
    others = jnp.take_along_axis(scores, negatives, axis=-1)
    if negative_mask is not None:
        others = jnp.where(negative_mask, others, -jnp.inf)
    logits = _keep(jnp.concatenate([own, others], axis=-1), chosen[..., None])
    labels = jnp.zeros(chosen.shape, jnp.int32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return _sum(loss, _stands_out(logits, labels), chosen)


def alignment_loss(logits: Array, labels: Array, mask: Array) -> Sums:
    """Does the caption belong to the image: softmax cross-entropy of two classes.

    Args:
      logits: float[B, 2].
      labels: int32[B], 0 aligned, 1 swapped.
      mask: bool[B].
    """
    return match_loss(logits, labels, mask)


# --------------------------------------------------------------------------------- contrast


def sigmoid_contrast_loss(logits: Array, mask: Array) -> Sums:
    """Matches texts and pictures, with a sigmoid for every pair (Zhai et al. 2023, SigLIP).

    Summed over the texts of a picture. The score is 1 where a picture's own text scores highest.

    Args:
      logits: float[B, B], pictures by texts, where equal indices belong together; temperature
        and bias are included.
      mask: bool[B], False for pairs that take no part, as pictures or as texts.
    """
    logits = _keep(logits, mask[:, None] & mask[None])
    own = jnp.eye(len(mask), dtype=jnp.float32)
    loss = optax.sigmoid_binary_cross_entropy(logits, own)
    loss = jnp.sum(_keep(loss, mask[None]), axis=-1)
    return _sum(loss, _own_stands_out(logits, mask), mask)


def softmax_contrast_loss(logits: Array, mask: Array) -> Sums:
    """Matches texts to pictures and pictures to texts: softmax cross-entropy (CLIP).

    The mean of both directions; a bias changes neither. Arguments and score are those of
    `sigmoid_contrast_loss`.
    """
    loss = 0.5 * (one_way_contrast(logits, mask) + one_way_contrast(logits.T, mask))
    return _sum(loss, _own_stands_out(_keep(logits, mask[:, None] & mask[None]), mask), mask)


def one_way_contrast(logits: Array, mask: Array) -> Array:
    """float32[B], cross-entropy of each row's own column among those in `mask`; see above."""
    pairs = mask[:, None] & mask[None]
    # A finite score for columns that take no part: a row without columns stays free of NaN.
    logits = jnp.where(pairs, _keep(logits, pairs), _MASKED_LOGIT)
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(mask)))


def _own_stands_out(logits: Array, mask: Array) -> Array:
    return _stands_out(jnp.where(mask[None], logits, -jnp.inf), jnp.arange(len(mask)))


# --------------------------------------------------------------------------------- sequences


def token_loss(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
    """float32[...], softmax cross-entropy of each label in logits [..., V].

    With smoothing the target is 1 - s on the label and s / (V - 1) on every other token
    (big_vision), not s / V.
    """
    logits = logits.astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing:
        others = logits.shape[-1] - 1
        total = logits.shape[-1] * jax.nn.logsumexp(logits, axis=-1) - jnp.sum(logits, axis=-1)
        loss = (1.0 - label_smoothing) * loss + label_smoothing / others * (total - loss)
    return loss


def sequence_loss(
    logits: Array,
    labels: Array,
    weights: Array,
    mask: Array,
    *,
    label_smoothing: float = 0.0,
    per_token: bool = False,
) -> Sums:
    """Next tokens of texts: softmax cross-entropy; the score is the share of right tokens.

    Every text is divided by the sum of its weights, so that a word counts as much as a sentence
    (big_vision); a text without weights adds 0 and counts. Per token, long texts count more.

    Args:
      logits: float[B, L, V] of the label at each place.
      labels: int32[B, L].
      weights: float[B, L] or bool, 0 for tokens that are no targets: prompts and padding.
      mask: bool[B].
      label_smoothing: see `token_loss`.
      per_token: count tokens instead of texts.
    """
    loss, score, count = sequence_rows(
        logits,
        labels,
        _keep(weights, mask[:, None]),
        label_smoothing=label_smoothing,
        per_token=per_token,
    )
    if per_token:
        return Sums(jnp.sum(loss), jnp.sum(score), jnp.sum(count))
    return _sum(loss, score, mask)


def sequence_rows(
    logits: Array,
    labels: Array,
    weights: Array,
    *,
    label_smoothing: float = 0.0,
    per_token: bool = False,
) -> tuple[Array, Array, Array]:
    """`sequence_loss` of each text, [B] each: loss, score and what it counts, 1 or its tokens."""
    weights = weights.astype(jnp.float32)
    counted = weights > 0
    logits = _keep(logits, counted[..., None])
    labels = jnp.where(counted, labels, 0)
    loss = jnp.sum(weights * token_loss(logits, labels, label_smoothing), axis=-1)
    score = jnp.sum(weights * (jnp.argmax(logits, axis=-1) == labels), axis=-1)
    total = jnp.sum(weights, axis=-1)
    if per_token:
        return loss, score, total
    divisor = jnp.where(total > 0, total, 1.0)
    return loss / divisor, score / divisor, jnp.ones_like(total)

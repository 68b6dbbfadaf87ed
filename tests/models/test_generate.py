"""Writing and ranking against plain Python, which scores whole texts without a cache."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.models import generate, text_decoder, text_list
from twelve_in_one.models.pre_norm import stack_blocks
from twelve_in_one.models.reading import Context, Options
from twelve_in_one.models.text_decoder import TextDecoder, TextDecoderConfig

V, L, END = 7, 8, 1
CONFIG = TextDecoderConfig(12, 2, 3, 20, vocab_size=V, max_tokens=L, encoder_dim=8)
OPTIONS = Options(prefix_lm=True)
PROMPT = np.array([[2, 0, 0], [0, 0, 0], [3, 4, 5], [6, 2, 0], [5, 5, 0]], np.int32)
LIST = [[2, 3, 1], [2, 1], [3, 2, 4, 1], [2, 3, 5, 1], [1], [6, 6, 6, 1], [4, 4, 1]]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(5)
    shapes = nn.unbox(text_decoder.abstract_params(CONFIG))
    params = jax.tree.map(lambda x: rng.normal(0.0, 0.5, x.shape).astype(np.float32), shapes)
    params["logits"]["bias"][END] = 1.0  # some texts end
    return params


@pytest.fixture(scope="module")
def context():
    """Five images with padded tokens, prompts of different lengths, prepended embeddings."""
    rng = np.random.default_rng(6)
    encoder, ahead = (
        rng.normal(size=shape).astype(np.float32) for shape in ((5, 4, 8), (5, 2, 12))
    )
    return Context(encoder, PROMPT, np.arange(4)[None] < np.array([[4], [3], [4], [2], [1]]), ahead)


@pytest.fixture(scope="module")
def next_log_p(params, context):
    """Log-probabilities of the next token after a text of row `row`, prompt included."""

    @jax.jit
    def score(inputs, one):
        length = jnp.sum(one.prompt != 0, axis=1)
        logits, _ = TextDecoder(CONFIG).apply(
            {"params": params},
            inputs,
            one.encoder,
            encoder_mask=one.encoder_mask,
            prepended=one.prepended,
            prefix_length=length,
        )
        return jax.nn.log_softmax(logits[0])

    @functools.cache
    def log_p(row, text):
        inputs = np.zeros((1, L), np.int32)
        inputs[0, 1 : 1 + len(text)] = text
        return np.asarray(score(inputs, row_of(context, row)))[len(text)]

    return log_p


def row_of(context, row):
    return jax.tree.map(lambda x: x[row : row + 1], context)


def prompt_of(row):
    return tuple(int(t) for t in PROMPT[row] if t)


def plain_greedy(log_p, row):
    text, scores = prompt_of(row), []
    while len(text) < L and (not scores or text[-1] != END):
        scores.append(float(max(log_p(row, text))))
        text += (int(np.argmax(log_p(row, text))),)
    return text, scores


def plain_beams(log_p, row, beams, allowed=None):
    """big_vision's rules, one list of texts at a time."""

    def may_follow(text, token):
        own = [*text[len(prompt_of(row)) :], token]
        return allowed is None or any(list(a[: len(own)]) == own for a in allowed)

    live, best, steps = [(0.0, prompt_of(row))], (-np.inf, None), 0
    while True:
        steps += 1
        for score, text in live:
            if may_follow(text, END):
                best = max(best, (score + log_p(row, text)[END], (*text, END)))
        live = sorted(
            (score + log_p(row, text)[token], (*text, token))
            for score, text in live
            for token in range(V)
            if token != END and may_follow(text, token)
        )[-beams:]
        if not live or live[-1][0] < best[0] or len(live[0][1]) == L:
            return best[1], best[0], steps, not live or live[-1][0] < best[0]


def padded(text):
    return [*text, *[0] * (L - len(text))]


def test_greedy_texts_are_those_without_a_cache(params, context, next_log_p):
    texts = generate.greedy(CONFIG, params, context, OPTIONS)
    unfinished = 0
    for row in range(5):
        text, scores = plain_greedy(next_log_p, row)
        assert texts.tokens[row].tolist() == padded(text)
        begin = len(prompt_of(row))
        assert not np.any(texts.log_probabilities[row, :begin])
        own = texts.log_probabilities[row, begin : len(text)]
        np.testing.assert_allclose(own, scores, atol=1e-5)
        np.testing.assert_allclose(texts.score[row], sum(scores), atol=1e-5)
        assert texts.steps[row] == len(scores)
        assert texts.finished[row] == (text[-1] == END)
        unfinished += text[-1] != END
    assert 0 < unfinished < 5
    assert texts.choice.tolist() == [-1] * 5


def test_one_row_gives_the_same_text_as_many(params, context):
    many = generate.beam_search(CONFIG, params, context, OPTIONS)
    for row in (2, 4):
        alone = generate.beam_search(CONFIG, params, row_of(context, row), OPTIONS)
        assert alone.tokens[0].tolist() == many.tokens[row].tolist()
        np.testing.assert_allclose(
            alone.log_probabilities[0], many.log_probabilities[row], atol=1e-5
        )


def test_beams_follow_the_rules(params, context, next_log_p):
    texts = generate.beam_search(CONFIG, params, context, OPTIONS)
    for row in range(5):
        text, score, steps, finished = plain_beams(next_log_p, row, 4)
        assert texts.tokens[row].tolist() == padded(text)
        np.testing.assert_allclose(texts.score[row], score, atol=1e-5)
        np.testing.assert_allclose(np.sum(texts.log_probabilities[row]), score, atol=1e-5)
        assert texts.steps[row] == steps
        assert texts.finished[row] == finished


def test_enough_beams_find_the_best_text(params, context, next_log_p):
    free = row_of(context, 1)._replace(prompt=None)  # row 1 has none
    texts = generate.beam_search(
        CONFIG, params, free, dataclasses.replace(OPTIONS, max_tokens=3), beams=V**2
    )
    every = [
        (*body, END)
        for n in range(3)
        for body in itertools.product([t for t in range(V) if t != END], repeat=n)
    ]
    scores = [sum(next_log_p(1, text[:i])[t] for i, t in enumerate(text)) for text in every]
    best = int(np.argmax(scores))
    assert texts.tokens[0].tolist() == [*every[best], *[0] * (3 - len(every[best]))]
    np.testing.assert_allclose(texts.score[0], scores[best], atol=1e-5)


def test_a_text_that_does_not_want_to_end_is_flagged(params, context):
    """Beams always end it, though going on is more probable."""
    bias = params["logits"]["bias"].copy()
    bias[END] = -30.0
    stubborn = params | {"logits": params["logits"] | {"bias": bias}}
    texts = generate.beam_search(CONFIG, stubborn, context, OPTIONS)
    assert not np.any(texts.finished)
    assert np.all(np.any(texts.tokens == END, axis=1))
    assert texts.steps.tolist() == [7, 8, 5, 6, 6]
    assert not np.any(generate.greedy(CONFIG, stubborn, context, OPTIONS).finished)


def test_ranking_sums_log_probabilities(params, context, next_log_p):
    """In blocks of two texts, the last one half full."""
    table = text_list.text_table(LIST, OPTIONS)
    scores = text_list.rank(CONFIG, params, context, table, OPTIONS, block_rows=10)
    for row, (i, text) in itertools.product(range(5), enumerate(LIST)):
        begin = prompt_of(row)
        expected = sum(next_log_p(row, (*begin, *text[:k]))[t] for k, t in enumerate(text))
        np.testing.assert_allclose(scores[row, i], expected, atol=2e-5)


def test_nothing_outside_a_list_is_written(params, context, next_log_p):
    """And enough beams find the text that ranks first."""
    table = text_list.text_table(LIST, OPTIONS)
    greedy = generate.greedy(CONFIG, params, context, OPTIONS, table)
    beams = generate.beam_search(CONFIG, params, context, OPTIONS, table, beams=len(LIST))
    best = np.argmax(text_list.rank(CONFIG, params, context, table, OPTIONS), axis=1)
    assert beams.choice.tolist() == best.tolist()
    for row in range(5):
        for texts in (greedy, beams):
            chosen = LIST[int(texts.choice[row])]
            assert texts.tokens[row].tolist() == padded([*prompt_of(row), *chosen])
            assert texts.finished[row]
        expected = plain_beams(next_log_p, row, len(LIST), LIST)
        assert beams.steps[row] == expected[2]
        np.testing.assert_allclose(beams.score[row], expected[1], atol=1e-5)


def test_scanned_parameters_write_the_same(params, context):
    config = dataclasses.replace(CONFIG, scan_layers=True)
    table = text_list.text_table(LIST, OPTIONS)
    scanned = text_list.rank(config, stack_blocks(CONFIG, params), context, table, OPTIONS)
    np.testing.assert_allclose(
        scanned, text_list.rank(CONFIG, params, context, table, OPTIONS), atol=1e-6
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no texts to choose from"),
        ([[2, 1], [3, 1], [2, 1]], r"texts 0 and 2 have the same tokens \(2, 1\)"),
        ([[2, 1], [3]], r"text 1 \(3,\) does not end with the end token 1"),
        ([[2, 1, 3, 1]], "text 0 .* contains the end token 1 before its end"),
        ([[2, 0, 1]], "padding 0"),
    ],
)
def test_lists_that_are_none(texts, message):
    with pytest.raises(ValueError, match=message):
        text_list.text_table(texts, OPTIONS)


def test_what_does_not_fit(params, context):
    long = context._replace(prompt=np.ones((5, L), np.int32))
    with pytest.raises(ValueError, match="prompts of 8 tokens and texts of at least 1"):
        generate.greedy(CONFIG, params, long, OPTIONS)
    table = text_list.text_table([[2] * 5 + [1]], OPTIONS)
    with pytest.raises(ValueError, match="prompts of 3 tokens and texts of at least 6"):
        text_list.rank(CONFIG, params, context, table, OPTIONS)
    with pytest.raises(ValueError, match="max_tokens=9: the decoder is for 1 to 8"):
        generate.greedy(CONFIG, params, context, dataclasses.replace(OPTIONS, max_tokens=9))
    with pytest.raises(ValueError, match="beams must be positive, got 0"):
        generate.beam_search(CONFIG, params, context, OPTIONS, beams=0)
    with pytest.raises(ValueError, match="how many texts"):
        generate.greedy(CONFIG, params, Context(None), OPTIONS)

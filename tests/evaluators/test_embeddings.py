"""Retrieval and classes from vectors, against rankings by hand."""

import jax
import numpy as np
import pytest

from twelve_in_one.data.images.image_set import ImageExample, TextMisfit
from twelve_in_one.evaluators import embeddings, retrieval
from twelve_in_one.parallel.sharding import make_mesh

E = 6


def _unit(rng, *shape):
    x = rng.integers(-2, 3, (*shape, E)).astype(np.float32)
    x[..., 0] += 0.5
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class _Encode:
    """Texts are numbers of vectors; one is empty."""

    def texts(self, example):
        return example.texts, (1.0,) * len(example.texts)

    def tokens_of(self, text, name):
        if not text:
            raise TextMisfit(f"{name}: empty")
        return np.array([int(text)])


def test_five_captions_of_each_picture_are_ranked_in_both_directions(caplog):
    """Pictures that stand in several examples count once; ties keep the order."""
    rng = np.random.default_rng(0)
    examples, owner, kept = [], [], []
    for row in range(9):
        image = f"image{row // 3 * 2 if row < 6 else row}"  # 0 and 2 have three examples each
        texts = []
        for _ in range(int(rng.integers(1, 4))):
            texts.append(str(len(owner)))
            owner.append(image)
        if row == 8:
            texts.append("")
        examples.append(ImageExample(b"", f"e{row}", texts=tuple(texts), image_id=image))
    vectors, captions = _unit(rng, 9), _unit(rng, len(owner))
    captions[3] = captions[7]
    ranking = embeddings._rank(
        examples,
        _Encode(),
        vectors,
        lambda tokens: captions[tokens[:, 0]],
        make_mesh(devices=jax.devices()[:2]),
    )
    names = list(dict.fromkeys(example.image_id for example in examples))
    kept = [i for i, image in enumerate(owner) if owner[:i].count(image) < 5]
    assert len(kept) < len(owner) and ranking.image_ids == tuple(names)
    assert "e8: empty; it is no candidate" in caplog.text
    first = [[x.image_id for x in examples].index(name) for name in names]
    scores = captions[kept] @ vectors[first].T
    np.testing.assert_allclose(ranking.scores, scores, atol=1e-6)
    own = [names.index(owner[i]) for i in kept]
    assert ranking.image_of_caption.tolist() == own
    found = retrieval.summarise(ranking)["metrics"]
    scores = ranking.scores  # ties as they are in these
    places = [
        np.argsort(-row, kind="stable").tolist().index(i)
        for row, i in zip(scores, own, strict=True)
    ]
    best = [
        min(
            np.argsort(-scores[:, n], kind="stable").tolist().index(i)
            for i, o in enumerate(own)
            if o == n
        )
        for n in range(len(names))
    ]
    for k in (1, 5, 10):
        assert found[f"R@{k}"] == pytest.approx(np.mean(np.array(places) < k))
        assert found[f"text_R@{k}"] == pytest.approx(np.mean(np.array(best) < k))


def test_a_class_is_the_mean_of_its_sentences():
    rng = np.random.default_rng(1)
    sentences, pictures, labels = _unit(rng, 7, 3), _unit(rng, 20), rng.integers(0, 7, 20)
    classes = embeddings.class_vectors(sentences.reshape(-1, E), 3)
    ids = tuple(map(str, range(20)))
    outcome = embeddings.classified(ids, pictures, classes, labels, np.full(20, 10.0))
    losses = []
    for n in range(20):
        cosines = []
        for c in range(7):
            mean = sum(sentences[c]) / 3
            cosines.append(pictures[n] @ mean / np.sqrt(mean @ mean))
        assert outcome.prediction[n] == np.argmax(cosines)
        p = np.exp(10 * np.array(cosines))
        losses.append(-np.log(p[labels[n]] / p.sum()))
        assert outcome.confidence[n] == pytest.approx(max(p) / p.sum(), rel=1e-4)
    assert outcome.loss == pytest.approx(np.mean(losses), rel=1e-4)
    summary = embeddings.summarise_classes(outcome, labels, pictures @ classes.T)
    right = outcome.prediction == labels
    assert summary["score"] == pytest.approx(right.mean())
    by_class = [right[labels == c].mean() for c in set(labels.tolist())]
    assert summary["metrics"]["mean_class"] == pytest.approx(np.mean(by_class))
    assert summary["metrics"]["top-5"] >= summary["score"]

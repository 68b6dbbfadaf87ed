"""Predictions of a trained model.

    from twelve_in_one import predict

    model = predict.load("workdir")
    model.answer("kitchen.jpg", "What colour is the kettle?").answer
    model.rank(["a.jpg", "b.jpg"], "a dog on a sofa").order
    model.ground("street.jpg", "the man on the left").box
    model.point("street.jpg", "Which is parked?", boxes=[(9, 20, 80, 90), (90, 5, 200, 70)]).best
    model.entails("park.jpg", "Children are playing.").label
    model.compare("left.jpg", "right.jpg", "Both pictures show a bird.").label

A model that writes texts (LiT-decoder) has other methods, see `Writer`:

    model.caption("kitchen.jpg").answer
    model.classify("dog.jpg", ["a cat", "a dog"]).top
    model.read("cover.jpg", "Who wrote this book?").answer

One that also makes vectors of both (MaMMUT) is an `Embedder`:

    model.index(["a.jpg", "b.jpg"], "index.npz")
    model.retrieve("index.npz", "a dog on a sofa").found
    model.embed_image("a.jpg") @ model.embed_text("a dog on a sofa")

One that finds things by any names (MaMMUT's detector) is a `Finder`:

    model.detect("street.jpg", ["bicycle", "yellow umbrella"]).boxes

Every image or text may also be a list; `attention=True` adds attention maps, and
`picture(result)` draws the result. On the command line: `python -m twelve_in_one.predict
--help`. Needs no TensorFlow; texts and pictures need `pip install 'twelve_in_one[data]'`.
"""

from twelve_in_one.predict.embedder import Embedder, Index
from twelve_in_one.predict.finder import Finder
from twelve_in_one.predict.loading import load
from twelve_in_one.predict.pictures import picture
from twelve_in_one.predict.predictor import Predictor
from twelve_in_one.predict.results import (
    Answer,
    Attention,
    Grounding,
    Pointing,
    Ranking,
    Retrieval,
    Text,
    Things,
    Verdict,
    to_json,
)
from twelve_in_one.predict.writer import Writer

__all__ = [
    "Answer",
    "Attention",
    "Embedder",
    "Finder",
    "Grounding",
    "Index",
    "Pointing",
    "Predictor",
    "Ranking",
    "Retrieval",
    "Text",
    "Things",
    "Verdict",
    "Writer",
    "load",
    "picture",
    "to_json",
]

"""Parts of an `AnnotationSet`, by image: removes the test images of one dataset from the others.

Training drops annotations on images that some other dataset tests on (the paper's clean multi-task
setup); the caller decides which split is cleaned with which list.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping

from twelve_in_one.data.stored.records import Annotation, AnnotationSet


def without_images(annotation_set: AnnotationSet, ids: Collection[str]) -> AnnotationSet:
    """Leaves out every annotation on one of the images; of a pair, either image suffices.

    Args:
      annotation_set: any.
      ids: image ids as in `AnnotatedImage.image_id`; ids that do not occur have no effect.

    Returns:
      The remaining annotations in their order, with the images and pairs that they need; `skipped`
      is unchanged.
    """
    touches = _touches(annotation_set, ids)
    return restricted(annotation_set, (a for a in annotation_set.annotations if not touches(a)))


def only_images(annotation_set: AnnotationSet, ids: Collection[str]) -> AnnotationSet:
    """Keeps exactly the annotations that `without_images` leaves out."""
    touches = _touches(annotation_set, ids)
    return restricted(annotation_set, (a for a in annotation_set.annotations if touches(a)))


def restricted(annotation_set: AnnotationSet, annotations: Iterable[Annotation]) -> AnnotationSet:
    """The set with a selection of its annotations, and only images, pairs and notes about them."""
    annotations = tuple(annotations)
    keys = {annotation.image_id for annotation in annotations}
    pairs = {key: both for key, both in annotation_set.pairs.items() if key in keys}
    needed = keys.union(*pairs.values())
    images = {key: image for key, image in annotation_set.images.items() if key in needed}
    ids = {annotation.example_id for annotation in annotations} if annotation_set.notes else set()
    notes = {
        note: about & ids
        for note, about in annotation_set.notes.items()
        if not about or not about.isdisjoint(ids)
    }
    return dataclasses.replace(
        annotation_set, annotations=annotations, images=images, pairs=pairs, notes=notes
    )


def joined_notes(sets: Iterable[AnnotationSet]) -> Mapping[str, frozenset[str]]:
    """The notes of several sets; equal notes are joined, with all their examples."""
    notes: dict[str, frozenset[str]] = {}
    for annotation_set in sets:
        for note, about in annotation_set.notes.items():
            notes[note] = notes.get(note, frozenset()) | about
    return notes


def _touches(annotation_set: AnnotationSet, ids: Collection[str]) -> Callable[[Annotation], bool]:
    unwanted = frozenset(ids)
    unwanted_pairs = {
        key for key, both in annotation_set.pairs.items() if not unwanted.isdisjoint(both)
    }
    unwanted |= unwanted_pairs
    return lambda annotation: annotation.image_id in unwanted

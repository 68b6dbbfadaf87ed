from twelve_in_one.data.annotations.select import only_images, restricted, without_images
from twelve_in_one.data.stored.records import AnnotatedImage, Annotation, AnnotationSet, Skipped


def _images(*ids):
    return {image_id: AnnotatedImage(image_id) for image_id in ids}


SKIPPED = (Skipped("f", "r", "why"),)


def test_single_images():
    annotations = tuple(Annotation(str(i), image, "t") for i, image in enumerate("abcab"))
    whole = AnnotationSet(annotations, _images("a", "b", "c"), skipped=SKIPPED)
    kept = without_images(whole, ["b", "zzz"])
    assert [a.example_id for a in kept.annotations] == ["0", "2", "3"]
    assert (set(kept.images), kept.skipped) == ({"a", "c"}, SKIPPED)
    dropped = only_images(whole, {"b", "zzz"})
    assert [a.example_id for a in dropped.annotations] == ["1", "4"]
    assert set(dropped.images) == {"b"}
    assert without_images(whole, ()) == whole
    assert only_images(whole, ()) == AnnotationSet((), {}, skipped=SKIPPED)
    assert len(whole.annotations) == 5


def test_either_image_of_a_pair():
    pairs = {"p": ("a", "b"), "q": ("b", "c"), "r": ("d", "e")}
    annotations = tuple(Annotation(key + n, key, "t") for key in pairs for n in "01")
    whole = AnnotationSet(annotations, _images(*"abcde"), pairs)
    kept = without_images(whole, ["c", "d"])
    assert [a.example_id for a in kept.annotations] == ["p0", "p1"]
    assert (set(kept.images), dict(kept.pairs)) == ({"a", "b"}, {"p": ("a", "b")})
    dropped = only_images(whole, ["c", "d"])
    assert [a.image_id for a in dropped.annotations] == ["q", "q", "r", "r"]
    assert set(dropped.images) == set("bcde")


def test_restricted():
    whole = AnnotationSet((Annotation("0", "a", "t"), Annotation("1", "b", "t")), _images("a", "b"))
    part = restricted(whole, whole.annotations[1:])
    assert (part.annotations, set(part.images)) == (whole.annotations[1:], {"b"})

"""Example pictures: what is drawn where, in which colour, and how much text is kept."""

import numpy as np
import pytest
from PIL import Image

from twelve_in_one.report import pictures
from twelve_in_one.report.pictures import (
    WIDTH,
    Box,
    ExamplePicture,
    contact_sheet,
    draw_example,
    draw_weights,
)

COLOURS = {role: colour for role, (colour, _) in pictures._ROLES.items()}
GREY = np.full((60, 100, 3), 127, np.uint8)


def example(**fields):
    defaults = dict(
        task="VQAv2", text="what is it", answer="dog", expected="cat", right=False, images=[GREY]
    )
    return ExamplePicture(**defaults | fields)


def count(picture, colour):
    return int((np.asarray(picture) == colour).all(axis=-1).sum())


def extent(picture, colour):
    """Corners of the pixels of exactly one colour."""
    ys, xs = (np.asarray(picture) == colour).all(axis=-1).nonzero()
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def test_a_box_lies_where_it_was_given():
    drawn = draw_example(example(boxes=[(20, 10, 70, 40, "predicted")]))
    plain = draw_example(example())
    scale, margin = (WIDTH - 20) / 100, 10
    pixels = np.array(drawn)
    shown = pixels[margin : margin + round(60 * scale)]  # without the legend
    found = np.array(extent(shown, COLOURS["predicted"])) - [margin, 0, margin, 0]
    assert np.abs(found - np.array([20, 10, 70, 40]) * scale).max() <= 1
    assert count(plain, COLOURS["predicted"]) == 0
    assert drawn.width == plain.width == WIDTH


@pytest.mark.parametrize("role", list(COLOURS))
def test_roles_differ_and_are_in_the_legend(role):
    drawn = draw_example(example(boxes=[Box(20, 10, 70, 40, role)]))
    below = np.asarray(drawn)[10 + 180 :]
    assert count(below, COLOURS[role]) > 50
    assert all(count(drawn, COLOURS[other]) == 0 for other in set(COLOURS) - {role})


def test_a_right_prediction_shows_with_the_truth():
    box = (20, 10, 70, 40)
    shown = np.asarray(draw_example(example(boxes=[(*box, "predicted"), (*box, "truth")])))[:190]
    assert count(shown, COLOURS["truth"]) > 300
    assert count(shown, COLOURS["predicted"]) > 300


@pytest.mark.parametrize("right", [True, False])
def test_right_and_wrong_differ(right):
    colours = {True: pictures._RIGHT, False: pictures._WRONG}
    drawn = draw_example(example(right=right))
    assert count(drawn, colours[right]) > 500
    assert count(drawn, colours[not right]) == 0


def test_a_picture_that_is_not_at_hand():
    drawn = draw_example(example(images=[None], sizes=[(100, 60)], boxes=[(0, 0, 9, 9, "truth")]))
    assert drawn.size == draw_example(example(boxes=[(0, 0, 9, 9, "truth")])).size
    assert count(drawn, pictures._BLANK) > 0.9 * 300 * 180


def test_two_pictures_side_by_side():
    left, right = np.zeros_like(GREY) + (200, 0, 0), np.zeros_like(GREY) + (0, 0, 200)
    drawn = draw_example(example(images=[left.astype(np.uint8), right.astype(np.uint8)]))
    assert extent(drawn, (200, 0, 0))[2] <= extent(drawn, (0, 0, 200))[0]


def test_candidates_have_the_true_one_framed():
    images = [np.full((60, 100, 3), 20 * i, np.uint8) for i in range(1, 9)]
    drawn = draw_example(example(images=images, true_image=6, chosen_image=2))
    shown = np.asarray(drawn)[: extent(drawn, (160, 160, 160))[3]]
    frames = {6: COLOURS["truth"], 2: COLOURS["predicted"]}
    for i, colour in frames.items():
        thumb, frame = extent(shown, (20 * (i + 1),) * 3), extent(shown, colour)
        assert all(abs(a - b) <= 5 for a, b in zip(thumb, frame, strict=True)), i
    boxes = [extent(shown, (20 * (i + 1),) * 3) for i in range(8)]
    assert all(box[1] == boxes[0][1] for box in boxes[:2])  # a row of five, then three
    assert boxes[5][1] > boxes[4][3]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "one",
        "many words " * 12,
        "x" * 150,
        "yes? no\n" * 4,
        "tabs\tand   blanks",
        "a" * 60 + " b",
    ],
)
def test_wrapped_text_fits_and_is_whole(text):
    font = pictures._font()
    lines = pictures._wrapped(text, font, 200)
    assert all(font.getlength(line) <= 200 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_too_much_text_is_cut_visibly():
    lines = pictures._wrapped("word " * 500, pictures._font(), 200)
    assert len(lines) == pictures._MAX_LINES
    assert lines[-1].endswith("…")
    tall = draw_example(example(text="word " * 5000, answer="y" * 5000, expected="z" * 5000))
    assert tall.height < 1000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(images=[]), "example of VQAv2: no image"),
        (dict(images=[GREY.astype(float)]), r"must be uint8\[H, W, 3\], is float64\[60, 100, 3\]"),
        (dict(images=[GREY[..., 0]]), r"is uint8\[60, 100\]"),
        (dict(images=[GREY[:0]]), r"is uint8\[0, 100, 3\]"),
        (dict(images=[None]), "image 0 is None and has no size"),
        (dict(images=[GREY, None], sizes=[(1, 1)]), "2 images, 1 sizes"),
        (dict(boxes=[(0, 0, 1, 1, "guess")]), r"unknown roles \['guess'\]; known: region"),
        (dict(boxes=[(0, 0, np.nan, 1, "truth")]), "a box is not finite"),
        (dict(true_image=1), "no image 1 among 1"),
    ],
)
def test_what_cannot_be_drawn(fields, message):
    with pytest.raises(ValueError, match=message):
        draw_example(example(**fields))


def test_boxes_outside_and_turned_around_are_drawn_inside():
    drawn = draw_example(
        example(boxes=[(900, 900, -50, -50, "truth"), (100, 60, 100, 60, "choice")])
    )
    x1, y1, x2, y2 = extent(np.asarray(drawn)[:190], COLOURS["truth"])
    assert (x1, y1, x2, y2) == (10, 10, 310, 190)


def test_contact_sheet():
    sheet = contact_sheet([example(text="word " * (20 * i)) for i in range(5)])
    heights = [draw_example(example(text="word " * (20 * i))).height - 17 for i in range(5)]
    assert sheet.size == (4 * WIDTH, max(heights[:4]) + heights[4])  # 17 for each one's heading
    with pytest.raises(ValueError, match="at least one example"):
        contact_sheet([])


# ------------------------------------------------------------------------------- attention weights


def test_weights_light_up_their_regions():
    image = np.full((80, 480, 3), 200, np.uint8)  # as wide as it is drawn
    boxes = np.array([[10, 10, 110, 70], [150, 10, 250, 70], [300, 10, 400, 70]], float)
    drawn = draw_weights(image, boxes, np.array([0.6, 0.3, 0.1]))
    assert drawn.size == (480, 80)
    pixels = np.asarray(drawn).astype(int)
    outside, *inside = pixels[40, 450], pixels[40, 60], pixels[40, 200], pixels[40, 350]
    assert len(set(outside)) == 1 and outside[0] < 110  # dark, and no colour of its own
    reds = [pixel[0] for pixel in inside]
    assert reds == sorted(reds, reverse=True) and reds[-1] > outside[0]
    greener = [pixel[0] - pixel[1] for pixel in inside]
    assert greener == sorted(greener, reverse=True)  # red where most, yellow where little
    np.testing.assert_array_equal(pixels[72:78, 60], np.broadcast_to(outside, (6, 3)))


def test_weights_add_up_where_regions_overlap():
    image = np.full((80, 480, 3), 200, np.uint8)
    boxes = np.array([[0, 0, 300, 80], [200, 0, 480, 80]], float)
    pixels = np.asarray(draw_weights(image, boxes, np.ones(2))).astype(int)
    left, both, right = pixels[60, 100], pixels[60, 250], pixels[60, 400]
    np.testing.assert_array_equal(left, right)
    assert both[0] > left[0]


def test_small_pictures_are_enlarged_and_no_weight_is_no_heat():
    drawn = draw_weights(GREY, np.array([[10.0, 10, 90, 50]]), np.zeros(1))
    assert drawn.size == (480, 288)
    assert len(np.unique(np.asarray(drawn))) == 1
    assert draw_weights(GREY, np.zeros((0, 4)), np.zeros(0)).size == (480, 288)


@pytest.mark.parametrize(
    ("boxes", "weights", "message"),
    [
        (np.zeros((2, 5)), np.zeros(2), r"boxes \(2, 5\) and weights \(2,\)"),
        (np.zeros((2, 4)), np.zeros(3), r"must be \[R, 4\] and \[R\]"),
        (np.zeros((1, 4)), np.array([-1.0]), "not negative"),
        (np.zeros((1, 4)), np.array([np.nan]), "finite"),
        (np.full((1, 4), np.inf), np.ones(1), "finite"),
    ],
)
def test_wrong_weights(boxes, weights, message):
    with pytest.raises(ValueError, match=message):
        draw_weights(GREY, boxes, weights)


def test_a_picture_opened_from_a_file_will_do():
    """Such arrays are read-only."""
    image = np.asarray(Image.new("RGB", (100, 60), (1, 2, 3)))
    assert not image.flags.writeable
    draw_example(example(images=[image], boxes=[(0, 0, 9, 9, "truth")]))
    draw_weights(image, np.array([[0.0, 0, 9, 9]]), np.ones(1))

"""Pictures of examples: the model's input, its answer, and the right one."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

WIDTH = 320  # pixels per example
_SHEET_COLUMNS = 4
_MAX_HEIGHT = 320  # of one picture
_THUMBS_A_ROW = 5
_MAX_LINES = 10
_GAP, _LINE, _TEXT_SIZE = 10, 17, 13
_MIN_WEIGHTS_WIDTH = 480
_LABELLED = 3
_PAPER, _INK, _FAINT, _BLANK = (250, 249, 246), (28, 28, 30), (110, 112, 118), (226, 226, 222)
_RIGHT, _WRONG = (22, 128, 60), (190, 30, 45)
# Lower entries are drawn first: a right prediction shows inside its frame of truth.
_ROLES = {
    "region": ((150, 152, 158), 1),
    "choice": ((40, 120, 220), 1),
    "truth": ((30, 190, 90), 5),
    "predicted": ((235, 30, 140), 2),
}


class Box(NamedTuple):
    """Corners in pixels of the picture, and the role of the box: see `ExamplePicture.boxes`."""

    x1: float
    y1: float
    x2: float
    y2: float
    role: str


@dataclasses.dataclass(frozen=True)
class ExamplePicture:
    """One example with the model's answer.

    Attributes:
      task: title of its task.
      text: question, caption or phrase.
      answer: the model's.
      expected: the right one; "" if it is unknown or shown by the boxes.
      right: whether the answer counts as right; None if unknown.
      images: uint8[H, W, 3]; two are shown side by side. None is a missing picture.
      sizes: (width, height) of every image, needed if one is None.
      boxes: on the first image; roles are "predicted", "truth", "choice" (may be chosen) and
        "region" (anything else).
      true_image: in retrieval, the right image.
      chosen_image: in retrieval, the image that the model chose. With either of the two, all images
        are shown as thumbnails.
    """

    task: str
    text: str
    answer: str
    expected: str
    right: bool | None
    images: Sequence[np.ndarray | None]
    sizes: Sequence[tuple[int, int]] = ()
    boxes: Sequence[Box | tuple[float, float, float, float, str]] = ()
    true_image: int | None = None
    chosen_image: int | None = None


def draw_example(example: ExamplePicture) -> "Image.Image":
    """The example as a picture `WIDTH` wide, as high as necessary.

    Raises:
      ValueError: no image, an image that is not uint8[H, W, 3], one that is None without a size, an
        unknown role or image; names the task.
    """
    return _draw(example, heading=True)


def contact_sheet(examples: Sequence[ExamplePicture]) -> "Image.Image":
    """Examples of one task in rows of four.

    Raises:
      ValueError: none given, or see `draw_example`.
    """
    from PIL import Image

    if not examples:
        raise ValueError("a contact sheet needs at least one example")
    drawn = [_draw(example, heading=False) for example in examples]
    rows = [drawn[i : i + _SHEET_COLUMNS] for i in range(0, len(drawn), _SHEET_COLUMNS)]
    heights = [max(picture.height for picture in row) for row in rows]
    size = (len(rows[0]) * WIDTH, sum(heights))
    sheet, y = Image.new("RGB", size, _PAPER), 0
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * WIDTH, y))
        y += height
    return sheet


def draw_weights(image: np.ndarray, boxes: np.ndarray, weights: np.ndarray) -> "Image.Image":
    """A picture with its attended regions: dark without attention, red at the maximum.

    The heat of a pixel is the sum of the weights of the regions that cover it, divided by the
    largest such sum; the three heaviest regions are framed, with their share of all weights. Omit
    the global region: it covers everything.

    Args:
      image: uint8[H, W, 3].
      boxes: float[R, 4], corners in pixels.
      weights: float[R], not negative; need not sum to 1.

    Returns:
      The picture, enlarged if it is small.

    Raises:
      ValueError: shapes or values differ from these.
    """
    from PIL import Image, ImageDraw

    image, boxes, weights = np.asarray(image), np.asarray(boxes, float), np.asarray(weights, float)
    _check_image(image, "draw_weights")
    if boxes.ndim != 2 or boxes.shape[1:] != (4,) or weights.shape != boxes.shape[:1]:
        raise ValueError(
            f"draw_weights: boxes {boxes.shape} and weights {weights.shape} must be [R, 4] and [R]"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("draw_weights: boxes must be finite, weights finite and not negative")
    height, width = image.shape[:2]
    scale = max(1.0, _MIN_WEIGHTS_WIDTH / width)
    size = (round(width * scale), round(height * scale))
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), np.float32)
    scaled = boxes * scale
    heat = np.zeros(pixels.shape[:2], np.float32)
    for box, weight in zip(scaled, weights, strict=True):
        x1, y1, x2, y2 = _inside(box, size)
        heat[y1:y2, x1:x2] += weight
    if heat.max() > 0:
        heat /= heat.max()
    heat = heat[..., None]
    colour = (255.0, 215.0, 0.0) + heat * (np.array([225.0, 20.0, 20.0]) - (255.0, 215.0, 0.0))
    mixed = pixels * (0.45 + 0.55 * heat)
    mixed += 0.45 * heat * (colour - mixed)
    picture = Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))
    canvas, font = ImageDraw.Draw(picture), _font()
    for i in np.argsort(-weights, kind="stable")[:_LABELLED]:
        if weights[i] > 0:
            corners = _inside(scaled[i], size)
            _frame(canvas, corners, (255, 255, 255), 2)
            label = f"{weights[i] / weights.sum():.0%}"
            x, y = corners[0] + 3, corners[1] + 2
            canvas.rectangle(canvas.textbbox((x, y), label, font=font), fill=(20, 20, 22))
            canvas.text((x, y), label, fill=(255, 255, 255), font=font)
    return picture


def _draw(example: ExamplePicture, *, heading: bool) -> "Image.Image":
    from PIL import Image, ImageDraw

    _check(example)
    ranked = example.true_image is not None or example.chosen_image is not None
    shown = _candidates(example) if ranked else _side_by_side(example)
    font = _font()
    lines = [(line, _FAINT) for line in _wrapped(example.task, font, WIDTH - 2 * _GAP) if heading]
    lines += [(line, _INK) for line in _wrapped(example.text, font, WIDTH - 2 * _GAP)]
    verdict, colour = {True: ("right", _RIGHT), False: ("wrong", _WRONG), None: ("", _INK)}[
        example.right
    ]
    answer = ": ".join(part for part in (verdict, example.answer) if part)
    lines += [(line, colour) for line in _wrapped(answer, font, WIDTH - 2 * _GAP)]
    if example.expected and not example.right:
        expected = _wrapped(f"expected: {example.expected}", font, WIDTH - 2 * _GAP)
        lines += [(line, _INK) for line in expected]
    roles = [role for role in reversed(_ROLES) if role in _roles(example)]
    height = shown.height + _LINE * (len(lines) + bool(roles)) + 3 * _GAP
    picture = Image.new("RGB", (WIDTH, height), _PAPER)
    picture.paste(shown, (_GAP, _GAP))
    canvas = ImageDraw.Draw(picture)
    y = shown.height + _GAP + _GAP // 2
    if roles:
        x = float(_GAP)
        for role in roles:
            canvas.rectangle((x, y + 4, x + 10, y + 13), fill=_ROLES[role][0])
            canvas.text((x + 14, y), role, fill=_FAINT, font=font)
            x += 14 + font.getlength(role) + _GAP
        y += _LINE
    for line, ink in lines:
        canvas.text((_GAP, y), line, fill=ink, font=font)
        y += _LINE
    # A bar in the margin is visible from afar.
    canvas.rectangle((0, _GAP, 3, height - _GAP), fill=colour)
    return picture


def _check(example: ExamplePicture) -> None:
    where, count = f"example of {example.task}", len(example.images)
    if not count:
        raise ValueError(f"{where}: no image; a picture that is not at hand is None, with its size")
    if example.sizes and len(example.sizes) != count:
        raise ValueError(f"{where}: {count} images, {len(example.sizes)} sizes")
    for i, image in enumerate(example.images):
        if image is not None:
            _check_image(np.asarray(image), where)
        elif not example.sizes or min(example.sizes[i]) < 1:
            raise ValueError(f"{where}: image {i} is None and has no size")
    unknown = {box[4] for box in example.boxes} - set(_ROLES)
    if unknown:
        raise ValueError(f"{where}: unknown roles {sorted(unknown)}; known: {', '.join(_ROLES)}")
    if not np.isfinite([box[:4] for box in example.boxes]).all():
        raise ValueError(f"{where}: a box is not finite")
    for chosen in (example.true_image, example.chosen_image):
        if chosen is not None and not 0 <= chosen < count:
            raise ValueError(f"{where}: no image {chosen} among {count}")


def _check_image(image: np.ndarray, where: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"{where}: an image must be uint8[H, W, 3], is {image.dtype}{list(image.shape)}"
        )


def _roles(example: ExamplePicture) -> set[str]:
    roles = {box[4] for box in example.boxes}
    if example.true_image is not None:
        roles.add("truth")
    if example.chosen_image is not None:
        roles.add("predicted")
    return roles


def _side_by_side(example: ExamplePicture) -> "Image.Image":
    from PIL import Image, ImageDraw

    count = len(example.images)
    width = (WIDTH - (count + 1) * _GAP) // count
    pictures = [_fitted(example, i, width) for i in range(count)]
    canvas = ImageDraw.Draw(pictures[0])
    scale = pictures[0].width / _size(example, 0)[0]
    for role, (colour, thickness) in _ROLES.items():
        for box in example.boxes:
            if box[4] == role:
                corners = _inside(np.array(box[:4], float) * scale, pictures[0].size)
                _frame(canvas, corners, colour, thickness)
    row = Image.new("RGB", (WIDTH - 2 * _GAP, max(p.height for p in pictures)), _PAPER)
    for i, picture in enumerate(pictures):
        row.paste(picture, (i * (width + _GAP), 0))
    return row


def _candidates(example: ExamplePicture) -> "Image.Image":
    from PIL import Image, ImageDraw

    count = len(example.images)
    columns = min(_THUMBS_A_ROW, count)
    width = (WIDTH - _GAP) // columns - _GAP
    rows = -(-count // columns)
    shown = Image.new("RGB", (WIDTH - 2 * _GAP, rows * (width + _GAP)), _PAPER)
    canvas = ImageDraw.Draw(shown)
    frames = {"truth": example.true_image, "predicted": example.chosen_image}
    for i in range(count):
        x, y = i % columns * (width + _GAP), i // columns * (width + _GAP)
        thumb = _fitted(example, i, width, max_height=width)
        shown.paste(thumb, (x, y))
        for role, (colour, thickness) in _ROLES.items():
            if i == frames.get(role):
                corners = (x, y, x + thumb.width, y + thumb.height)
                _frame(canvas, corners, colour, thickness)
    return shown


def _size(example: ExamplePicture, i: int) -> tuple[int, int]:
    image = example.images[i]
    return example.sizes[i] if image is None else (image.shape[1], image.shape[0])


def _fitted(
    example: ExamplePicture, i: int, width: int, max_height: int = _MAX_HEIGHT
) -> "Image.Image":
    """An image scaled to `width`, or smaller if it is tall."""
    from PIL import Image

    full, image = _size(example, i), example.images[i]
    scale = min(width / full[0], max_height / full[1])
    size = (max(1, round(full[0] * scale)), max(1, round(full[1] * scale)))
    if image is None:
        return Image.new("RGB", size, _BLANK)
    return Image.fromarray(np.asarray(image)).resize(size, Image.Resampling.BICUBIC)


def _inside(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Corners rounded and clipped to a picture, in order, at least one pixel apart."""
    (x1, x2), (y1, y2) = sorted(box[[0, 2]]), sorted(box[[1, 3]])
    x1, y1 = (int(np.clip(round(v), 0, n - 1)) for v, n in ((x1, size[0]), (y1, size[1])))
    x2, y2 = (
        int(np.clip(round(v), low + 1, n)) for v, low, n in ((x2, x1, size[0]), (y2, y1, size[1]))
    )
    return x1, y1, x2, y2


def _frame(
    canvas: "ImageDraw.ImageDraw",
    corners: tuple[int, int, int, int],
    colour: tuple[int, int, int],
    thickness: int,
) -> None:
    x1, y1, x2, y2 = corners
    canvas.rectangle((x1, y1, x2 - 1, y2 - 1), outline=colour, width=thickness)


def _font() -> "ImageFont.FreeTypeFont":
    from PIL import ImageFont

    return ImageFont.load_default(_TEXT_SIZE)


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """Lines that fit: whole words if possible, at most `_MAX_LINES`."""
    text = text[: _MAX_LINES * width]  # no letter is narrower than a pixel
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if font.getlength(longer) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            line = ""
            for letter in word:
                if line and font.getlength(line + letter) > width:
                    lines.append(line)
                    line = ""
                line += letter
        lines.append(line)
    if len(lines) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES - 1], f"{lines[_MAX_LINES - 1][:-1]}…"]
    return lines

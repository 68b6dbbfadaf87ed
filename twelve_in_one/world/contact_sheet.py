"""A picture for people of the contents of a world's files, read as in a training job."""

import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from twelve_in_one.data.annotations import refcoco, retrieval, vqa
from twelve_in_one.world.scene import HEIGHT, WIDTH

FILE = "contact_sheet.png"
_COLUMNS, _ROWS = 4, 6
_ZOOM = 2
_WIDTH = 400  # pixels of a cell
_TEXT_SIZE, _LINE, _GAP = 15, 19, 10
_PAPER, _INK, _MARK = (250, 249, 246), (28, 28, 30), (255, 0, 120)


class _Cell(NamedTuple):
    """One cell of the sheet.

    Attributes:
      file: of the picture.
      lines: heading and text.
      box: corners, pixels; None to mark nothing.
    """

    file: Path
    lines: tuple[tuple[str, str], ...]
    box: tuple[float, float, float, float] | None = None


def draw(folder: Path) -> None:
    """Writes contact_sheet.png: pictures of RefCOCO's training split with texts about them.

    If there are image classes and covers of books, a few of them follow.

    Args:
      folder: of a world, all datasets written.

    Raises:
      DataError: one of its files cannot be read.
    """
    cells = [*_cells(folder), *_class_cells(folder / "classes"), *_cover_cells(folder)]
    font = ImageFont.load_default(_TEXT_SIZE)
    texts = [[_wrapped(f"{head}: {text}", font) for head, text in cell.lines] for cell in cells]
    height = HEIGHT * _ZOOM + _LINE * max(sum(map(len, t)) for t in texts) + 3 * _GAP
    columns = min(_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (_WIDTH + _GAP) + _GAP, rows * height + _GAP), _PAPER)
    canvas = ImageDraw.Draw(sheet)
    for number, (cell, parts) in enumerate(zip(cells, texts, strict=True)):
        row, column = divmod(number, columns)
        x, y = _GAP + column * (_WIDTH + _GAP), _GAP + row * height
        with Image.open(cell.file) as picture:
            zoom = min(WIDTH * _ZOOM / picture.width, HEIGHT * _ZOOM / picture.height)
            size = (round(picture.width * zoom), round(picture.height * zoom))
            sheet.paste(picture.resize(size, Image.Resampling.BICUBIC), (x, y))
        if cell.box is not None:
            corners = np.array(cell.box) * zoom + (x, y, x, y)
            canvas.rectangle(corners.round().tolist(), outline=_MARK, width=2)
        y += HEIGHT * _ZOOM + _GAP // 2
        for lines in parts:
            for line in lines:
                canvas.text((x, y), line, fill=_INK, font=font)
                y += _LINE
    sheet.save(folder / FILE)


def _cells(folder: Path) -> list[_Cell]:
    """A picture for each of the first references of RefCOCO."""
    expressions = refcoco.read(folder / "refcoco", "refcoco", "train")
    asked = dict(vqa.read_split(folder / "vqa", "train2014").by_image())
    described = dict(retrieval.read_coco(folder / "coco", "train").by_image())
    cells = []
    for image_id, found in expressions.by_image():
        if image_id not in asked or len(cells) == _COLUMNS * _ROWS:
            continue
        name = expressions.images[image_id].file_name
        expression, question = found[0], asked[image_id][0]
        best = int(np.argmax(question.scores))
        lines = (
            ("VQA", f"{question.text} {question.answers[best]}"),
            ("COCO", described[image_id][0].text),
            ("RefCOCO", expression.text),
        )
        cells.append(_Cell(folder / "images/coco/train2014" / name, lines, expression.box))
    return cells


def _class_cells(folder: Path) -> list[_Cell]:
    """The first picture of a few classes of each set."""
    cells = []
    for image_set in sorted(folder.iterdir()) if folder.is_dir() else ():
        classes = sorted((image_set / "train").iterdir())
        for place in classes[:: max(1, len(classes) // _COLUMNS)][:_COLUMNS]:
            text = place.name.replace("_", " ")
            cells.append(_Cell(min(place.iterdir()), ((f"Class of {image_set.name}", text),)))
    return cells


def _cover_cells(folder: Path) -> list[_Cell]:
    """The first books, with all their questions."""
    path = folder / "ocr_vqa/dataset.json"
    books = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [
        _Cell(
            folder / f"images/ocr_vqa/{book_id}.jpg",
            tuple(
                ("OCR-VQA", f"{question} {answer}")
                for question, answer in zip(book["questions"], book["answers"], strict=True)
            ),
        )
        for book_id, book in itertools.islice(books.items(), _COLUMNS)
    ]


def _wrapped(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines of whole words that fit in a cell."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= _WIDTH - _GAP:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines

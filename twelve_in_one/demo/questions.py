"""The six questions of the page: their inputs, and asking them; independent of the page."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from twelve_in_one.data.serving import Serving
from twelve_in_one.predict.pictures import picture
from twelve_in_one.predict.predictor import Predictor
from twelve_in_one.predict.results import Ranking, Result
from twelve_in_one.predict.wording import describe, lines

if TYPE_CHECKING:
    from PIL import Image

_TOP = 5


@dataclasses.dataclass(frozen=True)
class Question:
    """A question that a model can be asked.

    Attributes:
      name: of the method of `Predictor`.
      title: of its tab.
      about: its purpose, in one sentence.
      text: name of its text.
      example: a text.
      kind: of the tasks that answer it.
      rows: of such a task, for one example; 0 takes any.
      images: number that it takes, 0 for any number.
      boxes: "needed", "possible" or "".
    """

    name: str
    title: str
    about: str
    text: str
    example: str
    kind: str
    rows: int = 0
    images: int = 1
    boxes: str = ""

    def tasks(self, serving: Serving) -> list[str]:
        """Names of the model's tasks that answer it."""
        return [
            task.name
            for task in serving.tasks
            if task.kind == self.kind and self.rows in (0, task.rows_per_example)
        ]


QUESTIONS = (
    Question(
        "answer",
        "Answer",
        "Answers a question about a picture with one of the answers that the model knows.",
        "Question",
        "what color is the circle?",
        "answer",
    ),
    Question(
        "rank",
        "Rank",
        "Puts pictures in the order in which they fit a caption.",
        "Caption",
        "a red circle and a blue square",
        "match",
        images=0,
    ),
    Question(
        "ground",
        "Ground",
        "Finds what a phrase means, among regions of the picture or among boxes.",
        "Phrase",
        "the circle on the left",
        "region",
        boxes="possible",
    ),
    Question(
        "point",
        "Point",
        "Chooses one of the boxes that you give.",
        "Question",
        "which one is red?",
        "choice",
        boxes="needed",
    ),
    Question(
        "entails",
        "Entails",
        "Says whether a picture entails a sentence, contradicts it, or neither.",
        "Sentence",
        "a circle is red",
        "verdict",
        rows=1,
    ),
    Question(
        "compare",
        "Compare",
        "Says whether a sentence is true of two pictures.",
        "Sentence",
        "both pictures show a circle",
        "verdict",
        rows=2,
        images=2,
    ),
)


class Reply(NamedTuple):
    """The output on the page.

    Attributes:
      words: the answer in one line, or the mistake.
      details: scores, one per line; "" if it could not be answered.
      picture: with boxes, and attention next to it; None if it could not be answered.
    """

    words: str
    details: str
    picture: "Image.Image | None"


def ask(
    predictor: Predictor,
    question: Question,
    images: Sequence[str | None],
    text: str,
    *,
    task: str,
    boxes: str = "",
    attention: bool = False,
) -> Reply:
    """Asks the model; mistakes in the request become words.

    Args:
      predictor: the model.
      question: to ask.
      images: paths of pictures, None where none was chosen.
      text: question, caption, phrase or sentence.
      task: name of the model's task that answers.
      boxes: one per line, see `parse_boxes`; blank for none.
      attention: also draw the text's attention.
    """
    try:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", UserWarning)
            given, named = _arguments(question, images, text, boxes)
            method = getattr(predictor, question.name)
            result = method(*given, **named, task=task, attention=attention)
            shown = picture(result)
    except (ValueError, ImportError, OSError) as error:
        return Reply(f"Not answered: {error}", "", None)
    notes = [f"note: {w.message}" for w in noted if issubclass(w.category, UserWarning)]
    return Reply(_headline(result), "\n".join([*_details(result), *notes]), shown)


def _arguments(
    question: Question, images: Sequence[str | None], text: str, boxes: str
) -> tuple[list[Any], dict[str, Any]]:
    """The method's arguments: pictures and text by position, boxes by name.

    Raises:
      ValueError: an input is missing.
    """
    if not images or None in images:
        raise ValueError("choose two pictures" if question.images == 2 else "choose a picture")
    if not text.strip():
        raise ValueError(f"type a {question.text.lower()}")
    given = parse_boxes(boxes) if question.boxes else []
    if question.boxes == "needed" and not given:
        raise ValueError("give boxes to choose from, or find some in the picture")
    arguments = {"boxes": given} if given else {}
    return ([*images] if question.images else [list(images)]) + [text], arguments


def parse_boxes(text: str) -> list[tuple[float, ...]]:
    """Boxes from a text with one per line: "x1, y1, x2, y2" in pixels.

    Raises:
      ValueError: a line has another form; names it.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            corners = tuple(float(part) for part in line.replace(",", " ").split())
        except ValueError:
            corners = ()
        if len(corners) != 4:
            raise ValueError(f"boxes, line {number}: {line!r} should be x1, y1, x2, y2 in pixels")
        found.append(corners)
    return found


def found_boxes(predictor: Predictor, image: str | None, count: int = 8) -> tuple[str, str]:
    """The largest regions found in a picture, in the format of `parse_boxes`; or the mistake.

    Args:
      predictor: the model, whose extractor finds them.
      image: path of the picture.
      count: largest number.
    """
    if image is None:
        return "", "Choose a picture first."
    try:
        boxes = predictor.read(image).regions.boxes
    except (ValueError, ImportError, OSError) as error:
        return "", f"No boxes: {error}"
    sizes = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    best = sorted(sizes.argsort()[::-1][:count])
    found = "\n".join(", ".join(f"{corner:.0f}" for corner in boxes[i]) for i in best)
    return found, "" if found else "No regions were found in this picture."


def _headline(result: Result) -> str:
    if isinstance(result, Ranking):
        return f"picture {int(result.order[0]) + 1} of {len(result.images)} fits best"
    return describe(result)


def _details(result: Result) -> list[str]:
    """Scores and attention as on the command line, below the line that repeats the question."""
    found = lines(result, _TOP)[1:]
    if isinstance(result, Ranking):  # paths of uploaded files are meaningless
        names = [Path(image.name).name for image in result.images]
        order = result.order[:_TOP]
        ranked = [f"  {result.scores[i]:8.3f}  picture {i + 1}: {names[i]}" for i in order]
        return [*ranked, *found[len(ranked) :]]
    return found

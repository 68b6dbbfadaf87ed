"""Tasks on pictures: all have one shape of batch, so that their rows can be mixed.

A batch is a dict (B rows, S side of a picture in pixels, L tokens):

* images float32[B, S, S, 3]
* task_id int32[B], `ImageTask.task_id` of each row
* _mask bool[B], False for rows that only fill the batch, or whose picture cannot be read
* targets, by kind: "class" and "names" targets int32[B], the number of the class; "text" and
  "pairs" tokens int32[B, L], prompt, answer and end of text, then padding, and prompt_length
  int32[B]; "boxes" boxes float32[B, G, 4], classes int32[B, G], size float32[B, 2] and masks
  uint8[B, G, M, M], see `data.images.boxes.BoxTargets`.

Batches also carry example_id str[B], for the host only.
"""

import dataclasses
from typing import Literal

from twelve_in_one.tasks import kinds

Group = Literal["classify", "caption", "vqa", "ocr", "pairs", "zero_shot", "detect"]
# Those whose texts a decoder writes; their order is that of rows in models' tables.
GROUPS: tuple[Group, ...] = ("classify", "caption", "vqa", "ocr")


@dataclasses.dataclass(frozen=True)
class ImageTask:
    """One of the datasets that a model of pictures is trained on.

    Attributes:
      name: short name, as in configs and result tables.
      title: name for people.
      group: what is asked.
      task_id: its number among the tasks of the run.
      kind: of its targets, "class", "text", "pairs", "names" or "boxes".
      batch_size: examples per batch of its own.
      prompt: words that name it to a decoder.
      templates: sentences that name a class of it to a text encoder, with {} for the name.
    """

    name: str
    title: str
    group: Group
    task_id: int
    kind: kinds.Name
    batch_size: int
    prompt: str = ""
    templates: tuple[str, ...] = ()

    rows_per_example = 1

    @property
    def head(self) -> str:
        """Name of its list of classes."""
        return self.name

    @property
    def heads(self) -> tuple[str, ...]:
        """The same, as for other tasks."""
        return (self.name,)

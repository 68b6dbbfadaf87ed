"""The interface of a model to trainer, evaluators, checkpoints and export.

A `System` is a model with its config, frozen and hashable: it makes parameters, says what one
program trains (`Objective`), how rows are scored, and which inputs its parameters depend on.
Batches and parameters are opaque to all other code, except the batch keys `task_id`, `_mask` and
`example_id` (see `tasks/task.py`).
"""

import abc
import dataclasses
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.config.settings import OfficialOptions, OptimizerOptions
from twelve_in_one.optim.param_groups import ParamGroup
from twelve_in_one.tasks import kinds
from twelve_in_one.tasks.image_task import ImageTask
from twelve_in_one.tasks.kinds import Candidates
from twelve_in_one.tasks.losses import Sums
from twelve_in_one.tasks.task import Task

Params = Any
AnyTask = Task | ImageTask
Batch = Mapping[str, Any]
Shape = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class Joint:
    """A loss that compares the rows of a batch with each other, by vectors that each row has alone.

    Both parts return sums of all parts of the loss, zero where they have nothing to add.

    Attributes:
      rows: (params, batch, dropout key or None) -> vectors, a tree of arrays [B, ...], and the sums
        of what each row adds by itself.
      together: (params, vectors, batch) -> the sums of what all rows add together.
    """

    rows: Callable[[Params, Batch, jax.Array | None], tuple[Any, Sums]]
    together: Callable[[Params, Any, Batch], Sums]

    def loss(self, params: Params, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """The loss of a whole batch, an `Objective.loss`."""
        vectors, own = self.rows(params, batch, dropout_key)
        return jax.tree.map(jnp.add, own, self.together(params, vectors, batch))


@dataclasses.dataclass(frozen=True)
class Objective:
    """The training objective of one program.

    Attributes:
      key: streams whose objectives have equal keys, and batches of equal shapes, share a program.
      parts: names of the parts of the loss, if there are several: losses of a task, or the tasks
        of a mixed batch. The sums then have shape [parts].
      loss: (params, batch, dropout key or None) -> sums of loss and score.
      count: batch -> divisor of the loss, known before it. Of one shape with `Sums.count`, which it
        equals unless the batch is mixed: then it is the number of all rows for every part, while
        the sums count the rows of each task.
      mixed: whether parts are tasks; others may follow, of losses that tasks share.
      joint: the two halves of `loss` if a row's loss depends on the others; parts of a batch then
        make their vectors alone. None if it is a sum over rows.
      weights: factors on the parts' losses; () for ones.
    """

    key: Hashable
    parts: tuple[str, ...]
    loss: Callable[[Params, Batch, jax.Array | None], Sums]
    count: Callable[[Batch], jax.Array]
    mixed: bool = False
    joint: Joint | None = None
    weights: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Facts:
    """The facts about the data that determine sizes of a model.

    Attributes:
      vocab_size: word pieces.
      answers: head -> number of answers or labels.
      feature_dim: F of the regions; 0 if there are none.
      special_ids: of a tokenizer of texts: padding, end and start of a text.
      num_tasks: that the model learns.
      novel: numbers of the classes of a detector that training has no boxes of.
      own_heads: (name, labels, rows per example) of heads for the user's own datasets, or of the
        lists of classes of tasks on pictures.
    """

    vocab_size: int
    answers: Mapping[str, int]
    feature_dim: int = 0
    own_heads: tuple[tuple[str, int, int], ...] = ()
    special_ids: tuple[int, int, int] = (0, 1, 0)
    num_tasks: int = 1
    novel: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Which parameters depend on which inputs: with other inputs they are meaningless.

    Each is a prefix of "/"-joined names; "" if no parameter does. "{head}" stands for a head.
    """

    words: str = ""
    regions: str = ""
    task_ids: str = ""
    answers: str = ""


class Embedded(NamedTuple):
    """The vectors of a batch of pictures, of texts, or of both.

    Attributes:
      sums: loss and score of the pairs of the batch; zeros without texts.
      images: unit vectors float32[B, E]; [B, 0] if there are none.
      texts: the same of the texts.
      scale: float32[B], the factor on cosines that makes scores.
    """

    sums: Sums
    images: jax.Array
    texts: jax.Array
    scale: jax.Array


class Detected(NamedTuple):
    """Detections in a batch of pictures, best first, then padding.

    Attributes:
      sums: zeros, and how many pictures there are.
      boxes: float32[B, K, 4], corners in pixels of the model's canvas.
      scores: float32[B, K].
      classes: int32[B, K], numbers in the list of classes.
      valid: bool[B, K], which of them there are.
      proposals: float32[B, R, 4], what they were chosen from; boxes of no size are padding.
    """

    sums: Sums
    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    valid: jax.Array
    proposals: jax.Array


class Written(NamedTuple):
    """The texts that a model writes for a batch; rows without an example do not count.

    Attributes:
      sums: of shape [2]: the loss of the right text with its own picture, and with another one.
      tokens: int32[B, L], the prompt, the text, its end, and padding.
      log_probability: float32[B], of the text and its end.
      finished: bool[B], whether the text ends before there is no more room.
      ranked: int32[B], the most probable of a list of texts; -1 without a list.
      blind: int32[B, L], what it writes without the picture; [B, 0] if that was not asked for.
      other: int32[B, L], what it writes with the picture of another row, in the same way.
      still: int32[B, L], what it writes about clips of their middle frame, repeated; [B, 0] of
        pictures.
    """

    sums: Sums
    tokens: jax.Array
    log_probability: jax.Array
    finished: jax.Array
    ranked: jax.Array
    blind: jax.Array
    other: jax.Array
    still: jax.Array


@dataclasses.dataclass(frozen=True)
class ExportedInput:
    """One input of an exported function: shape with letters for free sizes, dtype and meaning."""

    shape: Shape
    dtype: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Function:
    """A function to export: the scores of tasks with the same head and lengths, without dropout.

    Attributes:
      inputs: by name.
      letters: meanings of the letters in shapes.
      meaning: of the scores; by name if there are several arrays.
      columns: names of the scores' columns, if they are fixed.
      params: prefixes of the "/"-joined names of the parameters that it takes.
      scores: (params, inputs) -> float32 scores, or a dict of arrays.
      plain: the same without shortcuts, as a check.
      noise: (sizes of the letters) -> inputs drawn at random, with padding.
    """

    inputs: Mapping[str, ExportedInput]
    letters: Mapping[str, str]
    meaning: str | Mapping[str, str]
    columns: tuple[str, ...]
    params: tuple[str, ...]
    scores: Callable[[Params, Batch], Any]
    plain: Callable[[Params, Batch], Any]
    noise: Callable[[Mapping[str, int]], dict[str, np.ndarray]]


# Of each function its name, the tasks that it serves with their numbers, and the function.
Exports = tuple[tuple[str, Mapping[str, int], Function], ...]


@dataclasses.dataclass(frozen=True)
class System(abc.ABC):
    """A model with its config.

    Attributes:
      config: a frozen dataclass, written to JSON as it is.
    """

    config: Any

    name: ClassVar[str]
    version: ClassVar[int]
    config_type: ClassVar[type]
    # Fields of the config that may be 0, to come from the data; others that may be 0, or negative.
    data_decides: ClassVar[tuple[str, ...]] = ()
    may_be_zero: ClassVar[tuple[str, ...]] = ()
    may_be_negative: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[Inputs] = Inputs()
    # Whether batches are of pictures (`tasks/image_task.py`), and group -> kind of its tasks then.
    pixels: ClassVar[bool] = False
    # Whether batches of regions also hold pictures, so that datasets are built with these.
    reads_pictures: ClassVar[bool] = False
    image_kinds: ClassVar[Mapping[str, kinds.Name]] = {}
    # Whether the rows of a batch may be of several tasks.
    mixes: ClassVar[bool] = False
    # Parameters of a source that a model may leave unused, as prefixes of "/"-joined names.
    optional: ClassVar[tuple[str, ...]] = ()

    # From settings.

    @classmethod
    @abc.abstractmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """The system of a config given as nested dicts; lists may stand for tuples.

        Raises:
          ValueError: unknown or missing fields, or inconsistent sizes.
        """

    @classmethod
    @abc.abstractmethod
    def resolve(cls, fields: Mapping[str, Any], facts: Facts) -> Self:
        """The same, with sizes from the data where the fields are 0.

        Raises:
          ConfigError: a size in the fields does not fit the data.
        """

    @classmethod
    def misfits(
        cls, fields: Mapping[str, Any], tasks: Mapping[str, tuple[AnyTask, Any]]
    ) -> list[str]:
        """The incompatible settings, each as "SETTING: problem".

        Args:
          fields: of the config.
          tasks: key in `config.task` -> the task and its `TaskOptions`.
        """
        return []

    @classmethod
    def official(
        cls, optimizer: OptimizerOptions, *, num_rounds: int, pretrains: bool
    ) -> OfficialOptions | None:
        """What its released scripts do otherwise than the paper says; None if it follows none.

        Args:
          optimizer: of the run.
          num_rounds: of the run.
          pretrains: whether it pretrains on captions, for which there is a script of its own.

        Raises:
          ValueError: there are none with this optimizer.
        """
        return None

    # Parameters.

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Params:
        """Random parameters: a nested dict of arrays, in the running layout."""

    @abc.abstractmethod
    def abstract(self) -> Params:
        """Shapes and logical axis names of all parameters (`nn.LogicallyPartitioned`), cached."""

    @property
    def num_parameters(self) -> int:
        """Total size of the parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(self.abstract())))

    @property
    def frozen(self) -> tuple[str, ...]:
        """Patterns (`re.fullmatch`) of "/"-joined names that are never trained."""
        return ()

    @abc.abstractmethod
    def groups(
        self, options: OptimizerOptions, official: OfficialOptions
    ) -> tuple[ParamGroup, ...]:
        """Rates and decay by parameter."""

    def derived(self, params: Params, sentences: jax.Array) -> Mapping[str, jax.Array]:
        """Parameters, by name, that follow from others and from the names of classes.

        They are computed as training begins.

        Args:
          params: of the model.
          sentences: int32[C, T, L], tokens of those that name each class.
        """
        return {}

    # Layouts: all models on disk are unrolled.

    @property
    def scanned(self) -> bool:
        """Whether repeated layers are stacked."""
        return False

    def with_layout(self, scanned: bool) -> Self:
        """The same model in a layout."""
        if scanned:
            raise ValueError(f"{self.name} has no scanned layout")
        return self

    def stack(self, params: Params) -> Params:
        """Parameters (or a tree like them) of the unrolled layout in the scanned one."""
        raise ValueError(f"{self.name} has no scanned layout")

    def unstack(self, params: Params) -> Params:
        """The inverse of `stack`."""
        raise ValueError(f"{self.name} has no scanned layout")

    def for_inference(self) -> Self:
        """The system without its training-only parts; unrolled."""
        return self.with_layout(False)

    # Computation.

    @abc.abstractmethod
    def objective(self, tasks: Sequence[AnyTask]) -> Objective:
        """The objective of a stream: of one task, or a mixed one of several.

        Raises:
          ValueError: these tasks cannot share a batch.
        """

    def judge(self, task: AnyTask) -> Callable[[Params, Batch], tuple[Sums, Candidates]]:
        """(params, batch) -> loss and score, and the candidates for every row's prediction.

        Raises:
          ValueError: its predictions are texts.
        """
        raise ValueError(f"{self.name} does not choose among candidates")

    def writer(
        self, task: AnyTask, candidates: np.ndarray | None, *, thorough: bool
    ) -> Callable[[Params, Batch], Written]:
        """(params, batch) -> texts, for tasks whose kind is `generated`.

        Args:
          task: of the batches.
          candidates: int32[C, T], texts to rank, each with its end; None ranks none.
          thorough: as for final scores; validation writes faster, and only what it needs.

        Raises:
          ValueError: the system writes no texts.
        """
        raise ValueError(f"{self.name} writes no texts")

    def embed(self, params: Params, batch: Batch) -> Embedded:
        """Vectors of the "images" and of the "tokens" of a batch, for tasks that are `embedded`.

        Raises:
          ValueError: the system makes none.
        """
        raise ValueError(f"{self.name} makes no vectors of pictures and texts")

    def detect(self, params: Params, batch: Batch) -> Detected:
        """What is where in the "images" of a batch, for tasks that are `detected`.

        Raises:
          ValueError: the system finds no boxes.
        """
        raise ValueError(f"{self.name} finds no boxes")

    def prompt(self, task: ImageTask) -> str:
        """The words before every text of a task, and before its question.

        Raises:
          ValueError: the system writes no texts.
        """
        raise ValueError(f"{self.name} writes no texts")

    def validation_key(self, task: AnyTask) -> Hashable:
        """Tasks with equal keys, and batches of equal shapes, share the program of validations."""
        return self.objective((task,)).key

    def pair_scores(self, task: Task) -> Callable[[Params, Batch, Batch, jax.Array], jax.Array]:
        """(params, C queries, I items, task id) -> float32[C, I], for tasks whose kind is `ranked`.

        Raises:
          ValueError: the system has no such tasks.
        """
        raise ValueError(f"{self.name} does not rank")

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures that it takes, if it does.

        Raises:
          ValueError: it does not.
        """
        raise ValueError(f"{self.name} takes no pictures")

    @property
    def frames(self) -> int:
        """Frames of the clips that it takes; 0 if it takes pictures."""
        return 0

    @property
    def pixel_range(self) -> tuple[float, float]:
        """Values of black and white in the pictures that it takes."""
        return -1.0, 1.0

    @property
    def token_encoder(self) -> Any:
        """The config of the frozen encoder, whose parameters are below "encoder/".

        Its batches may hold "image_tokens" [B, K, W] of that encoder instead of images. None for a
        system without one.
        """
        return None

    @abc.abstractmethod
    def sizes(self, task: AnyTask) -> dict[str, Any]:
        """The model's sizes for a task's batches: arguments of `data.streams.open_stream`."""

    def functions(self, tasks: Sequence[AnyTask]) -> Exports:
        """The functions to export for tasks; a name is that of a file.

        Raises:
          ValueError: the system has nothing to export.
        """
        raise ValueError(f"{self.name} has no functions to export")

    # On disk.

    def to_json(self) -> str:
        """The text that `systems.from_json` reads."""
        raw = {"system": self.name, "version": self.version, **dataclasses.asdict(self.config)}
        return json.dumps(raw, indent=2, sort_keys=True)

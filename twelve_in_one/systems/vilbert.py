"""12-in-1: the two-stream model, the losses of its tasks, and its inputs from a batch.

Letters as in `tasks/task.py` and `models/two_stream/config.py`; k trunk rows per example.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.config.settings import ConfigError, OfficialOptions, OptimizerOptions
from twelve_in_one.models.two_stream import trunk
from twelve_in_one.models.two_stream.config import ALL_HEADS, SYSTEM, TwoStreamConfig, from_dict
from twelve_in_one.models.two_stream.encoder import stack_layers, unstack_layers
from twelve_in_one.models.two_stream.grid import PICTURE_KEYS
from twelve_in_one.optim import param_groups
from twelve_in_one.optim.param_groups import ParamGroup
from twelve_in_one.parallel.sharding import constrain
from twelve_in_one.systems.base import (
    Batch,
    ExportedInput,
    Exports,
    Facts,
    Function,
    Inputs,
    Objective,
    Params,
    System,
)
from twelve_in_one.tasks.kinds import KINDS, Candidates
from twelve_in_one.tasks.losses import Sums
from twelve_in_one.tasks.task import Task, task_count, task_loss

CAPTION_KEYS = ("tokens", "token_mask")
IMAGE_KEYS = ("regions", "boxes", "region_mask")
TRUNK_KEYS = (*CAPTION_KEYS, *IMAGE_KEYS)  # of a batch without pictures

# The released script of the tasks has 20 "epochs" of 10,112 rounds, and resets the controllers
# after the sixth and the eighth.
_OFFICIAL_EPOCHS, _OFFICIAL_RESETS = 20, (6, 8)

_LETTERS = {
    "b": "examples",
    "2*b": "rows: left and right image of each pair in turn, both with the sentence",
    "m": "captions",
    "n": "images",
}
_COLUMNS = {
    "image_pair": ("false", "true"),
    "three_way": ("contradiction", "neutral", "entailment"),
    "alignment": ("aligned", "swapped"),
}


def trunk_inputs(task: Task, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The batch as rows of the trunk: [B, k, ...] unfolded to [B * k, ...], and the task id."""
    pictures = [key for key in PICTURE_KEYS if key in batch]
    inputs = {key: batch[key] for key in (*TRUNK_KEYS, *pictures)}
    if task.rows_per_example > 1:
        # Features of no width leave a -1 undetermined.
        inputs = {k: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]) for k, x in inputs.items()}
    return inputs | {"task_id": batch["task_id"]}


@dataclasses.dataclass(frozen=True)
class Vilbert(System):
    """12-in-1's model with its config."""

    config: TwoStreamConfig

    name = SYSTEM
    version = 1
    config_type = TwoStreamConfig
    data_decides = ("vocab_size", "num_vqa_answers", "num_gqa_answers", "region_feature_dim")
    may_be_zero = ("position_offset", "num_tasks", "num_frozen_layers")
    may_be_negative = ("answer_bias",)
    inputs = Inputs(
        words="trunk/text_embedding/word/embedding",
        regions="trunk/visual_embedding/",
        task_ids="trunk/text_embedding/task/",
        answers="heads/{head}/",
    )
    optional = ("heads/",)
    image_keys: ClassVar[tuple[str, ...]] = IMAGE_KEYS

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        return cls(from_dict(fields))

    @classmethod
    def resolve(cls, fields: Mapping[str, Any], facts: Facts) -> Self:
        found = {
            "vocab_size": facts.vocab_size,
            "num_vqa_answers": facts.answers.get("vqa", 0),
            "num_gqa_answers": facts.answers.get("gqa", 0),
            "region_feature_dim": facts.feature_dim,
        }
        errors = []
        resolved = {**fields, "own_heads": facts.own_heads}
        for name, size in found.items():
            given = fields[name]
            resolved[name] = given or max(size, 1)
            exact = name == "region_feature_dim"
            if given and size and (given < size or (exact and given != size)):
                errors.append(
                    f"model.{name} is {given}, the data has {size}; 0 takes that of the data"
                )
        if errors:
            raise ConfigError(errors)
        return cls.from_fields(resolved)

    @classmethod
    def misfits(cls, fields: Mapping[str, Any], tasks: Mapping[str, tuple[Task, Any]]) -> list[str]:
        errors = []
        positions, rows = fields["max_positions"] - fields["position_offset"], fields["num_tasks"]
        for key, (task, options) in tasks.items():
            if options.max_tokens > positions:
                errors.append(
                    f"task.{key}.max_tokens: {options.max_tokens}, the model has {positions}"
                )
            for head in task.heads:
                if head in ALL_HEADS and head not in fields["heads"]:
                    errors.append(f"model.heads: lacks {head!r}, which {task.name} reads")
            token = options.task_token
            if token and 0 < rows <= token:
                errors.append(f"task.{key}.task_token: {token}, model.num_tasks has {rows} rows")
            if not token and 0 < rows <= task.task_id:
                errors.append(f"model.num_tasks: {rows} rows, {task.name} is number {task.task_id}")
        return errors

    @classmethod
    def official(
        cls, optimizer: OptimizerOptions, *, num_rounds: int, pretrains: bool
    ) -> OfficialOptions:
        if optimizer.name not in ("adamw", "radam"):
            raise ValueError(
                f"the released code trains with adamw or radam, and optimizer.name is "
                f"{optimizer.name!r}"
            )
        adamw, epoch = optimizer.name == "adamw", num_rounds / _OFFICIAL_EPOCHS
        # Two leftovers of its step decay reset the controllers of the tasks.
        resets = [int(epochs * epoch) - 1 for epochs in _OFFICIAL_RESETS if epoch >= 1]
        return OfficialOptions(
            all=True,
            schedule=True,
            epoch_rounds=int(epoch) if optimizer.schedule == "step" and not pretrains else 0,
            no_bias_correction=adamw and not pretrains,
            decay_after_update=adamw,
            uncorrected_eps=adamw and pretrains,
            shared_step_size=not adamw,
            decayed_norms=True,
            unreached="skip_until_touched" if adamw else "step",
            resets=() if pretrains else tuple(resets),
            overlap=pretrains,
            validation=pretrains,
        )

    def init(self, key: jax.Array) -> Params:
        return trunk.init_params(self.config, key)

    def abstract(self) -> Params:
        return trunk.abstract_params(self.config)

    def groups(
        self, options: OptimizerOptions, official: OfficialOptions
    ) -> tuple[ParamGroup, ...]:
        return param_groups.two_stream(
            head_learning_rate=options.head_learning_rate,
            weight_decay=options.weight_decay,
            official_decayed_norms=official.decayed_norms,
            extra=[ParamGroup(*group) for group in options.groups],
        )

    @property
    def scanned(self) -> bool:
        return self.config.scan_layers

    def with_layout(self, scanned: bool) -> Self:
        return dataclasses.replace(
            self, config=dataclasses.replace(self.config, scan_layers=scanned)
        )

    def stack(self, params: Params) -> Params:
        return stack_layers(self.config, params)

    def unstack(self, params: Params) -> Params:
        return unstack_layers(self.config, params)

    def for_inference(self) -> Self:
        config = dataclasses.replace(self.config, scan_layers=False, remat="none")
        return dataclasses.replace(self, config=config)

    def objective(self, tasks: Sequence[Task]) -> Objective:
        if len(tasks) > 1:
            names = ", ".join(task.name for task in tasks)
            raise ValueError(f"{names}: tasks of {self.name} differ in shape and cannot be mixed")
        (task,) = tasks

        def loss(params: Params, batch: Batch, dropout_key: jax.Array | None) -> Sums:
            return task_loss(task, self._apply(task, params, batch, dropout_key), batch)

        return Objective(
            key=(self, task.head, task.kind, task.rows_per_example),
            parts=KINDS[task.kind].heads,
            loss=loss,
            count=functools.partial(task_count, task),
        )

    def _apply(
        self, task: Task, params: Params, batch: Batch, dropout_key: jax.Array | None
    ) -> dict[str, jax.Array]:
        """The outputs of the task's heads only."""
        out, _ = trunk.TwoStreamModel(self.config).apply(
            {"params": params},
            **trunk_inputs(task, batch),
            heads=task.heads,
            dropout_key=dropout_key,
        )
        return out

    def judge(self, task: Task) -> Callable[[Params, Batch], tuple[Sums, Candidates]]:
        def judge(params: Params, batch: Batch) -> tuple[Sums, Candidates]:
            out = self._apply(task, params, batch, None)
            out = {head: scores.astype(jnp.float32) for head, scores in out.items()}
            candidates = KINDS[task.kind].candidates(task, out[task.head], batch)
            return task_loss(task, out, batch), candidates

        return judge

    def pair_scores(self, task: Task) -> Callable[[Params, Batch, Batch, jax.Array], jax.Array]:
        """Scores captions, rows of `CAPTION_KEYS`, with images, rows of `image_keys`.

        Layers before the first connection run once per caption and once per image.
        """
        model = trunk.TwoStreamModel(self.config)

        def pair_scores(
            params: Params, captions: Batch, images: Batch, task_id: jax.Array
        ) -> jax.Array:
            out, _ = model.apply(
                {"params": params},
                **captions,
                **images,
                task_id=task_id,
                heads=(task.head,),
                all_pairs=True,
            )
            # [C * I] -> [C, I], captions the slow axis
            scores = out[task.head].reshape(len(captions["tokens"]), -1).astype(jnp.float32)
            return constrain(scores, None, None)

        return pair_scores

    def sizes(self, task: Task) -> dict[str, Any]:
        return {
            "feature_dim": self.config.region_feature_dim,
            "num_labels": self.config.num_answers.get(task.head),
            "pretraining_options": {
                "num_classes": self.config.num_region_classes,
                "visual_target": self.config.visual_target,
            },
        }

    def functions(self, tasks: Sequence[Task]) -> Exports:
        """One for each head and input length, called after its first task."""
        groups: dict[tuple[Any, ...], list[Task]] = {}
        for task in tasks:
            key = (task.head, task.kind, task.rows_per_example, task.max_tokens, task.max_regions)
            groups.setdefault(key, []).append(task)
        return tuple(
            (group[0].name, {task.name: task.task_id for task in group}, self._function(group[0]))
            for group in groups.values()
        )

    def _function(self, task: Task) -> Function:
        kind, model = KINDS[task.kind], trunk.TwoStreamModel(self.config)
        inputs = self._exported_inputs(task)
        used = {size for item in inputs.values() for size in item.shape}
        used |= set() if kind.ranked else {"b"}  # rows of the scores
        own_labels = task.head not in ALL_HEADS
        encoder = ("encoder/",) if self.reads_pictures else ()

        def apply(params: Params, inputs: Batch, **options: Any) -> jax.Array:
            inputs = self._completed(inputs)
            out, _ = model.apply({"params": params}, **inputs, heads=(task.head,), **options)
            return out[task.head].astype(jnp.float32)

        def scores(params: Params, inputs: Batch) -> jax.Array:
            if not kind.ranked:
                return apply(params, inputs)
            # [m * n] -> [m, n]
            shape = inputs["tokens"].shape[0], inputs["boxes"].shape[0]
            return apply(params, inputs, all_pairs=True).reshape(shape)

        def plain(params: Params, inputs: Batch) -> jax.Array:
            if not kind.ranked:
                return apply(params, inputs)
            m, n = len(inputs["tokens"]), len(inputs["boxes"])
            captions, images = np.divmod(np.arange(m * n), n)
            rows = {name: inputs[name][captions] for name in CAPTION_KEYS}
            rows |= {name: inputs[name][images] for name in self.image_keys if name in inputs}
            rest = {name: x for name, x in inputs.items() if name not in rows}
            return apply(params, rows | rest).reshape(m, n)

        return Function(
            inputs=inputs,
            letters={letter: text for letter, text in _LETTERS.items() if letter in used},
            meaning=KINDS["answer" if own_labels else task.kind].meaning.format(head=task.head),
            columns=_COLUMNS.get(task.head, ()),
            params=("trunk/", f"heads/{task.head}/", *encoder),
            scores=scores,
            plain=plain,
            noise=functools.partial(self._noise, task, inputs),
        )

    def _completed(self, inputs: Batch) -> Batch:
        """The model's inputs from those of an exported function."""
        return inputs

    def _exported_inputs(self, task: Task) -> dict[str, ExportedInput]:
        texts = images = "b" if task.rows_per_example == 1 else f"{task.rows_per_example}*b"
        if KINDS[task.kind].ranked:
            texts, images = "m", "n"
        found = {
            "tokens": ExportedInput(
                (texts, task.max_tokens),
                "int32",
                "word pieces of vocab.txt: [CLS] text [SEP], then padding",
            ),
            "token_mask": ExportedInput((texts, task.max_tokens), "bool", "true where no padding"),
            "regions": ExportedInput(
                (images, task.max_regions, self.config.region_feature_dim),
                "float32",
                "features; region 0 is the mean of the image's regions",
            ),
            "boxes": ExportedInput(
                (images, task.max_regions, 5),
                "float32",
                "x1/W, y1/H, x2/W, y2/H, share of the image's area; of region 0: 0, 0, 1, 1, 1",
            ),
            "region_mask": ExportedInput(
                (images, task.max_regions), "bool", "true where no padding"
            ),
        }
        if self.config.num_tasks:
            found["task_id"] = ExportedInput((), "int32", "the number in task_ids")
        return found

    def _noise(
        self, task: Task, inputs: Mapping[str, ExportedInput], sizes: Mapping[str, int]
    ) -> dict[str, np.ndarray]:
        """Inputs drawn at random, with padding in every other row."""
        rng, found = np.random.default_rng(0), {}
        for name, item in inputs.items():
            shape = tuple(sizes[x] if isinstance(x, str) else x for x in item.shape)
            if name == "task_id":
                values = np.asarray(task.task_id)
            elif name == "tokens":
                values = rng.integers(0, self.config.vocab_size, shape)
            elif name == "picture_size":
                values = rng.integers(1, self.config.grid.side + 1, shape)
            elif item.dtype == "bool":
                values = np.ones(shape, bool)
                values[::2, 1 + shape[1] // 2 :] = False
            else:
                values = rng.normal(size=shape)
            found[name] = values.astype(item.dtype)
        return found

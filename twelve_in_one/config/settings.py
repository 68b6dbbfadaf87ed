"""The settings of a run as frozen dataclasses. Configs are checked into these, see `check.py`.

Sizes count examples, rounds and batches; a round visits every active task once (the paper's
iteration).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from twelve_in_one.config.fields import at_least, one_of, path, share
from twelve_in_one.config.image_settings import (
    ImageOptions,
    ImageTaskOptions,
    MixtureOptions,
    TextOptions,
)


class ConfigError(ValueError):
    """All mistakes in a config."""

    def __init__(self, errors: Sequence[str]):
        super().__init__(
            f"{len(errors)} error{'s' * (len(errors) > 1)} in the config:\n"
            + "\n".join(f"  {error}" for error in errors)
        )
        self.errors = tuple(errors)


def task_key(name: str) -> str:
    """A task's name as written in `config.task`: flags do not allow "+"."""
    return name.replace("+", "_plus")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Sources of the examples.

    Attributes:
      dir: built datasets, from `data.build`.
      raw_dir: official files that `dir` was built from, or is built from if `world_images` is set;
        the source of pictures of examples in the report. "" if there are none.
      regions: name of the region features.
      clean: leave out other datasets' test images (paper section 3.2).
      world_images: size of the generated world to make if `dir` does not exist, or 0.
      world_seed: its seed.
      world_more_captions: its additional captioned pictures, for pretraining.
      world_class_pictures: its pictures of each class, for systems of pictures; 0 makes none.
      world_covers: its book covers, which have questions about their text; 0 makes none.
      world_clips: its short videos, with questions about what happens; 0 makes none.
      world_cover_side: of a cover, in pixels.
      world_cover_words: different words at each place of titles and names.
      world_detection: pictures of things with names and boxes to make in `raw_dir`, see
        `world/detection.py`; 0 makes none.
      world_pictures: folder of named pictures to make them of; "" takes the world's shapes.
      world_other_pictures: the same names in the style of the tests; "" for the same pictures.
      own_dir: folder to build the user's own datasets in; "" takes `data` in the workdir. Runs
        that share it must read the same files with the same settings.
      vocab: WordPiece vocabulary, one token per line, for runs with the user's own datasets; ""
        takes that of `init_from`, else that of `dir` with the words of the dataset added, else
        one made from its training texts.
      samples_dir: samples of real records to build `dir` from if it does not exist, see
        `data.real_samples`; "" builds nothing.
      held_out_dir: files of the same kinds for the test splits; "" if there are none.
      feature_dtype: of regions on their way to the device; "float16" halves the transfer.
      cache_megabytes: memory for decoded records, per task.
      prefetch: batches to prepare ahead, per task.
    """

    dir: str = path()
    raw_dir: str = path()
    regions: str
    clean: bool
    samples_dir: str = path()
    held_out_dir: str = path()
    world_images: int = at_least(0)
    world_seed: int = at_least(0)
    feature_dtype: str = one_of("float32", "float16")
    cache_megabytes: int = at_least(1)
    prefetch: int = at_least(1)
    world_more_captions: int = at_least(0, 0)
    world_class_pictures: int = at_least(0, 0)
    world_covers: int = at_least(0, 0)
    world_clips: int = at_least(0, 0)
    world_cover_side: int = at_least(1, 64)
    world_cover_words: int = at_least(1, 16)
    world_detection: int = at_least(0, 0)
    world_pictures: str = path("")
    world_other_pictures: str = path("")
    own_dir: str = ""
    vocab: str = ""


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """One task of a run.

    Attributes:
      max_tokens: T with [CLS] and [SEP].
      max_regions: R with the global region.
      num_choices: M for tasks that choose among annotated boxes, else 0.
      detected_slots: slots before the annotated boxes of such tasks.
      batch_size: B examples per update, over all devices.
      learning_rate: the paper's rate; only ratios matter, see `loss_scale`.
      loss_scale: factor on the loss; 0 takes the task's learning rate over the smallest one of the
        run, as the released code does.
      accumulate: parts to cut a batch into; their gradients are summed before the update.
      train_split: for training.
      val_split: watched by stop-and-go.
      test_splits: scored at the end; splits that were not built are left out and reported.
      candidates: boxes that region tasks choose from, "detected" or "annotated".
      max_train_examples: approximate number to use, in whole records; 0 uses all.
      task_token: row of the task-token table; 0 takes the task's own number. Tasks may share one,
        as tasks with one head do in the paper's ablation. Random draws also depend on it.
    """

    max_tokens: int = at_least(3)
    max_regions: int = at_least(1)
    num_choices: int = at_least(0)
    detected_slots: int = at_least(0)
    batch_size: int = at_least(1)
    learning_rate: float = at_least(0.0)
    loss_scale: float = at_least(0.0)
    accumulate: int = at_least(1)
    train_split: str = ""
    val_split: str = ""
    test_splits: tuple[str, ...] = ()
    candidates: str = dataclasses.field(
        default="detected", metadata={"choices": ("detected", "annotated")}
    )
    max_train_examples: int = at_least(0, 0)
    task_token: int = at_least(0, 0)

    learns: ClassVar[bool] = True  # as tasks on pictures may not


@dataclasses.dataclass(frozen=True)
class OwnTaskOptions(TaskOptions):
    """A task on the user's own dataset; see `data.annotations.jsonl` for its records.

    Attributes:
      like: most similar one of the twelve: "vqa", "vgqa" or "gqa" questions and answers, "coco" or
        "flickr30k" captions, "refcoco", "refcoco+" or "refcocog" expressions and boxes, "snli_ve"
        statements about a picture, "nlvr2" statements about two.
      jsonl: file of records, one JSON object per line, as are `val_jsonl` and `test_jsonl`.
      hf: instead of files, a dataset of the Hugging Face library: a folder written by
        `save_to_disk`, or a name on the hub, with ":SPLIT" to take only one split.
      images: folder of the records' pictures.
      collection: "coco", "visual_genome" or "flickr30k" if the pictures are from these, so that the
        clean split recognises them; "" for others.
      title: display name; "" takes the task's.
      answers: of questions: a file of answers, .json or .txt; "vqa" or "gqa" takes the answers and
        the head of these tasks; "" makes a list of the training answers, for its own head.
      min_answer_count: training questions that an answer needs to enter that list.
      labels: of statements, in order, for its own head; () takes those and the head of `like`.
      box_format: "xyxy" (x1, y1, x2, y2) or "xywh" (x, y, width, height), in pixels.
      val_share: of the images, if neither files nor records define the validation split.
      test_share: of the images, in the same way for the test split.
      features: of regions: "pixels", "photos", "none", or a store as for `data.build --features`;
        "" takes those of the run's other tasks or of `init_from`, and "photos" without these.
      max_skipped_share: of unusable records before giving up.
    """

    like: str = ""
    jsonl: str = ""
    val_jsonl: str = ""
    test_jsonl: str = ""
    hf: str = ""
    images: str = ""
    collection: str = dataclasses.field(
        default="", metadata={"choices": ("", "coco", "visual_genome", "flickr30k")}
    )
    title: str = ""
    answers: str = ""
    min_answer_count: int = at_least(1, 1)
    labels: tuple[str, ...] = ()
    box_format: str = dataclasses.field(default="xyxy", metadata={"choices": ("xyxy", "xywh")})
    val_share: float = share(0.1)
    test_share: float = share(0.1)
    features: str = ""
    max_skipped_share: float = share(0.05)


@dataclasses.dataclass(frozen=True)
class ScheduleOptions:
    """Schedule of the tasks: the fields of `plan.Schedule` and `stop_and_go.Controller`."""

    kind: str = one_of(
        "stop_and_go",
        "round_robin",
        "proportional",
        "temperature",
        "curriculum",
        "anti_curriculum",
    )
    num_rounds: int = at_least(1)
    gap: int = at_least(0)
    validate_epochs: float = at_least(0.0)
    min_validation_rounds: int = at_least(1)
    max_validation_rounds: int = at_least(0)
    temperature: float = at_least(0.0)
    order: tuple[str, ...] = ()
    curriculum_share: float = at_least(0.0, 0.5)
    patience: int = at_least(0, 1)
    threshold: float = at_least(0.0, 0.001)
    continue_threshold: float = at_least(0.0, 0.005)
    cooldown: int = at_least(0, 1)


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """How gradients become updates; see `optim` and `schedules`.

    Attributes:
      name: "adamw", "radam", "adafactor" (big_vision's; its decay follows the schedule but not the
        base rate), "sgd" (its decay is added to gradients) or "nesterov" (SGD with a look ahead).
        Of the numbers below, the last three take only `b1`, as momentum.
      update: "in_turn", one update per task (the paper), or "fused", one per round from the sum of
        its tasks' gradients, for meshes that a batch of one task cannot fill.
      learning_rate: base rate.
      schedule: "linear", "cosine", "step" or "constant", over rounds.
      warmup_share: share of the rounds in which the rate rises from 0.
      step_rounds: rounds where "step" multiplies the rate.
      step_factor: that it multiplies by.
      head_learning_rate: multiplier of the heads whose released names start with "vil_".
      groups: (pattern, learning rate multiplier, weight decay), placed before the default groups.
      frozen: patterns of "/"-joined names of parameters not to train, besides those that the
        system never trains: no gradients, no moments, and no part in the norm; stored once.
      frozen_dtype: how these are stored, on devices and on disk; "bfloat16" takes half the memory
        and rounds them to eight bits.
      clip_norm: global norm to clip gradients to; 0 disables clipping.
      on_nonfinite: "raise", or "skip" the update and count it.
    """

    name: str = one_of("adamw", "radam", "adafactor", "sgd", "nesterov")
    update: str = one_of("in_turn", "fused")
    learning_rate: float = at_least(0.0)
    schedule: str = one_of("linear", "cosine", "step", "constant")
    warmup_share: float = at_least(0.0)
    step_rounds: tuple[int, ...] = ()
    step_factor: float = at_least(0.0, 0.2)
    b1: float = at_least(0.0, 0.9)
    b2: float = at_least(0.0, 0.999)
    eps: float = at_least(0.0, 1e-6)
    weight_decay: float = at_least(0.0, 0.01)
    head_learning_rate: float = at_least(0.0, 1.0)
    groups: tuple[Any, ...] = ()
    frozen: tuple[str, ...] = ()
    frozen_dtype: str = one_of("float32", "bfloat16", default="float32")
    clip_norm: float = at_least(0.0, 0.0)
    on_nonfinite: str = dataclasses.field(default="raise", metadata={"choices": ("raise", "skip")})


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """Scoring of the model.

    Attributes:
      max_validation_examples: per task, for each validation of stop-and-go; 0 takes all.
      max_test_examples: per task, at the end; 0 takes all.
      batch_size: B; 0 takes each task's own.
      retrieval_captions: captions per block of the score matrix.
      retrieval_images: images per block.
      text_baselines: also score chance, majority and words on the test splits, for the table.
      pictures: examples per task that the report draws.
      keep_trained_on: also score records that the model was trained on, otherwise left out.
    """

    max_validation_examples: int = at_least(0)
    max_test_examples: int = at_least(0)
    batch_size: int = at_least(0)
    retrieval_captions: int = at_least(1)
    retrieval_images: int = at_least(1)
    text_baselines: bool = False
    pictures: int = at_least(0, 0)
    keep_trained_on: bool = False


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """Checkpoints to keep: the newest, the best by mean validation score, and one at intervals.

    Attributes:
      every_rounds: rounds between saves.
      keep_latest: number of newest ones.
      keep_best: number of best ones.
      keep_every_rounds: also keep rounds that are a multiple of this; 0 for none.
    """

    every_rounds: int = at_least(1)
    keep_latest: int = at_least(1)
    keep_best: int = at_least(0)
    keep_every_rounds: int = at_least(0)


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Initial weights, if the workdir holds no checkpoint.

    Attributes:
      path: a model folder, a converted checkpoint or a workdir; "" starts from random weights.
      include: parameters to take, patterns on "/"-joined names.
      exclude: of these, not to take.
      allow_missing: parameters that the source may lack, or have in another shape.
    """

    path: str = path("")
    include: tuple[str, ...] = (".*",)
    exclude: tuple[str, ...] = ()
    allow_missing: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PretrainingOptions:
    """Inputs and targets of pretraining on captions; see `data/encode/pretraining.py`.

    `model.visual_target` is the target of a masked region.

    Attributes:
      objective: 0 all losses on all pairs; 1 no masked losses on swapped pairs (12-in-1); 2 no
        swapped pairs, and no alignment loss.
      overlap_iou: regions that overlap a masked one by more than this are also hidden (12-in-1); 1
        hides none, as in ViLBERT.
      region_weight: factor on the loss of masked regions.
      num_negatives: per region, for `model.visual_target` 2.
    """

    objective: int = dataclasses.field(default=1, metadata={"choices": (0, 1, 2)})
    overlap_iou: float = at_least(0.0, 0.4)
    region_weight: float = at_least(0.0, 1.0)
    num_negatives: int = at_least(1, 128)


@dataclasses.dataclass(frozen=True)
class LogOptions:
    """Output during training, see `metrics_writer` and `profiling`.

    Attributes:
      every_rounds: rounds between log lines.
      tensorboard: also write TensorBoard events.
      wandb_project: also log to Weights & Biases; "" does not.
      profile_start: first round of a profile.
      profile_rounds: its number of rounds; 0 makes none.
    """

    every_rounds: int = at_least(1)
    tensorboard: bool = True
    wandb_project: str = ""
    profile_start: int = at_least(0, 0)
    profile_rounds: int = at_least(0, 0)


@dataclasses.dataclass(frozen=True)
class ParallelOptions:
    """Placement of parameters and batches.

    Attributes:
      layout: "dp", "fsdp", "fsdp_tp" or "hsdp", see `sharding`.
      model: devices along the `model` axis.
      slices: groups of devices with a slow network between them; 0 takes those of TPUs, which know
        theirs, and one group of all other devices.
      devices: number of devices to use, the first ones, in a run of one process; 0 uses all.
      transfer_guard: refuse implicit transfers between host and device in the training loop
        ("disallow"), or not ("allow").
    """

    layout: str = one_of("dp", "fsdp", "fsdp_tp", "hsdp")
    model: int = at_least(1)
    devices: int = at_least(0, 0)
    slices: int = at_least(0, 0)
    transfer_guard: str = dataclasses.field(
        default="disallow", metadata={"choices": ("disallow", "allow")}
    )


@dataclasses.dataclass(frozen=True)
class OfficialOptions:
    """Deviations of the released code of 12-in-1 from the paper, each with its own switch.

    In a config, None leaves a switch to `all`; a checked config holds no None.

    Attributes:
      all: take over all that the released scripts do in such a run, as `twelve:official` and
        `pretrain_cc:official` do; switches that are given override it.
      schedule: updates after the first of a round have the rate of the next round. In
        pretraining, every update has the rate of the next.
      epoch_rounds: of schedule "step": rounds per epoch, at the ends of which its two schedulers
        overwrite each other; 0 disables this.
      no_bias_correction: of AdamW's moments.
      decay_after_update: decay the updated weights.
      uncorrected_eps: epsilon is added before the second moment is corrected.
      shared_step_size: RAdam uses the first group's step size for all groups.
      decayed_norms: also decay the norms that its rule misses.
      unreached: treatment of parameters that a task's gradient does not reach, see
        `optim/official.py`.
      resets: rounds after whose validations all controllers are reset.
      overlap: regions that overlap a masked one stay visible, and only count in the divisor of the
        image's mean feature.
      validation: pretraining with objective 1 validates with the masked losses of swapped pairs.
    """

    all: bool = False
    schedule: bool = False
    epoch_rounds: int = at_least(0, 0)
    no_bias_correction: bool = False
    decay_after_update: bool = False
    uncorrected_eps: bool = False
    shared_step_size: bool = False
    decayed_norms: bool = False
    unreached: str = dataclasses.field(
        default="step", metadata={"choices": ("step", "skip", "skip_until_touched")}
    )
    resets: tuple[int, ...] = ()
    overlap: bool = False
    validation: bool = False


@dataclasses.dataclass(frozen=True)
class SystemOptions:
    """The system to train.

    Attributes:
      name: one of `systems.SYSTEMS`.
      official: where it follows the released code rather than the paper.
    """

    name: str = "vilbert"
    official: OfficialOptions = OfficialOptions()


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Attributes:
      seed: of parameters, order, negatives and dropout.
      tasks: names of the tasks, in the order of a round.
      task: options of each.
      model: fields of the system's config; those that depend on the data may be 0 (for `vilbert`
        vocab_size, num_vqa_answers, num_gqa_answers and region_feature_dim).
      compilation_cache: folder for compiled programs, so that a restart need not compile; "" keeps
        none, "auto" takes the user's cache folder.
      data: see `DataOptions`; each other section has its own class, too.
    """

    seed: int = at_least(0)
    tasks: tuple[str, ...]
    task: dict[str, TaskOptions | ImageTaskOptions]
    model: dict[str, Any]
    compilation_cache: str = path()
    data: DataOptions
    schedule: ScheduleOptions
    optimizer: OptimizerOptions
    evaluation: EvaluationOptions
    checkpoint: CheckpointOptions
    init_from: InitFrom
    log: LogOptions
    parallel: ParallelOptions
    pretraining: PretrainingOptions = PretrainingOptions()
    system: SystemOptions = SystemOptions()
    mixture: MixtureOptions = MixtureOptions()
    images: ImageOptions = ImageOptions()
    text: TextOptions = TextOptions()

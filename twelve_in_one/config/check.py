"""Checks a config and turns it into frozen dataclasses: every error at once, before any work."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from twelve_in_one.config.image_settings import ImageTaskOptions
from twelve_in_one.config.settings import (
    ConfigError,
    OfficialOptions,
    OwnTaskOptions,
    RunConfig,
    SystemOptions,
    TaskOptions,
    task_key,
)
from twelve_in_one.config.values import is_a, near, section, values_of
from twelve_in_one.systems import SYSTEMS
from twelve_in_one.systems.base import AnyTask, System
from twelve_in_one.tasks import own
from twelve_in_one.tasks.image_task import ImageTask
from twelve_in_one.tasks.kinds import KINDS
from twelve_in_one.tasks.task import Task
from twelve_in_one.tasks.twelve import TASKS

MIXTURE = "mixture"  # name of the stream of all tasks


# Which optimizer does as the released code; others would ignore the setting.
_OFFICIAL_OF = {
    "no_bias_correction": "adamw",
    "decay_after_update": "adamw",
    "uncorrected_eps": "adamw",
    "unreached": "adamw",
    "shared_step_size": "radam",
}


@dataclasses.dataclass(frozen=True)
class TaskRun:
    """A task with its shapes in a run, and its options."""

    task: AnyTask
    options: TaskOptions | ImageTaskOptions


def check(config: ml_collections.ConfigDict | Mapping[str, Any]) -> RunConfig:
    """The config as frozen dataclasses.

    Raises:
      ConfigError: lists every unknown, missing or impossible setting, with the nearest known names;
        if there are none, all settings that do not fit each other.
    """
    raw = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    if not isinstance(raw, Mapping):
        raise ConfigError([f"a config is a dict of settings, got {raw!r}"])
    errors: list[str] = []
    given = _given_official(raw)
    options = section(SystemOptions, given, "system", errors)
    system = SYSTEMS[options.name] if options and options.name in SYSTEMS else None
    if options and system is None:
        errors.append(f"system.name: {options.name!r}{near(options.name, SYSTEMS)}")
    if system is not None and system.pixels:
        tasks = _image_task_names(raw.get("tasks"), raw.get("task"), errors)
        task_options = _image_task_options(raw.get("task"), errors)
    else:
        tasks = _task_names(raw.get("tasks"), _own_names(raw.get("task")), errors)
        task_options = _task_options(raw.get("task"), tasks, errors)
    checked = {
        "system": given,
        "tasks": tasks,
        "task": task_options,
        "model": {} if system is None else _model_fields(system, raw.get("model"), errors),
    }
    run = section(RunConfig, {**raw, **checked}, "", errors)
    _check_patterns(raw, errors)
    if not errors:
        run = _with_official(run, given.get("official", {}), errors)
    if not errors:
        _check_together(run, errors)
    if errors:
        raise ConfigError(errors)
    return run


def _given_official(raw: Mapping[str, Any]) -> Any:
    """The section of the system without official switches that are left open."""
    system = raw.get("system", {})
    official = system.get("official") if isinstance(system, Mapping) else None
    if not isinstance(official, Mapping):
        return system
    return {**system, "official": {key: x for key, x in official.items() if x is not None}}


def _with_official(run: RunConfig, given: Mapping[str, Any], errors: list[str]) -> RunConfig:
    """The run with the official switches that `system.official.all` turns on."""
    official = run.system.official
    if official == OfficialOptions():
        return run
    pretrains = any(KINDS[task.task.kind].pretrains for task in task_runs(run))
    try:
        preset = SYSTEMS[run.system.name].official(
            run.optimizer, num_rounds=run.schedule.num_rounds, pretrains=pretrains
        )
    except ValueError as error:
        if official.all:
            errors.append(f"system.official.all: {error}")
        return run
    if preset is None:
        errors.append(
            f"system.official: switches of 12-in-1's released code, and system.name is "
            f"{run.system.name!r}"
        )
    if preset is None or not official.all:
        return run
    own = {name: getattr(official, name) for name in given}
    official = dataclasses.replace(preset, **own)
    return dataclasses.replace(run, system=dataclasses.replace(run.system, official=official))


def task_runs(run: RunConfig) -> tuple[TaskRun, ...]:
    """The tasks of a run in its order, with the shapes of the config."""
    system = SYSTEMS[run.system.name]
    if system.pixels:
        return tuple(
            TaskRun(_image_task(system, number, name, run.task[name]), run.task[name])
            for number, name in enumerate(run.tasks)
        )
    return tuple(_task_run(_task_of(name, run.task[name]), run.task[name]) for name in run.tasks)


def reads_pictures(run: RunConfig) -> bool:
    """Whether a run on regions also reads the pictures, so that datasets must hold them."""
    return SYSTEMS[run.system.name].reads_pictures


def _image_task(
    system: type[System], number: int, name: str, options: ImageTaskOptions
) -> ImageTask:
    return ImageTask(
        name,
        options.title or name,
        options.group,
        number,
        system.image_kinds[options.group],
        options.batch_size,
        options.prompt,
        options.templates if options.group in ("zero_shot", "detect") else (),
    )


def _task_of(name: str, options: TaskOptions) -> Task:
    return own.own_task(name, options) if isinstance(options, OwnTaskOptions) else TASKS[name]


def loss_scales(runs: Sequence[TaskRun]) -> dict[str, float]:
    """Factor on each task's loss, see `TaskOptions.loss_scale`."""
    if any(isinstance(run.options, ImageTaskOptions) for run in runs):
        return {run.task.name: run.options.loss_scale for run in runs}
    positive = [r.options.learning_rate for r in runs if r.options.learning_rate > 0]
    lowest = min(positive, default=1.0)
    return {r.task.name: r.options.loss_scale or r.options.learning_rate / lowest for r in runs}


def _task_run(task: Task, options: TaskOptions) -> TaskRun:
    shapes = {
        name: getattr(options, name)
        for name in ("max_tokens", "max_regions", "num_choices", "detected_slots", "batch_size")
    }
    changed = dataclasses.replace(
        task,
        task_id=options.task_token or task.task_id,
        learning_rate=options.learning_rate,
        **shapes,
    )
    return TaskRun(changed, options)


def _own_names(raw: Any) -> list[str]:
    """Tasks on the user's own datasets: those that set `like`."""
    sections = raw.items() if isinstance(raw, Mapping) else ()
    known = {task_key(name) for name in TASKS}
    return [
        str(k) for k, v in sections if k not in known and isinstance(v, Mapping) and "like" in v
    ]


def _task_names(value: Any, own_names: Sequence[str], errors: list[str]) -> tuple[str, ...]:
    names = [*TASKS, *own_names]
    if not isinstance(value, (tuple, list)) or not value:
        errors.append(f"tasks: {value!r}; should name some of {', '.join(names)}")
        return ()
    for name in value:
        if name not in names:
            listed = str(tuple(str(name).split(",")))
            hint = f'; for several write --config.tasks="{listed}"' if "," in str(name) else ""
            errors.append(f"tasks: no task {name!r}{hint or near(name, names)}{_how_own(name)}")
    found = tuple(name for name in value if name in names)
    errors += [
        f"task.{name}: config.tasks does not name it, so it would not be trained on"
        for name in own_names
        if name not in found
    ]
    if len(set(found)) < len(found):
        errors.append(f"tasks: each may be named once, got {', '.join(found)}")
    return found


def _task_options(raw: Any, tasks: Sequence[str], errors: list[str]) -> dict[str, Any]:
    """`TaskOptions` by task name."""
    if not isinstance(raw, Mapping):
        errors.append(f"task: should be a section, got {raw!r}")
        return {}
    for name in tasks:
        if task_key(name) not in raw:
            errors.append(f"task.{task_key(name)}: missing, though tasks names {name}")
    known = {task_key(name): name for name in TASKS}
    own_names = _own_names(raw)
    checked = {}
    for key, options in raw.items():
        if key in known:
            checked[known[key]] = section(TaskOptions, options, f"task.{key}", errors)
        elif key in own_names:
            checked[key] = section(OwnTaskOptions, options, f"task.{key}", errors)
            if checked[key] is not None:
                errors += [f"task.{key}{w}" for w in own.wrong(key, checked[key])]
        else:
            errors.append(f"task.{key}: no such task{near(key, known)}{_how_own(key)}")
    return checked


def _image_task_names(value: Any, sections: Any, errors: list[str]) -> tuple[str, ...]:
    """The tasks of a system of pictures: any that have a section."""
    known = list(sections) if isinstance(sections, Mapping) else []
    if not isinstance(value, (tuple, list)) or not value:
        errors.append(f"tasks: {value!r}; should name some of {', '.join(known)}")
        return ()
    for name in value:
        if name not in known:
            errors.append(f"tasks: no task {name!r}{near(name, known)}")
        elif not re.fullmatch("[a-z][a-z0-9_]*", name) or name == MIXTURE:
            errors.append(
                f"tasks: {name!r}: a name takes small letters, digits and _, and is not {MIXTURE}"
            )
    found = tuple(name for name in value if name in known)
    if len(set(found)) < len(found):
        errors.append(f"tasks: each may be named once, got {', '.join(found)}")
    return found


def _image_task_options(raw: Any, errors: list[str]) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        errors.append(f"task: should be a section, got {raw!r}")
        return {}
    checked = {
        name: section(ImageTaskOptions, options, f"task.{name}", errors)
        for name, options in raw.items()
    }
    for name, options in checked.items():
        if options is not None and not options.source:
            errors.append(f"task.{name}.source: says where its pictures are, and is empty")
    return checked


def _how_own(name: Any) -> str:
    return f"; a data set of your own needs task.{name}.like, and jsonl or hf"


def _model_fields(system: type[System], raw: Any, errors: list[str]) -> dict[str, Any]:
    """Fields of the system's config, with 0 for sizes that come from the data."""
    values = values_of(system.config_type, raw, "model", errors, system)
    if values is None:
        return {}
    decided = {name: value for name, value in values.items() if name in system.data_decides}
    try:
        made = system.from_fields(values | {name: value or 1 for name, value in decided.items()})
    except ValueError as error:
        errors.append(f"model: {error}")
        return {}
    return dataclasses.asdict(made.config) | decided


def _check_together(run: RunConfig, errors: list[str]) -> None:
    """Adds errors that depend on several settings together."""
    system = SYSTEMS[run.system.name]
    if system.pixels:
        unknown = [name for name in run.tasks if run.task[name].group not in system.image_kinds]
        if unknown:
            kinds = ", ".join(system.image_kinds)
            errors += [
                f"task.{name}.group: {run.task[name].group!r}: the groups of {run.system.name} are "
                f"{kinds}"
                for name in unknown
            ]
            return
        _check_images(run, errors)
        runs = {task.task.name: task for task in task_runs(run)}
        tasks = {name: task.task for name, task in runs.items()}
        region_tasks: dict[str, TaskOptions] = {}
    else:
        tasks = {name: _task_of(name, options) for name, options in run.task.items()}
        region_tasks = run.task
    if run.mixture.weighting and not system.mixes:
        errors.append(
            f"mixture.weighting: batches of {run.system.name} are of one task each: leave it out"
        )
    for name, options in region_tasks.items():
        path = f"task.{task_key(name)}"
        if options.batch_size % options.accumulate:
            errors.append(
                f"{path}.accumulate: {options.accumulate} does not divide the batch size "
                f"{options.batch_size}"
            )
        chooses = KINDS[tasks[name].kind].choices
        if chooses != (options.num_choices > 0):
            errors.append(
                f"{path}.num_choices: {options.num_choices}, but {name} chooses among "
                + ("annotated boxes and needs some" if chooses else "no boxes: 0")
            )
        if chooses and not 0 < options.detected_slots < options.max_regions:
            errors.append(
                f"{path}.detected_slots: {options.detected_slots} leaves no room for annotated "
                f"boxes in max_regions {options.max_regions}"
            )
    errors += system.misfits(
        run.model, {task_key(name): (tasks[name], run.task[name]) for name in run.tasks}
    )
    unknown = [name for name in run.schedule.order if name not in run.tasks]
    if unknown or len(set(run.schedule.order)) < len(run.schedule.order):
        errors.append(f"schedule.order: {run.schedule.order} should name tasks of the run, once")
    if run.schedule.kind == "temperature" and run.schedule.temperature <= 0:
        errors.append(f"schedule.temperature: should be above 0, got {run.schedule.temperature}")
    if run.optimizer.warmup_share > 1:
        errors.append(f"optimizer.warmup_share: a share up to 1, got {run.optimizer.warmup_share}")
    if run.system.official.unreached != "step" and run.model.get("scan_layers"):
        errors.append(
            "system.official.unreached: a stacked layer cannot be left out: needs "
            "model.scan_layers to be False"
        )
    errors += [
        f"system.official.{name}: is of {of}, and optimizer.name is {run.optimizer.name!r}"
        for name, of in _OFFICIAL_OF.items()
        if getattr(run.system.official, name) != getattr(OfficialOptions, name)
        and run.optimizer.name != of
    ]
    for name in ("b1", "b2"):
        if getattr(run.optimizer, name) >= 1:
            errors.append(
                f"optimizer.{name}: should be below 1, got {getattr(run.optimizer, name)}"
            )


def _check_images(run: RunConfig, errors: list[str]) -> None:
    """Adds errors that depend on several settings of a system of pictures."""
    if run.mixture.weighting and run.schedule.kind not in ("stop_and_go", "round_robin"):
        errors.append(
            f"schedule.kind: {run.schedule.kind!r} orders batches of single tasks; a mixed stream "
            "takes stop_and_go, or round_robin for weights that stay"
        )
    sizes = {"mixture": run.mixture} if run.mixture.weighting else {}
    sizes = sizes or {f"task.{name}": run.task[name] for name in run.tasks}
    for path, options in sizes.items():
        if options.batch_size % options.accumulate:
            errors.append(
                f"{path}.accumulate: {options.accumulate} does not divide the batch size "
                f"{options.batch_size}"
            )
    if run.images.tokens:
        _check_tokens(run, errors)
    learnt = [name for name in run.tasks if run.task[name].learns]
    if not learnt:
        errors.append("tasks: there is none to train on")
    if len(learnt) < len(run.tasks) and not run.mixture.weighting:
        errors.append("mixture.weighting: needed where some tasks are scored but not trained on")
    weights = [run.task[name].weight for name in learnt]
    if run.mixture.weighting == "explicit" and not any(weights):
        errors.append("task: with mixture.weighting explicit, some weight should be above 0")


def _check_tokens(run: RunConfig, errors: list[str]) -> None:
    """Adds errors about stored tokens, which are those of the whole picture, always the same."""
    stores = f"images.tokens={run.images.tokens}"
    if SYSTEMS[run.system.name].from_fields(run.model).token_encoder is None:
        errors.append(f"{stores}: needs a model on a frozen encoder; leave it empty")
    if not run.init_from.path:
        errors.append(f"{stores}: init_from.path should name the encoder's weights")
    for name in run.tasks:
        errors += [
            f"task.{name}.{option}: stored tokens are always the same; False, or no images.tokens"
            for option in ("random_crop", "flip")
            if getattr(run.task[name], option)
        ]
    if run.images.randaugment_layers:
        errors.append("images.randaugment_layers: 0, or no images.tokens")
    if run.images.train_side:
        errors.append("images.train_side: 0, or no images.tokens")


def _check_patterns(raw: Mapping[str, Any], errors: list[str]) -> None:
    def listed(section: str, name: str) -> tuple[Any, ...]:
        options = raw.get(section)
        value = options.get(name) if isinstance(options, Mapping) else ()
        return tuple(value) if isinstance(value, (list, tuple)) else ()

    patterns = {
        f"init_from.{name}": [text for text in listed("init_from", name) if isinstance(text, str)]
        for name in ("include", "exclude", "allow_missing")
    }
    patterns["optimizer.frozen"] = [x for x in listed("optimizer", "frozen") if isinstance(x, str)]
    for i, group in enumerate(listed("optimizer", "groups")):
        path = f"optimizer.groups[{i}]"
        triple = isinstance(group, (list, tuple)) and len(group) == 3
        if not triple or not isinstance(group[0], str):
            errors.append(
                f"{path}: should be (pattern, learning rate multiplier, weight decay), "
                f"got {group!r}"
            )
            continue
        patterns[path] = [group[0]]
        if any(not is_a(x, (int, float)) or not 0 <= x < math.inf for x in group[1:]):
            errors.append(f"{path}: needs two numbers from 0 up, got {group[1:]}")
    for path, texts in patterns.items():
        for text in texts:
            try:
                re.compile(text)
            except (re.error, OverflowError, RecursionError) as error:
                errors.append(f"{path}: {text!r} is no regular expression: {error}")


def unknown_overrides(arguments: Sequence[str], config: Any) -> list[str]:
    """All mistakes in the names of `--config.a.b=c` arguments."""
    errors = []
    for argument in arguments:
        match = re.match(r"--?config\.([^=]+)", argument)
        here, path = config, ()
        for name in match.group(1).split(".") if match else ():
            if not isinstance(here, Mapping | ml_collections.ConfigDict):
                errors.append(f"--config.{'.'.join((*path, name))}: {'.'.join(path)} is no section")
                break
            if name not in here:
                own_hint = _how_own(name) if path == ("task",) else ""
                errors.append(
                    f"--config.{'.'.join((*path, name))}: no such setting"
                    f"{near(name, list(here))}{own_hint}"
                )
                break
            here, path = here[name], (*path, name)
        else:
            _, equals, value = argument.partition("=")
            is_section = path and isinstance(here, ml_collections.ConfigDict)
            if is_section and equals and value.strip()[:1] != "{":
                name = ".".join(path)
                errors.append(
                    f"--config.{name}: a section, got {value!r}; set one of its settings: "
                    + ", ".join(f"{name}.{key}" for key in here)
                )
    return errors

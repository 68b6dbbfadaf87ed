"""Converts checkpoints: python -m twelve_in_one.convert SOURCE DESTINATION."""

import argparse
import contextlib
import ctypes
import functools
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from twelve_in_one.checkpoints import model_folder, weights
from twelve_in_one.checkpoints.report import Report, StateDictError
from twelve_in_one.config.paths import local_path
from twelve_in_one.convert import encoders, files, mammut, names, open_clip, servable
from twelve_in_one.convert.bert import from_bert
from twelve_in_one.convert.source import Source, choose_config, open_source
from twelve_in_one.convert.state_dict import Loaded, from_state_dict, to_state_dict
from twelve_in_one.data.serving import Serving
from twelve_in_one.models.two_stream.config import TwoStreamConfig
from twelve_in_one.models.two_stream.reference_config import from_reference, load, to_reference
from twelve_in_one.systems.mammut import MammutSystem, for_tasks
from twelve_in_one.systems.vilbert import Vilbert

_PROGRESS_SECONDS = 2.0
_KIND_NAMES = {
    "checkpoint": "a checkpoint directory of ours",
    "two_stream": "a two-stream state dict",
    "bert": "a BERT",
}
_DESCRIPTION = """\
Converts between the state dicts of the released code, plain BERT checkpoints and the checkpoint
directories of this package, and MaMMUT between open_clip and those. Every entry is accounted for;
if one is missing, unexpected or of a wrong shape, nothing is written unless an --allow_ option
covers it."""
_EXAMPLES = """\
examples (RUN stands for python -m twelve_in_one.convert):
  the official multi-task file
    RUN multi_task_model.bin multi_task/
  the same as a model that answers, see --words of --help
    RUN multi_task_model.bin answering/ --words vocab.txt --answers vqa=trainval_label2ans.pkl
  the official pretraining file, as a pretraining model
    RUN pretrained_model.bin pretrained/
  the official pretraining file, as the start of multi-task training
    RUN pretrained_model.bin start/ --model downstream --allow_missing 'vil_.*' \\
      --allow_missing '(vision|linguisic)_logit.*' --allow_missing '.*task_embeddings.*'
  a BERT (with its config.json beside it), as the start of pretraining
    RUN bert/model.safetensors start/
  ours, for the released code
    RUN multi_task/ multi_task_model.bin
  ours, as safetensors with a config.json
    RUN multi_task/ exported/ --to safetensors
  an image encoder (big_vision's .npz, an .onnx, a folder of Hugging Face, a CLIP of open_clip)
    RUN vit.npz encoder/ --to encoder --image_size 224
  a MaMMUT of open_clip (a file, or the folder with its open_clip_config.json), and back
    RUN openMaMMUT-ViT-L-14/ mammut/
    RUN mammut/ exported/ --to safetensors
  the image encoder of the extra "photos" (or a .pth of EfficientNet-Lite0)
    RUN efficientnet-lite0 encoder/ --to encoder

exit codes: 0 done; 1 refused or failed, nothing was written; 2 wrong usage
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.convert",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", type=local_path, help="directory of ours, directory with safetensors, or a file")
    add("destination", type=local_path, help="what to write")
    add("--config", help="a shipped size (base_6l) or a .json; by default what comes with SOURCE")
    add("--model", choices=("downstream", "pretraining"), help="heads to make; by default SOURCE's")
    add(
        "--to",
        choices=("ours", "bin", "safetensors", "encoder"),
        help="by default bin or safetensors (a directory) by DESTINATION's suffix, else ours; "
        "encoder: SOURCE is an image encoder, for init_from of systems of pictures",
    )
    add("--image_size", type=int, help="side of the pictures that an encoder will see")
    channels = {"type": float, "nargs": 3, "metavar": ("R", "G", "B")}
    add("--image_mean", help="of the pixels that an encoder was trained on, 0 to 1", **channels)
    add("--image_std", help="their standard deviation; both go into its weights", **channels)
    regex = {"metavar": "REGEX", "action": "append", "default": []}
    add("--allow_missing", help="entries that may be absent and are initialised", **regex)
    add("--allow_unexpected", help="unknown entries that may be left out", **regex)
    add(
        "--words",
        type=local_path,
        metavar="VOCAB",
        help="BERT's vocab.txt: make a model folder that predictions load",
    )
    add(
        "--answers",
        type=_head_and_file,
        metavar="HEAD=FILE",
        action="append",
        default=[],
        help="with --words: answers of a head (vqa, gqa) in the order of its labels, .json or .pkl",
    )
    add(
        "--detector",
        default=servable.DETECTOR,
        metavar="KIND",
        help="with --words: kind of detector that the model learnt from; default %(default)s",
    )
    add("--seed", type=int, default=0, help="of what is initialised (default: 0)")
    add("--overwrite", action="store_true", help="replace DESTINATION, if it is a model")
    add("--dry_run", action="store_true", help="report, write nothing")
    return parser


def _head_and_file(text: str) -> tuple[str, Path]:
    head, found, path = text.partition("=")
    if not (head and found and path):
        raise argparse.ArgumentTypeError(f"{text!r} should be HEAD=FILE")
    return head, local_path(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, or exits with 2 on wrong usage."""
    parser = _parser()
    args = parser.parse_args(argv)
    to = args.to or _format_of(args.destination)
    problem = _usage_problem(args)
    if problem:
        parser.error(problem)
    try:
        if not args.dry_run:
            weights.check_replaceable(args.destination)  # before the work
        if to == "encoder":
            _convert_encoder(args)
            return 0
        if mammut_model := _read_mammut(args):
            _write_mammut(args, to, *mammut_model)
            return 0
        config, loaded = _read(args)
        _print_idle(args, loaded.report)
        serving = None
        if args.words is not None:
            serving = servable.released_serving(
                config, args.words, dict(args.answers), args.detector
            )
            print(f"answers {', '.join(task.name for task in serving.tasks)}")
        if args.dry_run:
            print("dry run: nothing was written")
            return 0
        _write(args.destination, to, config, loaded, serving, overwrite=args.overwrite)
    except StateDictError as error:
        print(error.report)
        print(f"error: {args.source} does not fit the model, nothing was written", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _convert_encoder(args: argparse.Namespace) -> None:
    system, params, report = encoders.read(
        args.source, image_size=args.image_size, mean=args.image_mean, std=args.image_std
    )
    print(report)
    if args.dry_run:
        print("dry run: nothing was written")
        return
    weights.save_params(args.destination, params, system, overwrite=args.overwrite)
    print(
        f"wrote {args.destination}, {system.num_parameters:,} parameters; begin with "
        f"--config.init_from.path={args.destination} and model.encoder as its config.json says"
    )


def _read_mammut(args: argparse.Namespace) -> tuple[MammutSystem, Any] | None:
    """A MaMMUT and its parameters, or None if SOURCE is something else."""
    if weights.is_checkpoint(args.source):
        if weights.read_system(args.source).name != MammutSystem.name:
            return None
        params, system, _ = weights.load_params(args.source)
        return system, params
    if args.source.is_dir() and not any((args.source / name).is_file() for name in open_clip.FILES):
        return None
    tensors, settings = open_clip.read_tensors(args.source)
    if open_clip.BRIDGE not in tensors:
        return None
    size = None if args.image_size is None else (args.image_size, args.image_size)
    try:
        loaded = mammut.from_open_clip(
            tensors, settings, image_size=size, allow_unexpected=args.allow_unexpected
        )
    except StateDictError:
        raise
    except ValueError as error:
        raise ValueError(f"{args.source}: {error}") from error
    print(loaded.report)
    _print_idle(args, loaded.report)
    return MammutSystem(for_tasks(loaded.config)), loaded.params


def _write_mammut(args: argparse.Namespace, to: str, system: MammutSystem, params: Any) -> None:
    options: dict[str, Any] = dict(overwrite=args.overwrite)
    if to == "ours":
        write = functools.partial(weights.save_params, args.destination, params, system, **options)
    else:
        tensors = mammut.to_open_clip(system.config, params).items()
        if to == "bin":
            write = functools.partial(files.write_torch, args.destination, tensors, **options)
        else:
            settings = mammut.settings_of(system.config)
            options["prefix"] = open_clip.PREFIX
            write = functools.partial(
                files.write_folder, args.destination, tensors, settings, **options
            )
    if args.dry_run:
        print("dry run: nothing was written")
        return
    write()
    print(f"wrote {args.destination}, {system.num_parameters:,} parameters")
    if to == "bin":
        print(f"note: heads and numerics are in {open_clip.CONFIG_FILE}: see --to safetensors")


def _format_of(destination: Path) -> str:
    if destination.suffix in files.TORCH_SUFFIXES:
        return "bin"
    return "safetensors" if destination.suffix == ".safetensors" else "ours"


def _usage_problem(args: argparse.Namespace) -> str | None:
    packaged = args.to == "encoder" and str(args.source) == encoders.PACKAGED
    if not args.source.exists() and not packaged:
        return f"SOURCE {args.source} does not exist"
    if args.destination.exists():
        if not packaged and args.destination.samefile(args.source):
            return "SOURCE and DESTINATION are the same"
        if not args.overwrite and not args.dry_run:
            return f"DESTINATION {args.destination} exists; pass --overwrite to replace it"
    if args.answers and args.words is None:
        return "--answers needs --words"
    if args.words is not None and (args.to or _format_of(args.destination)) != "ours":
        return "--words makes a model folder of ours: name one"
    for pattern in (*args.allow_missing, *args.allow_unexpected):
        try:
            re.compile(pattern)
        except re.error as error:
            return f"malformed regular expression {pattern!r}: {error}"
    if args.config is not None:
        try:
            load(args.config)
        except ValueError as error:
            return str(error)
    return None


def _read(args: argparse.Namespace) -> tuple[TwoStreamConfig, Loaded]:
    start = time.monotonic()
    source = open_source(args.source)
    print(f"{source.path}: {_KIND_NAMES[source.kind]}, {_count_and_size(source)}")
    config, notes = choose_config(source, args.config, args.model)
    print("\n".join(notes))
    convert = from_bert if source.kind == "bert" else from_state_dict
    loaded = convert(
        config,
        source.tensors,
        allow_missing=args.allow_missing,
        allow_unexpected=args.allow_unexpected,
        seed=args.seed,
        progress=_with_progress("read"),
    )
    print(loaded.report)
    print(f"read in {time.monotonic() - start:.1f} s")
    return config, loaded


def _write(
    destination: Path,
    to: str,
    config: TwoStreamConfig,
    loaded: Loaded,
    serving: Serving | None,
    *,
    overwrite: bool,
) -> None:
    start = time.monotonic()
    print(f"writing {destination} ...", file=sys.stderr)
    if serving is not None:
        system = Vilbert(config)
        model_folder.save(destination, loaded.params, system, serving, overwrite=overwrite)
    elif to == "ours":
        weights.save_params(
            destination, loaded.params, Vilbert(config), loaded.unused, overwrite=overwrite
        )
    else:
        tensors = to_state_dict(config, loaded.params, loaded.unused, release=True)
        if to == "bin":
            files.write_torch(destination, tensors, overwrite=overwrite)
        else:
            files.write_safetensors(destination, tensors, config, overwrite=overwrite)
            _print_lost_fields(config)
    parts = destination.rglob("*") if destination.is_dir() else [destination]
    size = sum(part.stat().st_size for part in parts if part.is_file())
    print(f"wrote {destination}, {_megabytes(size)}, in {time.monotonic() - start:.1f} s")


def _print_lost_fields(config: TwoStreamConfig) -> None:
    """Names the settings for which the released code's JSON has no key."""
    read_back = from_reference(to_reference(config))
    fields = ("position_offset", "layer_norm_eps", "num_tasks")
    lost = [
        f"{f} {getattr(config, f)}" for f in fields if getattr(config, f) != getattr(read_back, f)
    ]
    if lost:
        print(f"note: config.json has no keys for {', '.join(lost)}")


def _print_idle(args: argparse.Namespace, report: Report) -> None:
    for patterns, allowed in (
        (args.allow_missing, report.initialised),
        (args.allow_unexpected, report.unused),
    ):
        for pattern in patterns:
            if not any(re.fullmatch(pattern, name) for name in allowed):
                print(f"note: {pattern!r} allows nothing that occurs")


def _count_and_size(source: Source) -> str:
    sizes = (
        np.dtype(tensor.dtype).itemsize * int(np.prod(tensor.shape))
        for tensor in source.tensors.values()
    )
    return f"{len(source.tensors)} tensors, {_megabytes(sum(sizes))}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _with_progress(
    verb: str,
) -> Callable[[Sequence[names.Entry]], Iterator[names.Entry]]:
    """Iterates over entries and, if this takes long, prints progress on stderr."""

    def iterate(entries: Sequence[names.Entry]) -> Iterator[names.Entry]:
        sizes = [4 * int(np.prod(entry.shape)) for entry in entries]
        start = shown = time.monotonic()
        done = 0
        for count, (entry, size) in enumerate(zip(entries, sizes, strict=True), start=1):
            yield entry
            done += size
            now = time.monotonic()
            if now - shown >= _PROGRESS_SECONDS:
                shown, rate = now, done / (now - start)
                print(
                    f"{verb} {count}/{len(entries)} tensors, {rate / 1e6:.0f} MB/s, "
                    f"{(sum(sizes) - done) / rate:.0f} s left",
                    file=sys.stderr,
                )

    return iterate


def _share_one_heap() -> None:
    """Makes glibc serve all threads from one heap, which lowers the peak by a third of the file.

    Separate heaps would keep the memory that Orbax's threads free while decompressing.
    """
    m_arena_max = -8
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(m_arena_max, 1)


if __name__ == "__main__":
    _share_one_heap()
    jax.config.update("jax_platforms", "cpu")  # leave accelerators to other processes
    sys.exit(main())

"""Opens a page in the browser to ask a trained model: python -m twelve_in_one.demo --model DIR."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from twelve_in_one import extras
from twelve_in_one.checkpoints import state
from twelve_in_one.config.paths import local_path
from twelve_in_one.predict.loading import load

_NUM_EXAMPLES = 6
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m twelve_in_one.demo",
        description="Opens a page on which a trained model answers, ranks, grounds, points, says "
        "what a picture entails, and compares. The page is for this machine alone unless --host "
        "says otherwise; nothing is sent anywhere.",
    )
    add = parser.add_argument
    add("--model", type=local_path, required=True, metavar="DIR", help="model folder or workdir")
    add(
        "--examples",
        type=local_path,
        nargs="+",
        metavar="PATH",
        help="pictures, or folders of them, to choose from; by default some that a run in DIR "
        "was trained on, if they are there",
    )
    add("--host", default="127.0.0.1", help="default %(default)s; 0.0.0.0 for the whole network")
    add("--port", type=int, help="by default the first from 7860 that is free")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until interrupted; returns 1 if it cannot be served."""
    args = parse_arguments(argv)
    try:
        extras.require("the page", "data", "demo")
        predictor = load(args.model)
        given = args.examples
        examples = _pictures(given) if given else _trained_on(args.model)
        if given and not examples:
            raise ValueError(f"--examples: no picture in {', '.join(map(str, given))}")
        # Read when Gradio is imported.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        import gradio as gr

        from twelve_in_one.demo.page import make_page

        make_page(predictor, examples, str(args.model)).launch(
            server_name=args.host,
            server_port=args.port,
            share=False,
            ssr_mode=False,
            footer_links=[],
            allowed_paths=[str(path.resolve()) for path in examples],
            theme=gr.themes.Default(),
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _pictures(paths: Sequence[Path]) -> list[Path]:
    """Files among `paths` and pictures below folders among them; a selection if there are many.

    Raises:
      ValueError: a path does not exist.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"--examples {path}: there is none")
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
        found += [path] if path.is_file() else inside
    step = max(1, len(found) // _NUM_EXAMPLES)
    return found[::step][:_NUM_EXAMPLES]


def _trained_on(model: Path) -> list[Path]:
    """Some pictures of the run's raw data; none for a model folder without its run."""
    if not (model / state.CONFIG).is_file():
        return []
    try:
        raw = state.read_config(model).data.raw_dir
    except ValueError:
        return []
    folder = Path(raw) / "images"
    return _pictures([folder]) if raw and folder.is_dir() else []


if __name__ == "__main__":
    sys.exit(main())

"""Writes the report of a workdir: plots, contact sheets and the page that shows them."""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from twelve_in_one import atomic
from twelve_in_one.report.page import Picture, page
from twelve_in_one.report.pictures import ExamplePicture, contact_sheet
from twelve_in_one.report.plots import all_plots
from twelve_in_one.report.workdir import read_run

FILE = "report.html"
PLOTS = "plots"
EXAMPLES = "examples"
_SHEET_NAME = re.compile(r"\d\d-.*\.png")
_JPEG_QUALITY = 88  # a tenth of PNG's size for photographs, text still sharp
_CAPTIONS = {
    "results": "Score of each task beside chance, the text alone, and the commonest answer.",
    "loss": "Training loss; grey where stop-and-go had stopped the task.",
    "validation": "Score on the validation split, with what words alone and chance reach on what "
    "the run is scored on; grey where the task was stopped.",
    "stop_and_go": "When each task was trained, and its share of the rounds.",
}


def write_report(workdir: Path, examples: Sequence[ExamplePicture] = ()) -> Path:
    """Writes `report.html`, `plots/*.png` and, if examples are given, `examples/*.png`.

    The page is one file with its pictures in it. It omits whatever the run lacks so far,
    and says so. Call it on one process: it uses no devices, so that it can run alongside
    training.

    Args:
      workdir: of a run.
      examples: replace the existing contact sheets; if empty, those are shown.

    Returns:
      Path of the page.

    Raises:
      ValueError: no run in `workdir`, one of its files is damaged, or an example cannot be drawn.
      OSError: a file cannot be read or written.
    """
    run = read_run(workdir)
    plots: list[Picture | str] = []
    (workdir / PLOTS).mkdir(exist_ok=True)
    for name, plot in all_plots(run):
        path = workdir / PLOTS / f"{name}.png"
        if isinstance(plot, str):
            path.unlink(missing_ok=True)  # from an earlier run in this folder
            plots.append(plot)
            continue
        with atomic.replacing(path) as temporary:
            plot.savefig(temporary, format="png")
        plots.append(Picture(_CAPTIONS[name], "image/png", path.read_bytes()))
    if examples:
        _write_sheets(workdir / EXAMPLES, examples)
    path = workdir / FILE
    atomic.write(path, page(run, plots, list(_read_sheets(workdir / EXAMPLES))))
    return path


def _write_sheets(folder: Path, examples: Sequence[ExamplePicture]) -> None:
    from PIL.PngImagePlugin import PngInfo

    by_task: dict[str, list[ExamplePicture]] = {}
    for example in examples:
        by_task.setdefault(example.task, []).append(example)
    folder.mkdir(exist_ok=True)
    names = set()
    for number, (task, found) in enumerate(by_task.items(), 1):
        title = PngInfo()
        title.add_itxt("Title", task)
        slug = re.sub(r"[^a-z0-9]+", "-", task.lower().replace("+", "-plus")).strip("-")
        names.add(f"{number:02d}-{slug}.png")
        with atomic.replacing(folder / f"{number:02d}-{slug}.png") as temporary:
            contact_sheet(found).save(temporary, format="PNG", pnginfo=title)
    for path in folder.iterdir():
        if _SHEET_NAME.fullmatch(path.name) and path.name not in names:
            path.unlink()


def _read_sheets(folder: Path) -> Iterator[Picture]:
    """The contact sheets as smaller pictures."""
    from PIL import Image

    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as sheet:
            small = io.BytesIO()
            sheet.convert("RGB").save(small, format="JPEG", quality=_JPEG_QUALITY)
            yield Picture(str(sheet.info.get("Title", path.stem)), "image/jpeg", small.getvalue())

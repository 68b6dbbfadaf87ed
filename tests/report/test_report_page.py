"""The report of a whole run, of half a run, and of what is none."""

import base64
import html.parser
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from twelve_in_one.logs.metrics_writer import open_writer
from twelve_in_one.report import plots, write_report
from twelve_in_one.report.__main__ import main
from twelve_in_one.report.page import duration, facts
from twelve_in_one.report.pictures import ExamplePicture
from twelve_in_one.report.workdir import read_run, stop_spans

NASTY = 'Odd & "own" <b>$x^$</b>'
STOPS = {  # task: rounds of its validations, and whether it was stopped there
    "vqa": [(25, False), (50, True), (75, True), (100, False)],
    "coco": [(25, False), (50, False), (75, False), (100, False)],
    "own": [(50, True), (100, True)],
}
START = {
    "event": "start",
    "round": 0,
    "tasks": ["coco", "own", "vqa"],
    "parameters": 1234567,
    "devices": "cpu x 8",
    "timing": {"command": "python -m train --config=<x>"},
}


def train(round):
    losses = {"vqa": 100 / round**2, "coco": 1 + 1 / round}
    if round > 20:
        losses["own"] = float("nan") if round == 30 else 2.0
    timing = {"elapsed_s": 1.5 * round, "examples_per_s": 1234.4, "data_wait": 0.012}
    return {
        "event": "train",
        "round": round,
        "updates": 3 * round,
        "loss": losses,
        "skipped": 0,
        "timing": timing,
    }


def validation(task, round, stopped):
    return {
        "event": "validation",
        "round": round,
        "task": task,
        "score": round / 200,
        "stopped": stopped,
    }


def result(title, group, score, **more):
    return {"title": title, "group": group, "metric": "accuracy", "score": score} | more


RESULTS = {
    "split": "test",
    "round": 100,
    "updates": 300,
    "parameters": 1234567,
    "seconds": 4000.0,
    "tasks": {
        "vqa": result("VQAv2", "G1", 0.5, chance=0.1, words=0.2, majority=0.3, examples=4321),
        "coco": result("COCO", "G2", 0.4, chance=0.25, metrics={"r@5": 0.875}, loss=1.25),
        "own": result(NASTY, "G9", 0.2, chance=0.3),
    },
}


def make_run(workdir, *, trained=True, validated=True, results=True, config=True):
    workdir.mkdir(exist_ok=True)
    with open_writer(workdir, tensorboard=False) as writer:
        writer.write(START)
        for round in range(1, 101) if trained else ():
            writer.write(train(round))
        for task, stops in STOPS.items() if validated else ():
            for round, stopped in stops:
                writer.write(validation(task, round, stopped))
    if results:
        (workdir / "results.json").write_text(json.dumps(RESULTS))
    if config:
        (workdir / "config.json").write_text('{"note": "</pre><script>"}')
    return workdir


def examples(*tasks):
    image = np.zeros((30, 40, 3), np.uint8)
    return [ExamplePicture(task, "text", "a", "b", False, [image]) for task in tasks]


class Page(html.parser.HTMLParser):
    """Tags that were opened and not closed, texts, and the attributes of images."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.images, self.tags = [], [], [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return "\n".join(self.texts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with everything, and its report."""
    workdir = make_run(tmp_path_factory.mktemp("report") / "a<run>")
    path = write_report(workdir, examples("VQAv2", NASTY, "VQAv2", "RefCOCO+"))
    return workdir, Page(path.read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------- the whole page


def test_page_is_well_formed_and_loads_nothing(whole):
    workdir, page = whole
    assert not page.open
    assert not page.tags & {"script", "link", "iframe", "b"}
    raw = (workdir / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import", raw)
    assert "color-scheme: light dark" in raw


def test_page_tells_all(whole):
    _, page = whole
    for text in (
        "Report of a<run>",
        "1,234,567",
        "1 h 07 min",
        "1,234 examples/s",
        "1.2% of the time",
        "cpu x 8",
        "python -m train --config=<x>",
        NASTY,
        "G1 · Vocabulary-based VQA",
        "G2 · Image retrieval",
        "r@5 0.875, loss 1.2500",
        "4,321",
        "average",
        '{"note": "</pre><script>"}',
    ):
        assert text in page.text, text
    assert page.text.index("VQAv2") < page.text.index("COCO") < page.text.index(NASTY)
    assert page.texts.count("!") == 1  # own is below chance
    assert "not above both chance and words" in page.text


def test_pictures_are_embedded(whole):
    workdir, page = whole
    assert len(page.images) == 4 + 3
    for image in page.images:
        media_type, data = image["src"].removeprefix("data:").split(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert Image.MIME[picture.format] == media_type
            assert min(picture.size) > 50
        assert image["alt"]
    names = sorted(path.name for path in (workdir / "plots").iterdir())
    assert names == ["loss.png", "results.png", "stop_and_go.png", "validation.png"]
    names = sorted(path.name for path in (workdir / "examples").iterdir())
    assert names == ["01-vqav2.png", "02-odd-own-b-x-b.png", "03-refcoco-plus.png"]
    with Image.open(workdir / "examples" / "01-vqav2.png") as sheet:
        assert sheet.width == 2 * 320


# ------------------------------------------------------------------------------------- half a run


def test_before_anything_has_happened(tmp_path):
    workdir = make_run(tmp_path, trained=False, validated=False, results=False, config=False)
    page = Page(write_report(workdir).read_text(encoding="utf-8"))
    for text in (
        "No training loss yet.",
        "No validation yet.",
        "No validation yet, so no task can have been stopped.",
        "No results yet.",
        "No pictures of examples.",
        "0 so far",
    ):
        assert text in page.text
    assert not page.images and not page.open


def test_report_is_made_again(tmp_path):
    """Old sheets stay where no examples are given; old plots that no longer hold go."""
    workdir = make_run(tmp_path, trained=False, validated=False)
    write_report(workdir, examples("VQAv2", "GQA"))
    (workdir / "examples" / "mine.png").write_bytes(
        (workdir / "examples" / "02-gqa.png").read_bytes()
    )
    page = Page(write_report(workdir).read_text(encoding="utf-8"))
    assert len(page.images) == 1 + 3
    (workdir / "results.json").unlink()
    page = Page(write_report(workdir, examples("GQA")).read_text(encoding="utf-8"))
    assert sorted(path.name for path in (workdir / "examples").iterdir()) == [
        "01-gqa.png",
        "mine.png",
    ]
    assert not list((workdir / "plots").iterdir())
    assert len(page.images) == 2


def test_results_without_metrics(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    run = read_run(tmp_path)
    assert [task.title for task in run.tasks] == ["VQAv2", "COCO", NASTY]
    assert ("rounds", "100") in facts(run)
    assert run.config is None


def test_command(tmp_path, capsys):
    assert main(["--workdir", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main(["--workdir", str(tmp_path)]) == 1
    assert "no run to report" in capsys.readouterr().err
    make_run(tmp_path, trained=False, validated=False)
    assert main(["--workdir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "VQAv2" in out and f"wrote {tmp_path / 'report.html'}" in out
    (tmp_path / "results.json").write_text('{"tasks": {"vqa": 3}}')
    assert main(["--workdir", str(tmp_path)]) == 1
    assert f"{tmp_path / 'results.json'}: tasks.vqa: must be an object" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{")
    assert main(["--workdir", str(tmp_path)]) == 1
    assert f"{tmp_path / 'results.json'}: not JSON" in capsys.readouterr().err
    (tmp_path / "results.json").unlink()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"event": "validation", "round": 3}\n')
    assert main(["--workdir", str(tmp_path)]) == 1
    assert "metrics.jsonl: a validation without 'task'" in capsys.readouterr().err


def test_importing_brings_no_pictures_in():
    code = "import sys, twelve_in_one.report.__main__; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "scipy", "matplotlib", "PIL", "tensorboardX"} & set(
        run.stdout.split()
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 00 s"),
        (303, "5 min 03 s"),
        (3599.6, "1 h 00 min"),
        (7499, "2 h 05 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


# ------------------------------------------------------------------------------------ the plots


def test_spans_against_rounds_one_by_one(whole):
    run = read_run(whole[0])
    for task, stops in STOPS.items():
        expected = []
        for round in range(100):
            told = [stopped for at, stopped in stops if at <= round]
            expected.append(told[-1] if told else False)
        spans = stop_spans(run, task)
        assert [s for span in spans for s in [span.stopped] * (span.end - span.start)] == expected
        assert all(a.stopped != b.stopped for a, b in zip(spans, spans[1:], strict=False))


def test_loss_plot_shows_the_records(whole):
    run = read_run(whole[0])
    figure = plots.loss_plot(run)
    by_title = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(by_title) == ["G1 · VQAv2", "G2 · COCO", f"G9 · {NASTY}"]
    scales = [axes.get_yscale() for axes in figure.axes]
    assert scales == ["log", "linear", "linear"]  # 10,000 to 1, 2 to 1, constant
    rounds, losses = by_title["G1 · VQAv2"].lines[0].get_data()
    np.testing.assert_allclose(losses, 100 / np.arange(1, 101) ** 2)
    np.testing.assert_array_equal(rounds, np.arange(1, 101))
    x, mean = by_title["G1 · VQAv2"].lines[1].get_data()
    np.testing.assert_allclose(mean[50], np.mean(losses[50:53]))
    assert x[50] == pytest.approx(52)
    rounds, losses = by_title[f"G9 · {NASTY}"].lines[0].get_data()
    assert list(rounds) == list(range(21, 101))
    assert list(np.flatnonzero(np.isnan(losses))) == [9]  # a gap in the line
    assert [len(axes.patches) for axes in figure.axes] == [1, 0, 1]  # stops are shaded


def test_validation_plot_has_the_bars(whole):
    figure = plots.validation_plot(read_run(whole[0]))
    heights = [[line.get_ydata()[0] for line in axes.lines[1:]] for axes in figure.axes]
    assert heights == [[0.1, 0.2, 0.3], [0.25], [0.3]]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [0.125, 0.25, 0.375, 0.5])


def test_timeline_of_a_mixture(tmp_path):
    """Tasks that only are scored have no bar, and losses that tasks share have no rows."""
    rows = [{"a": 6, "b": 2, "contrast": 8}, {"a": 0, "b": 8, "contrast": 8}]
    with open_writer(tmp_path, tensorboard=False) as writer:
        writer.write({**START, "tasks": ["a", "b", "seen"]})
        for round, counts in zip((10, 30), rows, strict=True):
            losses = dict.fromkeys([name for name, count in counts.items() if count], 1.0)
            writer.write({**train(round), "loss": losses, "rows": counts})
            for task in ("a", "b", "seen"):
                writer.write(validation(task, round, task == "a"))
    validated = plots.validation_plot(read_run(tmp_path))
    assert [axes.get_title(loc="left") for axes in validated.axes] == ["a", "b", "seen"]
    figure = plots.stop_and_go_plot(read_run(tmp_path))
    bars, shares = figure.axes
    assert [label.get_text() for label in bars.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in bars.texts] == ["33%", "100%", "goes"]
    drawn = {patch.get_label(): patch.get_data() for patch in shares.patches}
    assert list(drawn) == ["a", "b"]
    for name, expected in {"a": [0.75, 0], "b": [0.25, 1]}.items():
        np.testing.assert_allclose(drawn[name].values, expected)
        np.testing.assert_array_equal(drawn[name].edges, [0, 10, 30])
    for kind, stops in (("stop_and_go", True), ("round_robin", False)):
        (tmp_path / "config.json").write_text(json.dumps({"schedule": {"kind": kind}}))
        run = read_run(tmp_path)
        assert any(span.stopped for span in stop_spans(run, "a")) == stops


def test_results_plot_has_all_tasks(whole):
    figure = plots.results_plot(read_run(whole[0]))
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.5, 0.4, 0.2]
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.500", "0.400", "0.200 !"]


def test_plots_leave_matplotlib_alone(whole):
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert [name for name, _ in plots.all_plots(read_run(whole[0]))][0] == "results"
    assert dict(matplotlib.rcParams) == before

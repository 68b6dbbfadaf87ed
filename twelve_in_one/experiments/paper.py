"""Numbers of the papers' tables, to read next to ours.

They are for the real datasets and models of other sizes. Those of 12-in-1 were not checked against
the paper again: `NOTE` goes with all of them. Those of MaMMUT were read in its own source.
"""

from collections.abc import Mapping, Sequence

from twelve_in_one.experiments.summary import markdown
from twelve_in_one.tasks.twelve import TWELVE

NOTE = "the paper's numbers, on the real data (unverified)"
_TASKS = (
    "vqa", "gqa", "vgqa", "coco", "flickr30k", "refcoco", "refcoco+", "refcocog", "visual7w",
    "guesswhat", "nlvr2", "snli_ve",
)  # fmt: skip
# Table 2, rows 2, 3, 4, 6 and 7, all on the clean training sets; the last number is the average.
_TABLE_2 = {
    "single": (71.24, 59.09, 34.10, 64.80, 61.46, 78.17, 69.47, 72.21, 80.51, 62.53, 74.25, 76.53,
               67.03),
    "group": (72.03, 59.60, 36.18, 65.06, 66.00, 80.23, 72.79, 75.30, 81.54, 64.78, 74.62, 76.52,
              68.72),
    "all": (72.57, 60.12, 36.36, 63.70, 63.52, 80.58, 73.25, 75.96, 82.75, 65.04, 78.44, 76.78,
            69.08),
    "group-tuned": (72.61, 59.96, 35.81, 66.26, 66.98, 79.94, 72.12, 75.18, 81.57, 64.56, 74.47,
                    76.34, 68.81),
    "tuned": (72.92, 60.48, 36.56, 65.46, 65.14, 80.86, 73.45, 76.00, 83.01, 65.15, 78.87, 76.73,
              69.55),
}  # fmt: skip
# Table 3: relative change in percent of the row's task when it is trained with the column's.
_PAIRED = ("vqa", "flickr30k", "visual7w", "nlvr2")
_TABLE_3 = (
    (None, 0.38, 0.38, -0.20, 0.19),
    (0.46, None, 0.23, -4.13, -1.15),
    (0.39, 0.78, None, 0.24, 0.47),
    (2.29, 1.47, 0.67, None, 1.48),
    (1.04, 0.88, 0.43, -1.36, None),
)
# Table 6: averages of G1, G2, G3, G4 and of all tasks. The groups of "no-stop" do not give its last
# number, so one of the five is wrong, and the rows of "head-token", "no-token" and "no-stop"
# may have been interchanged.
_TABLE_6 = {
    "full": (56.35, 63.61, 75.52, 77.61, 69.08),
    "head-token": (55.95, 61.48, 75.35, 77.37, 68.52),
    "no-token": (55.67, 62.55, 75.38, 76.73, 68.53),
    "no-stop": (55.50, 62.92, 75.24, 76.31, 68.52),
    "curriculum": (54.68, 61.21, 75.19, 76.70, 67.98),
    "anti-curriculum": (55.82, 59.58, 73.69, 75.94, 67.24),
    "vanilla": (54.09, 61.45, 75.28, 76.71, 67.92),
}

# MaMMUT's ablations: R@1 of texts by picture and of pictures by text on COCO, the same on
# Flickr30k, zero-shot, and accuracy on VQAv2; None where the paper has none.
_MAMMUT_COLUMNS = ("COCO i→t", "COCO t→i", "Flickr30k i→t", "Flickr30k t→i", "VQAv2")
_MAMMUT = {
    "objectives": {
        "contrastive only": (54.8, 38.2, 82.6, 67.1, 63.5),
        "generative only": (None, None, None, None, 69.9),
        "both": (54.3, 38.7, 80.6, 67.5, 71.7),
    },
    "cross-attention": {
        "1 layer of 8": (55.3, 39.6, 81.7, 67.2, 68.7),
        "2 layers": (56.6, 40.1, 81.9, 67.6, 70.8),
        "4 layers": (55.7, 39.9, 82.2, 67.3, 71.5),
    },
    "loss weights": {
        "2, 0.5": (56.71, 40.77, 82.52, 67.77, 70.08),
        "2, 1": (56.7, 40.27, 81.84, 67.25, 70.84),
        "1, 1": (56.25, 39.73, 81.74, 67.50, 71.48),
        "1, 2": (55.39, 39.09, 81.54, 65.64, 72.27),
        "0.5, 2": (52.05, 37.32, 78.32, 62.73, 71.79),
    },
    "reading in the contrastive pass": {
        "causal": (53.0, 37.5, 78.1, 62.5, None),
        "in both directions": (54.9, 38.8, 82.4, 67.3, None),
    },
}


def table_2(titles: Mapping[str, str], models: Sequence[str]) -> str:
    """Rows of Table 2: one row per model, one column per task."""
    known = {task.name: task.title for task in TWELVE}
    rows = [[titles[name], *_numbers(_TABLE_2[name])] for name in models]
    return _under_note(["Table 2", *(known[name] for name in _TASKS), "average"], rows)


def table_3() -> str:
    """Table 3: change in percent of the single-task score."""
    rows = [
        [name, *_numbers(row, "+.2f")]
        for name, row in zip((*_PAIRED, "average"), _TABLE_3, strict=True)
    ]
    return _under_note(["Table 3, relative change in %", *_PAIRED, "average"], rows)


def table_6(titles: Mapping[str, str], variants: Sequence[str]) -> str:
    """Rows of Table 6: one row per variant, one column per group."""
    rows = [[titles[name], *_numbers(_TABLE_6[name])] for name in variants]
    doubt = "Rows 2 to 4 may be interchanged, and one number of round robin is wrong."
    return f"{_under_note(['Table 6', 'G1', 'G2', 'G3', 'G4', 'average'], rows)}\n\n{doubt}"


def mammut(question: str) -> str:
    """MaMMUT's table on one of the questions of `experiments.mammut`; "" if it has none."""
    if question not in _MAMMUT:
        return ""
    rows = [[title, *_numbers(row, "")] for title, row in _MAMMUT[question].items()]
    table = markdown([f"MaMMUT, {question}", *_MAMMUT_COLUMNS], rows)
    return (
        "For orientation, the paper's numbers, on the real data, R@1 zero-shot (i→t: texts by "
        f"picture), VQAv2 fine-tuned:\n\n{table}"
    )


def _under_note(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"For orientation, {NOTE}:\n\n{markdown(header, rows)}"


def _numbers(row: Sequence[float | None], form: str = ".2f") -> list[str]:
    return ["" if value is None else format(value, form) for value in row]

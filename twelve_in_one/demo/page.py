"""The page of the demo, built with Gradio: one tab per question."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from twelve_in_one.demo.questions import QUESTIONS, Question, ask, found_boxes
from twelve_in_one.predict.predictor import Predictor

_SOURCES = ["upload", "clipboard"]


def make_page(predictor: Predictor, examples: Sequence[Path], title: str) -> gr.Blocks:
    """The page, not started yet.

    Args:
      predictor: the model to ask; it handles one question at a time.
      examples: pictures to choose from.
      title: name of the model.
    """
    with gr.Blocks(analytics_enabled=False, title=f"Ask {title}") as page:
        gr.Markdown(f"# Ask {title}")
        for question in QUESTIONS:
            tasks = question.tasks(predictor.serving)
            if tasks:
                with gr.Tab(question.title, elem_id=f"tab-{question.name}"):
                    _tab(predictor, question, tasks, [str(path) for path in examples])
    return page


def _tab(predictor: Predictor, question: Question, tasks: list[str], examples: list[str]) -> None:
    def named(name: str) -> str:
        return f"{question.name}-{name}"

    gr.Markdown(question.about)
    with gr.Row():
        with gr.Column():
            images = _images(question, examples)
            text = gr.Textbox(
                label=question.text, placeholder=question.example, elem_id=named("text")
            )
            boxes, find = gr.State(""), None
            if question.boxes:
                boxes = gr.Textbox(
                    label=f"Boxes ({question.boxes}): x1, y1, x2, y2 in pixels, a line each",
                    lines=3,
                    elem_id=named("boxes"),
                )
                find = gr.Button("Find boxes in the picture", elem_id=named("find"))
            task = gr.Dropdown(tasks, value=tasks[0], label="Task", visible=len(tasks) > 1)
            attention = gr.Checkbox(label="Show what the words read", elem_id=named("attention"))
            button = gr.Button("Ask", variant="primary", elem_id=named("ask"))
        with gr.Column():
            words = gr.Textbox(label="Answer", interactive=False, elem_id=named("words"))
            shown = gr.Image(
                show_label=False,
                interactive=False,
                format="png",
                buttons=["download", "fullscreen"],  # no buttons that send it elsewhere
                elem_id=named("picture"),
            )
            details = gr.Textbox(
                label="Scores", interactive=False, lines=6, elem_id=named("details")
            )

    def answer(text: str, boxes: str, task: str, attention: bool, *images: Any) -> Any:
        chosen = images if question.images else [str(path) for path in images[0] or ()]
        reply = ask(predictor, question, chosen, text, task=task, boxes=boxes, attention=attention)
        return reply.words, reply.picture, reply.details

    one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model"}
    inputs, outputs = [text, boxes, task, attention, *images], [words, shown, details]
    for event in (button.click, text.submit):
        event(answer, inputs, outputs, api_visibility="private", **one_at_a_time)
    if find is not None:
        find.click(
            lambda image: found_boxes(predictor, image),
            images[0],
            [boxes, words],
            api_visibility="private",
            **one_at_a_time,
        )


def _images(question: Question, examples: list[str]) -> list[Any]:
    """Inputs for pictures, with examples to click on."""
    if not question.images:
        files = gr.File(
            label="Pictures",
            file_count="multiple",
            file_types=["image"],
            value=examples or None,
            elem_id=f"{question.name}-images",
        )
        return [files]
    labels = ("Left picture", "Right picture") if question.images == 2 else ("Picture",)
    # Unchanged: pictures of other modes are converted when read.
    images = [
        gr.Image(
            type="filepath",
            image_mode=None,
            sources=_SOURCES,
            label=label,
            height=260,
            elem_id=f"{question.name}-image-{number}",
        )
        for number, label in enumerate(labels)
    ]
    if examples:
        rows = [[examples[i - shift] for shift in range(len(images))] for i in range(len(examples))]
        gr.Examples(rows, inputs=images, label="Examples", api_visibility="private")
    return images

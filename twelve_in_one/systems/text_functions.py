"""The functions to export of systems that write texts: look at pictures once, write from that.

Letters: b pictures, K tokens of a picture, De their width, S its side in pixels, P tokens of a
prompt, L of a text, Q of a question.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models import generate
from twelve_in_one.systems.base import (
    AnyTask,
    Batch,
    ExportedInput,
    Exports,
    Function,
    Params,
    System,
)

_LETTERS = {"b": "pictures, each with a text"}
_WRITTEN = {
    "tokens": "prompt, text, end of text, padding; the tokenizer's files are in this folder",
    "log_probabilities": "of each token that was written; 0 in the prompt and in the padding",
}


def of_texts(
    system: System,
    tasks: Sequence[AnyTask],
    encode: Callable[[Params, jax.Array], jax.Array],
    write: Callable[[Params, jax.Array, Batch], generate.Texts],
) -> Exports:
    """`encode`, pictures to tokens, and `write`, greedy texts from these and a prompt.

    Args:
      system: with the prompts of the tasks in its `sizes`.
      tasks: that are written.
      encode: (params, images) -> tokens [B, K, De].
      write: (params, tokens, batch) -> texts.
    """
    sizes, side = system.sizes(tasks[0]), system.image_size
    shape = (*([system.frames] if system.frames else ()), side, side, 3)
    parts = tuple(sorted(system.abstract()))
    images = {
        "images": ExportedInput(
            ("b", *shape), "float32", "pixels as preprocessing.json says, in [-1, 1]"
        )
    }
    picture = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    seen = jax.eval_shape(encode, nn.unbox(system.abstract()), picture)

    def encoded(params: Params, inputs: Batch) -> jax.Array:
        return encode(params, inputs["images"]).astype(jnp.float32)

    context = {
        "encoded": ExportedInput(
            ("b", *seen.shape[1:]), "float32", "output of encode; zeros hide the picture"
        ),
        "prompt": ExportedInput(
            ("b", sizes["max_prompt"]), "int32", "tokens of the task's words and question, padding"
        ),
        "condition": ExportedInput(("b",), "int32", "the number in task_ids"),
    }
    if sizes["max_question"]:
        context["question"] = ExportedInput(
            ("b", sizes["max_question"]), "int32", "tokens of the question, padding"
        )
    pad_id, longest = system.config.pad_id, sizes["max_tokens"]

    def written(params: Params, inputs: Batch) -> dict[str, jax.Array]:
        prompt = inputs["prompt"]
        rest = ((0, 0), (0, longest - prompt.shape[1]))
        batch = {
            **{name: x for name, x in inputs.items() if name not in ("encoded", "prompt")},
            "tokens": jnp.pad(prompt, rest, constant_values=pad_id),
            "prompt_length": jnp.sum(prompt != pad_id, axis=1),
        }
        texts = write(params, inputs["encoded"], batch)
        return {"tokens": texts.tokens, "log_probabilities": texts.log_probabilities}

    def function(
        inputs: Mapping[str, ExportedInput], meaning: Any, params: tuple[str, ...], scores: Any
    ) -> Function:
        def noise(letters: Mapping[str, int]) -> dict[str, np.ndarray]:
            return _noise(inputs, letters, pad_id, system.config.eos_id)

        return Function(inputs, _LETTERS, meaning, (), params, scores, scores, noise)

    meaning = "tokens of the picture, which write reads"
    numbers = {task.name: system.sizes(task)["condition"] for task in tasks}
    return (
        ("encode", {}, function(images, meaning, ("encoder/",), encoded)),
        ("write", numbers, function(context, _WRITTEN, parts, written)),
    )


def _noise(
    inputs: Mapping[str, ExportedInput], letters: Mapping[str, int], pad_id: int, eos_id: int
) -> dict[str, np.ndarray]:
    """Inputs drawn at random; every other text is shorter."""
    rng, found = np.random.default_rng(0), {}
    words = [token for token in range(8) if token not in (pad_id, eos_id)]
    for name, item in inputs.items():
        shape = tuple(letters[x] if isinstance(x, str) else x for x in item.shape)
        values = rng.normal(size=shape)
        if name in ("prompt", "question"):
            values = rng.choice(words, shape)
            values[::2, 1 + shape[1] // 2 :] = pad_id
        elif name == "condition":
            values = np.zeros(shape)
        found[name] = values.astype(item.dtype)
    return found

"""Checks of the texts of a set, before a decoder learns them."""

import numpy as np

from twelve_in_one.data.cut_texts import MAX_RECORDS, CutTexts
from twelve_in_one.data.images.image_set import ImageSet, TextMisfit, examples
from twelve_in_one.data.images.texts import TextTargets
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.data.texts.sequences import TextCounts, count_texts

_TRIED = 32  # examples to look for a text in


def check_texts(where: str, images: ImageSet, encode: TextTargets) -> None:
    """Refuses a set without texts: of single examples they may lack, which are left out.

    Raises:
      DataError: none of some examples from all over the set has a text.
    """
    numbers = np.unique(np.linspace(0, images.num_examples - 1, _TRIED).astype(int)).tolist()
    first = ""
    for number in numbers:
        try:
            encode.texts(images.read(number))
            return
        except TextMisfit as error:
            first = first or str(error)
        except DataError:
            continue  # the stream that needs its picture names it
    if first:
        raise DataError(
            f"{where}: {images.name}: none of {len(numbers)} examples that were tried has a text "
            f"to learn, the first: {first}"
        )


def check_prompts(where: str, images: ImageSet, encode: TextTargets) -> None:
    """Refuses a set among whose first prompts some are too long, before work on it is lost.

    Raises:
      DataError: says how many, and what they need.
    """
    # Those of classes and captions are all alike.
    count = min(images.num_examples, MAX_RECORDS if images.first_of_image is not None else 1)
    first = list(examples(images, count))
    kinds = [("prompt", encode.max_prompt, [encode.prompt_of(example) for example in first])]
    if encode.max_question:
        kinds.append(("question", encode.max_question, [example.question for example in first]))
    for kind, limit, texts in kinds:
        lengths = [len(ids) for ids in encode.tokenizer.encode_batch(texts)]
        longest = max(lengths, default=0)
        if longest > limit:
            too_long = sum(length > limit for length in lengths)
            raise DataError(
                f"{where}: {too_long} of {len(texts)} {kind}s that were looked at have more than "
                f"model.max_{kind} {limit} tokens, the longest {longest}: "
                f"{texts[lengths.index(longest)]!r}"
            )


def cut_texts(name: str, images: ImageSet, encode: TextTargets) -> CutTexts:
    """Lengths of the texts of some examples, under a name of the set."""
    found, left_out = TextCounts(), []
    for example in examples(images, MAX_RECORDS):
        try:
            texts, _ = encode.texts(example)
        except TextMisfit as error:
            left_out.append(str(error))
            continue
        prompts = [encode.prompt_of(example)] * len(texts)
        found += count_texts(encode.tokenizer, prompts, texts, encode.max_tokens)
    sizes = encode.max_tokens, found.cut, found.texts, images.size.pairs, found.longest
    return CutTexts(name, *sizes, len(left_out), next(iter(left_out), ""))

"""Pictures as a model of pictures takes them, prepared as in evaluation."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def preparer(
    images: Mapping[str, Mapping[str, Any]],
) -> Callable[[str], Callable[[np.ndarray], np.ndarray]]:
    """Task -> pixels uint8[H, W, 3] -> float32[S, S, 3].

    Args:
      images: task -> fields of the `Preprocess` of its pictures, see `ImageServing`.

    Raises:
      ImportError: TensorFlow is not installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "pictures are prepared with TensorFlow: pip install 'twelve_in_one[data]'"
        ) from error

    from twelve_in_one.data.images import pipeline

    seed = tf.constant([0, 0])

    @functools.cache
    def prepare(task: str) -> Callable[[np.ndarray], np.ndarray]:
        options = pipeline.Preprocess(**images[task])
        return lambda pixels: pipeline.preprocess(tf.constant(pixels), seed, options).numpy()

    return prepare

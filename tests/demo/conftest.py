"""A small random model of pictures, in memory and as a folder."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image
from reference.memory_split import TOKENIZER

from twelve_in_one import predict
from twelve_in_one.checkpoints import model_folder
from twelve_in_one.data.regions.descriptor import FEATURE_DIM
from twelve_in_one.data.regions.extractor import PixelExtractor
from twelve_in_one.data.serving import Serving
from twelve_in_one.data.stored.preprocessing import Preprocessing
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.tasks.twelve import TWELVE

TASKS = tuple(
    dataclasses.replace(task, max_tokens=9, max_regions=10, detected_slots=6) for task in TWELVE
)
COLORS = ((200, 40, 40), (40, 70, 200), (40, 150, 60))


@pytest.fixture(scope="session")
def demo_parts(tiny_config, random_params):
    """Parameters, config and `Serving`."""
    preprocessing = Preprocessing(
        vocab_sha256=TOKENIZER.sha256,
        vocab_size=TOKENIZER.vocab_size,
        lower_case=True,
        max_tokens={task.name: task.max_tokens for task in TASKS},
        max_regions={task.name: task.max_regions for task in TASKS},
        region_feature_dim=FEATURE_DIM,
        region_source="pixels",
        image_descriptor=PixelExtractor(9).name,
    )
    config = tiny_config(
        text={"num_layers": 1},
        visual={"num_layers": 1},
        text_connections=(0,),
        visual_connections=(0,),
        vocab_size=TOKENIZER.vocab_size,
        num_tasks=20,
        region_feature_dim=FEATURE_DIM,
    )
    answers = {"vqa": ("yes", "no", "two", "red"), "gqa": ("left", "right", "blue")}
    return (
        random_params(config),
        config,
        Serving(TASKS, TOKENIZER, answers, preprocessing),
    )


@pytest.fixture(scope="session")
def predictor(demo_parts):
    return predict.Predictor(*demo_parts, devices=jax.devices()[:1], max_batch=2)


@pytest.fixture(scope="session")
def model_path(demo_parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "model"
    params, config, serving = demo_parts
    model_folder.save(path, params, Vilbert(config), serving)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Three files, of two squares each."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number in range(3):
        pixels = np.full((90, 120, 3), 225, np.uint8)
        pixels[20:50, 10 + 8 * number : 40 + 8 * number] = COLORS[number]
        pixels[40:75, 80:110] = COLORS[(number + 1) % 3]
        paths.append(folder / f"squares-{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths

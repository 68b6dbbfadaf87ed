r"""One model on samples of real records, most of them without pictures: real language, real labels.

    TWELVE_IN_ONE_SAMPLES=SAMPLES python -m twelve_in_one.train \
        --config=real_samples --workdir=workdir/real
    ... --config=real_samples:MORE --workdir=workdir/real    # tested on other files
    ... --config=real_samples:debug --workdir=workdir/debug

SAMPLES and MORE are folders that `python -m twelve_in_one.data.real_samples --help` describes:
VQAv2 questions, RefCOCO, RefCOCO+ and RefCOCOg expressions with boxes, SNLI-VE hypotheses, GQA
questions, and a few COCO photos with captions. SAMPLES is trained and validated on. With MORE the
model is tested on the records in there, which may be ones that nobody has seen; a workdir whose
training is complete is only tested. Other data of the same forms: put them into a folder of the
same file names and point TWELVE_IN_ONE_SAMPLES at it.

What to expect of it: see the README.
"""

import os

import ml_collections

from twelve_in_one.config import defaults
from twelve_in_one.systems.vilbert import Vilbert

_TASKS = ("vqa", "gqa", "coco", "refcoco", "refcoco+", "refcocog", "snli_ve")
_MAX_TOKENS = dict(vqa=18, gqa=22, coco=22, refcoco=14, refcoco_plus=14, refcocog=26, snli_ve=22)
# The whole picture and its candidates, nine at most in the samples; of photos the best proposals.
_MAX_REGIONS = dict(vqa=1, gqa=1, coco=17, refcoco=13, refcoco_plus=13, refcocog=13, snli_ve=1)
# Small: so few questions take many updates rather than large batches, and hypotheses are soon known
# by heart.
_BATCH_SIZE = dict(vqa=96, gqa=16, coco=8, refcoco=32, refcoco_plus=32, refcocog=16, snli_ve=12)


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config; `argument` is "", "debug", or a folder of files to be tested on."""
    config = defaults.get_config(_TASKS)
    config.model = defaults.model_options("tiny")
    for size in Vilbert.data_decides:
        config.model[size] = 0
    # A picture that says nothing should not have to be multiplied away.
    config.model.fusion, config.model.answer_bias = "sum", -6.5
    for stream in (config.model.text, config.model.visual):
        stream.dropout_rate = stream.attention_dropout_rate = 0.0
    config.model.head_dropout_rate = 0.0
    held_out = "" if argument == "debug" else argument
    for key, task in config.task.items():
        task.max_tokens, task.max_regions = _MAX_TOKENS[key], _MAX_REGIONS[key]
        task.batch_size, task.loss_scale = _BATCH_SIZE[key], 1.0
        if key.startswith("refcoco"):
            task.candidates = "annotated"
        tests = ("testA", "testB") if key in ("refcoco", "refcoco_plus") else ("test",)
        task.test_splits = tests if held_out else ("val",)
    config.data.samples_dir = os.environ.get("TWELVE_IN_ONE_SAMPLES", "")
    config.data.held_out_dir = held_out
    config.data.dir, config.data.regions = "workdir/samples", "real"
    config.data.feature_dtype = "float32"

    config.optimizer.learning_rate, config.optimizer.head_learning_rate = 1e-3, 1.0
    config.optimizer.schedule, config.optimizer.clip_norm = "cosine", 1.0
    config.optimizer.weight_decay = 0.2  # over 35,000 updates enough to be felt
    config.schedule.num_rounds = 5500
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 250
    # Of 2,048 answers a score is known to a hundredth: fewer failures in a row mean nothing.
    config.schedule.patience = 3
    config.evaluation.max_validation_examples = 2048
    config.evaluation.text_baselines = True
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 500, 0
    config.log.every_rounds = 50
    if argument == "debug":
        config.schedule.num_rounds = 2
        config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 1
        config.evaluation.max_validation_examples = config.evaluation.max_test_examples = 64
        config.evaluation.text_baselines = False
        config.log.every_rounds = config.checkpoint.every_rounds = 1
        for task in config.task.values():
            task.batch_size = 16
    return config

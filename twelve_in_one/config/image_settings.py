"""Settings of the systems that read pictures rather than regions."""

import dataclasses

from twelve_in_one.config.fields import at_least, one_of, path, share


@dataclasses.dataclass(frozen=True)
class ImageTaskOptions:
    """One task on pictures.

    Attributes:
      title: name for people; "" takes that of the setting.
      group: what is asked: "classify" (which class), "caption", "vqa" (any answer of people, with
        its credit) or "ocr" (the one right answer); of models with vectors of both also "pairs"
        (captions, which are retrieved by picture and pictures by caption) and "zero_shot" (which
        class, by the vectors of the classes' names; never trained). Of detectors "detect" (which
        things are where).
      source: of pictures and texts, as for `data.images.sources`, where {split} stands for the
        split, {raw_dir} for `data.raw_dir` and {samples_dir} for `data.samples_dir`; or
        "questions:NAME/{split}" and "captions:NAME/{split}" for a dataset built in `data.dir` with
        pictures.
      obtain: how to get the source, for the error if it is not there.
      prompt: words that name the task to a decoder; "" takes its name with a colon.
      train: learn from the training split; False only scores the task.
      templates: sentences that name a class of a zero-shot task or of a detector, with {} for its
        name.
      novel: names of a detector's classes whose boxes are not learnt; () takes those that LVIS
        calls rare.
      flip: mirror half of the training pictures; not where left and right or letters matter.
      random_crop: train on a random box of the picture, see `images`.
      class_names: file with the names of the classes, see `data.images.class_names`; "" takes those
        of the source.
      train_split: for training.
      val_split: watched by stop-and-go.
      test_splits: scored at the end.
      max_train_examples: use about the first so many; 0 uses all.
      published_pairs: of picture and text in the training set, and `published_images`; 0 if they
        are not known. For a description of a run whose data is not there.
      weight: share of the rows of a mixed stream with `mixture.weighting` "explicit", in any unit.
      batch_size: examples per update, over all devices, of a task that is not mixed.
      accumulate: parts to cut such a batch into.
      loss_scale: factor on the loss of such a task.
    """

    title: str = ""
    group: str = one_of(
        "classify",
        "caption",
        "vqa",
        "ocr",
        "pairs",
        "zero_shot",
        "detect",
        default="classify",
    )
    source: str = ""
    obtain: str = ""
    prompt: str = ""
    train: bool = True
    templates: tuple[str, ...] = ("a photo of a {}.",)
    novel: tuple[str, ...] = ()
    flip: bool = False
    random_crop: bool = True
    class_names: str = path("")
    train_split: str = "train"
    val_split: str = "val"
    test_splits: tuple[str, ...] = ("test",)
    max_train_examples: int = at_least(0, 0)
    published_pairs: int = at_least(0, 0)
    published_images: int = at_least(0, 0)
    weight: float = at_least(0.0, 1.0)
    batch_size: int = at_least(1, 128)
    accumulate: int = at_least(1, 1)
    loss_scale: float = at_least(0.0, 1.0)

    @property
    def learns(self) -> bool:
        """Whether a run trains on it."""
        return self.train and self.group != "zero_shot"

    @property
    def first_split(self) -> str:
        """The split whose classes are those of the task."""
        return self.train_split if self.learns else self.val_split


@dataclasses.dataclass(frozen=True)
class MixtureOptions:
    """Batches whose rows come from all tasks; see `mixing/mixed.py`.

    Attributes:
      weighting: shares of the tasks: proportional to their "pairs" of picture and text or to their
        "images", "equal", by "temperature", or "explicit" as each task's `weight`; "" does not mix:
        every batch is of one task.
      temperature: of that weighting: pairs ** (1 / temperature).
      batch_size: rows per update, over all devices.
      accumulate: parts to cut a batch into.
    """

    weighting: str = one_of("", "pairs", "images", "equal", "temperature", "explicit", default="")
    temperature: float = at_least(1e-3, 2.0)
    batch_size: int = at_least(1, 512)
    accumulate: int = at_least(1, 1)


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """From a picture to a model's pixels; the side is the model's. See `data/images/pipeline.py`.

    Attributes:
      crop_area: smallest share of the picture's area in a random box.
      short_side: evaluation resizes the shorter side to this and takes the middle; 0 takes 256/224
        of the model's side, -1 squeezes the whole picture into a square, as tasks do in training
        that take no random box.
      train_side: training squeezes pictures that take no random box into a square of this side, and
        takes a random square of the model's side (MaMMUT: 272 for 224); 0 takes the whole picture.
      randaugment_layers: operations of RandAugment on training pictures; 0 for none.
      randaugment_magnitude: how strong they are, 0 to 10.
      antialias: average while shrinking to a square or with a random box.
      frame_stride: of systems of clips: every how many frames to take one; 0 takes as many as the
        model reads from all over the clip.
      random_frames: draw which, in training.
      max_unreadable_share: largest share of unreadable pictures among a few that are tried first.
      encoder: files that `init_from.path` is made of if it does not exist, as
        `convert --to encoder` takes them; "" makes nothing.
      tokens: folder for the tokens of all pictures by a frozen encoder, of `init_from.path`; they
        are computed once, and training reads them instead of pictures. "" encodes every batch.
    """

    crop_area: float = share(0.05)
    short_side: int = at_least(-1, 0)
    train_side: int = at_least(0, 0)
    randaugment_layers: int = at_least(0, 0)
    randaugment_magnitude: float = at_least(0.0, 10.0)
    antialias: bool = False
    frame_stride: int = at_least(0, 0)
    random_frames: bool = True
    max_unreadable_share: float = share(0.05)
    encoder: str = path("")
    tokens: str = path("")


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """From texts to tokens.

    Attributes:
      tokenizer: a SentencePiece model or another file of `data.texts`; "" makes a SentencePiece
        model of `vocab_size` pieces from the training texts.
      vocab_size: of the model to make.
      lower_case: whether texts are lower-cased first.
      cut: texts that are too long: "sticky" ends them with the end of text, "plain" only cuts.
    """

    tokenizer: str = path("")
    vocab_size: int = at_least(8, 1000)
    lower_case: bool = True
    cut: str = one_of("sticky", "plain", default="sticky")

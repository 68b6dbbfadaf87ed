"""From the bytes of a picture to a model's input, as TensorFlow graph operations.

`Preprocess` holds the options, `augment` applies them to a decoded picture and `read` to an encoded
one; both return bytes, which `ops.value_range` turns into a model's input. Everything random is a
function of a seed int32[2], which `example_seed` makes from (seed, epoch, example), so any worker,
host or resumed run makes the same example.

Shape letters: S side of the result in pixels, Y rows and X columns of a picture, T frames of a
clip.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from twelve_in_one.data.images import ops, randaugment

_JPEG = b"\xff\xd8\xff"
# The default, a fast transform, gives pixels that differ from Pillow's.
_EXACT = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
# If colours have half the resolution, a pixel depends on its neighbours: it would differ at the
# edges of a box that is decoded alone.
_MARGIN = 2


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Preprocessing of a picture; the defaults are big_vision's for evaluation at 224 pixels.

    Its three usual recipes: `Preprocess(size, short_side=...)` for evaluation, `Preprocess(size)`
    for pretraining, `Preprocess(size, random_crop=True, flip=True)` for training.

    Attributes:
      size: S, side of the result in pixels.
      short_side: resize the shorter side to this and take the middle; None resizes the whole
        picture to a square, ignoring its aspect ratio.
      letterbox: keep the aspect ratio, fit the longer side, and pad below and to the right.
      random_crop: take a random box instead (Szegedy et al. 2015).
      crop_area: of that box, smallest and largest share of the picture's area.
      enlarged: resize to a square of this side first, and take a random square of `size`; 0 does
        neither.
      flip: left and right, for half of the examples; not for tasks that tell left from right.
      randaugment_layers: operations of RandAugment; 0 for none.
      randaugment_magnitude: how strong they are, 0 to 10.
      antialias: average while shrinking, also with a random box or to a square.
      low: value of black.
      high: value of white.
      shrink_while_decoding: let JPEG decode at a half, a quarter or an eighth if the result is
        still smaller. That is faster, but changes values: the decoder averages differently.
      frames: T, to take of a clip and to treat alike; 0 takes one picture.
      frame_stride: which ones, see `clips.pick`.
      random_frames: draw them.
    """

    size: int = 224
    short_side: int | None = None
    letterbox: bool = False
    random_crop: bool = False
    crop_area: tuple[float, float] = (0.05, 1.0)
    enlarged: int = 0
    flip: bool = False
    randaugment_layers: int = 0
    randaugment_magnitude: float = 10.0
    antialias: bool = False
    low: float = -1.0
    high: float = 1.0
    shrink_while_decoding: bool = False
    frames: int = 0
    frame_stride: int = 0
    random_frames: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be positive, is {self.size}")
        if self.short_side is not None and self.short_side < self.size:
            raise ValueError(
                f"short_side {self.short_side} must be at least size {self.size}, so that there is "
                "a middle to take"
            )
        if self.random_crop and self.short_side is not None:
            raise ValueError("random_crop takes a box of the whole picture: leave out short_side")
        if self.enlarged and (self.random_crop or self.short_side is not None):
            raise ValueError("enlarged takes a square of its own: leave out the other crops")
        if self.letterbox and (self.enlarged or self.random_crop or self.short_side is not None):
            raise ValueError("letterbox takes the whole picture: leave out all crops")
        if 0 < self.enlarged < self.size:
            raise ValueError(f"enlarged {self.enlarged} must be at least size {self.size}")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"crop_area must be two shares from 0 to 1, is {self.crop_area}")
        if self.randaugment_layers < 0:
            raise ValueError(f"randaugment_layers is {self.randaugment_layers}")
        if not 0 <= self.randaugment_magnitude <= randaugment.MAX_MAGNITUDE:
            raise ValueError(f"randaugment_magnitude is {self.randaugment_magnitude}, not 0 to 10")
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if min(self.frames, self.frame_stride) < 0:
            raise ValueError(
                f"frames {self.frames} and frame_stride {self.frame_stride} must not be negative"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """S, S and 3, for clips behind T."""
        return (*([self.frames] if self.frames else ()), self.size, self.size, 3)

    @property
    def is_random(self) -> bool:
        """Returns whether the result depends on the seed."""
        return bool(self.enlarged) or self.random_crop or self.flip or self.randaugment_layers > 0


def base_seed(seed: tuple[int, ...]) -> np.ndarray:
    """int32[2] made from whole numbers, for `example_seed`."""
    return np.random.SeedSequence(seed).generate_state(2).view(np.int32)


def example_seed(base: tf.Tensor, epoch: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """int32[2] for the random operations on one example in one epoch.

    Args:
      base: int32[2], see `base_seed`.
      epoch: int64[].
      number: int64[], of the example.
    """
    fold = tf.random.experimental.stateless_fold_in
    return fold(fold(base, epoch), number)


def decode(data: tf.Tensor, options: Preprocess | None = None) -> tf.Tensor:
    """uint8[Y, X, 3] from the bytes of a JPEG or PNG file, as it is stored.

    The pixels are those of `load_image` for files that satisfy `encoded.is_plain` or that
    `encoded.picture_of` made, unless the options ask to shrink while decoding.

    Raises:
      tf.errors.InvalidArgumentError: the bytes are damaged, or not such a file.
    """
    small = options is not None and options.shrink_while_decoding
    image = tf.cond(
        _is_jpeg(data),
        lambda: _small_jpeg(data, options) if small else tf.io.decode_jpeg(data, **_EXACT),
        lambda: tf.io.decode_png(data, channels=3),
    )
    return tf.ensure_shape(image, [None, None, 3])


def preprocess(image: tf.Tensor, seed: tf.Tensor, options: Preprocess) -> tf.Tensor:
    """A picture as a model takes it: `augment`, and the range of values.

    Args:
      image: uint8[Y, X, 3].
      seed: int32[2], see `example_seed`.
      options: of the preprocessing.

    Returns:
      float32[S, S, 3].
    """
    return ops.value_range(augment(image, seed, options), options.low, options.high)


def augment(image: tf.Tensor, seed: tf.Tensor, options: Preprocess) -> tf.Tensor:
    """Like `preprocess`, but uint8[S, S, 3]: a batch takes a quarter of the memory."""
    crop_seed, rest = _seeds(seed)
    if options.random_crop:
        box = ops.inception_box(tf.shape(image), crop_seed, area=options.crop_area)
        image = ops.crop(image, box)
    if options.enlarged:
        image = ops.resize(image, options.enlarged, antialias=options.antialias)
        image = ops.random_square(image, options.size, crop_seed)
    return _after_crop(image, rest, options)


def read(data: tf.Tensor, seed: tf.Tensor, options: Preprocess) -> tf.Tensor:
    """Decodes and augments; decodes only the needed part of a JPEG.

    For bytes known to be complete: damage in a part that is not decoded stays unseen.

    Args:
      data: bytes as `decode` takes them.
      seed: int32[2], see `example_seed`.
      options: of the preprocessing.

    Returns:
      uint8[S, S, 3], equal to `augment(decode(data), ...)` unless `shrink_while_decoding`.

    Raises:
      tf.errors.InvalidArgumentError: see `decode`.
    """
    crop_seed, rest = _seeds(seed)
    if options.shrink_while_decoding or not options.random_crop:
        return augment(decode(data, options), seed, options)

    def box_of(shape: tf.Tensor) -> tf.Tensor:
        return ops.inception_box(shape, crop_seed, area=options.crop_area)

    def from_jpeg() -> tf.Tensor:
        size = tf.io.extract_jpeg_shape(data)[:2]
        box = box_of(tf.concat([size, [3]], axis=0))
        start = tf.maximum(box[:2] - _MARGIN, 0)
        stop = tf.minimum(box[:2] + box[2:] + _MARGIN, size)
        wider = tf.concat([start, stop - start], axis=0)
        image = tf.io.decode_and_crop_jpeg(data, wider, **_EXACT)
        return ops.crop(image, tf.concat([box[:2] - start, box[2:]], axis=0))

    def from_png() -> tf.Tensor:
        image = tf.io.decode_png(data, channels=3)
        return ops.crop(image, box_of(tf.shape(image)))

    image = tf.cond(_is_jpeg(data), from_jpeg, from_png)
    return _after_crop(tf.ensure_shape(image, [None, None, 3]), rest, options)


def _seeds(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Seeds for the crop and for the operations after it."""
    first, rest = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    return first, rest


def _is_jpeg(data: tf.Tensor) -> tf.Tensor:
    return tf.equal(tf.strings.substr(data, 0, len(_JPEG)), _JPEG)


def _after_crop(image: tf.Tensor, seed: tf.Tensor, options: Preprocess) -> tf.Tensor:
    if options.short_side is not None:
        image = ops.resize_small(image, options.short_side)
        image = ops.central_crop(image, options.size)
    elif options.letterbox:
        image = ops.letterbox(image, options.size, antialias=options.antialias)
    else:
        image = ops.resize(image, options.size, antialias=options.antialias)
    flip_seed, seed = _seeds(seed)
    if options.flip:
        image = ops.random_flip(image, flip_seed)
    if options.randaugment_layers:
        image = randaugment.randaugment(
            image, seed, options.randaugment_layers, options.randaugment_magnitude
        )
    return tf.ensure_shape(image, [options.size, options.size, 3])


def _small_jpeg(data: tf.Tensor, options: Preprocess) -> tf.Tensor:
    """Decodes a JPEG at the smallest scale at which no side would have to grow in the resizing.

    The size of a random box is unknown before the draw, so its smallest share counts.
    """

    def scaled(ratio: int) -> Callable[[], tf.Tensor]:
        return lambda: tf.io.decode_jpeg(data, ratio=ratio, **_EXACT)

    side = tf.cast(tf.reduce_min(tf.io.extract_jpeg_shape(data)[:2]), tf.float32)
    if options.random_crop:
        side *= options.crop_area[0] ** 0.5
    times = side / float(options.short_side or options.enlarged or options.size)
    return tf.case([(times >= ratio, scaled(ratio)) for ratio in (8, 4, 2)], default=scaled(1))

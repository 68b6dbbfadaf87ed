"""Tokens of clips: sparse tubes beside the patches of a few frames (Piergiovanni et al. 2023).

MaMMUT reads a clip in one pass of the encoder that it learnt on pictures. Its tokens are the
patches of every `every`-th frame, embedded as those of a picture are, and tubes: blocks of pixels
of several frames, far apart, each kind with a linear map of its own. All have a fixed sine and
cosine embedding of their centres; of patches it is weighted by a gate, tanh of a learned number,
which is 0 at first, because they have the learned positions of pictures too.

Letters: B clips, T frames, Y and X pixels, P patches of a frame, N frames with patches, L tokens of
tubes, D width.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models.two_stream.config import Numerics

Array = jax.Array
Tube = tuple[int, ...]

# Of 32 frames of 224 pixels (Piergiovanni et al. 2023): frames, rows and columns of the kernel, of
# the stride, and of the offset.
PAPER_TUBES: tuple[Tube, ...] = (
    (8, 8, 8, 16, 32, 32, 0, 0, 0),
    (16, 4, 4, 6, 32, 32, 4, 8, 8),
    (4, 12, 12, 16, 32, 32, 0, 16, 16),
)
_PERIOD = 10_000.0


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """How an encoder of pictures reads clips.

    Attributes:
      frames: T; 0 for an encoder of pictures.
      every: one of so many frames has patches, from the first on.
      tubes: nine numbers each, frames, rows and columns of the kernel, of the stride, and of the
        offset; () reads the patches of frames alone.
      fixed: whether places have a fixed embedding; without it tubes have a learned one.
      gate: whether that of patches is weighted by a gate, or added as it is.
    """

    frames: int = 0
    every: int = 32
    tubes: tuple[tuple, ...] = PAPER_TUBES
    fixed: bool = True
    gate: bool = True

    def misfits(self, size: tuple[int, int]) -> list[str]:
        """What does not fit pictures of `size`, rows and columns, in words."""
        if self.frames < 1 or self.every < 1:
            return [f"clip.frames {self.frames} and clip.every {self.every} should be positive"]
        errors = []
        for tube in self.tubes:
            if len(tube) != 9 or min(tube[:6]) < 1 or min(tube[6:]) < 0:
                errors.append(
                    f"clip.tubes: {tube} should be nine numbers: kernel and stride above 0, offset"
                )
            elif any(n < 1 for n in tube_grid(tube, (self.frames, *size))):
                errors.append(f"clip.tubes: {tube} does not fit into {(self.frames, *size)}")
        return errors

    @property
    def patch_frames(self) -> int:
        """N."""
        return -(-self.frames // self.every)


def tube_grid(tube: Tube, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Places of a tube over time, down and across, in clips of T frames, Y rows and X columns."""
    kernel, stride, offset = tube[:3], tube[3:6], tube[6:]
    return tuple(
        (n - o - k) // s + 1 for n, k, s, o in zip(shape, kernel, stride, offset, strict=True)
    )


def num_tokens(config: ClipConfig, size: tuple[int, int], patches: int) -> int:
    """Tokens of a clip of frames of `size`, with `patches` P; 539 with the defaults at 224 / 16."""
    shape = (config.frames, *size)
    tubes = sum(math.prod(tube_grid(tube, shape)) for tube in config.tubes)
    return config.patch_frames * patches + tubes


def centres(grid: tuple[int, int, int], tube: Tube) -> np.ndarray:
    """float64[L, 3], frame, row and column of the middle of each place of a tube."""
    kernel, stride, offset = (np.array(tube[i : i + 3]) for i in (0, 3, 6))
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1).reshape(-1, 3)
    return (places * stride + offset + kernel // 2).astype(np.float64)


def fixed_embedding(places: np.ndarray, width: int) -> np.ndarray:
    """float32[L, D] of places float[L, 3]: frame, row, column.

    Sines of t, cosines of t, then those of x, then of y, each of n = D // 6 frequencies
    10000^(-j / n); what is left of D is zeros.
    """
    count = width // 6
    frequencies = _PERIOD ** (-np.arange(count) / max(count, 1))
    t, y, x = (places[:, i : i + 1] * frequencies for i in range(3))
    waves = [wave(axis) for axis in (t, x, y) for wave in (np.sin, np.cos)]
    rest = np.zeros((len(places), width - 6 * count))
    return np.concatenate([*waves, rest], axis=1).astype(np.float32)


class ClipTokens(nn.Module):
    """Tokens of tubes, and the fixed embedding of patches, with the parameters of both."""

    config: ClipConfig
    width: int
    patch_size: int
    numerics: Numerics

    @nn.compact
    def __call__(self, clips: Array, patches: Array, grid: tuple[int, int]) -> Array:
        """The tokens of clips.

        Args:
          clips: float[B, T, Y, X, 3].
          patches: [B * N, P, D], of the frames with patches, with their learned positions.
          grid: rows and columns of patches of a frame.

        Returns:
          [B, N * P + L, D], patches frame by frame, then tube by tube.
        """
        config, width, dtype = self.config, self.width, self.numerics.dtype
        found = [patches.reshape(len(clips), -1, width)]
        if config.fixed:
            side = self.patch_size
            patch = (1, side, side, config.every, side, side, 0, 0, 0)
            fixed = fixed_embedding(centres((config.patch_frames, *grid), patch), width)
            weight = 1.0
            if config.gate:
                init = nn.with_logical_partitioning(nn.initializers.zeros_init(), ())
                weight = jnp.tanh(self.param("gate", init, ()))
            found[0] = found[0] + (weight * fixed[None]).astype(dtype)
        for number, tube in enumerate(config.tubes):
            found.append(self._tube(number, tube, clips))
        return jnp.concatenate(found, axis=1)

    def _tube(self, number: int, tube: Tube, clips: Array) -> Array:
        """[B, places of the tube, D]."""
        config, width, dtype = self.config, self.width, self.numerics.dtype
        axes = (None, None, None, None, "visual_embed")
        tokens = nn.Conv(
            width,
            tube[:3],
            strides=tube[3:6],
            padding="VALID",
            dtype=dtype,
            kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[-1:]),
            name=f"tube_{number}",
        )(clips[:, tube[6] :, tube[7] :, tube[8] :].astype(dtype))
        grid = tokens.shape[1:4]
        tokens = tokens.reshape(len(clips), -1, width)
        if config.fixed:
            return tokens + jnp.asarray(fixed_embedding(centres(grid, tube), width), dtype)[None]
        init = nn.with_logical_partitioning(
            nn.initializers.normal(width**-0.5), (None, "visual_embed")
        )
        shape = (tokens.shape[1], width)
        return tokens + self.param(f"position_{number}", init, shape).astype(dtype)[None]

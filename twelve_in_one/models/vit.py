"""The Vision Transformer: pixels to tokens, and optionally to one vector.

Pre-norm blocks on the embeddings of patches. The published families (big_vision's ViT and SigLIP,
CLIP, DINOv2) differ only in config: the pooling, a class token, registers, a norm
before the blocks, the activation, the epsilon. With `clip` it reads clips, as more tokens.

Shape letters: B batch, T frames, Y and X pixels, P patches (a grid of rows x columns), L tokens
(class token, registers, patches, then tubes), D width, N heads, C classes.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models import conv_stem, positions
from twelve_in_one.models.conv_stem import ConvStem
from twelve_in_one.models.layers import dense, dropout, fold_key, layer_norm
from twelve_in_one.models.pre_norm import AttentionPool, BlocksConfig, run_blocks
from twelve_in_one.models.tubes import ClipConfig, ClipTokens, num_tokens
from twelve_in_one.parallel.sharding import constrain

Array = jax.Array

STEMS = ("patches", "convolutions")
POOLS = ("class", "mean", "all", "attention", "first", "none")


@dataclasses.dataclass(frozen=True)
class ViTConfig(BlocksConfig):
    """Sizes and numerics of a Vision Transformer, besides those of its blocks.

    Attributes:
      image_size: rows and columns of pixels; multiples of `patch_size`.
      patch_size: side of a patch in pixels.
      pool: how tokens become one vector: "class" takes the class token (big_vision's tok), "mean"
        the mean of the patches (gap), "all" that of all tokens, "attention" the output of a learned
        probe (map), "first" the first patch; with "none" there is no vector, and classes are scored
        for each token.
      class_token: whether there is one; always with "class".
      num_registers: extra tokens for the model to write to (Darcet et al. 2023).
      representation: a linear layer and tanh between pooled vector and classes (pre_logits).
      num_classes: C; 0 omits the classifier.
      zero_classifier: whether its kernel starts at zero, so that the first loss is that of a guess
        (big_vision), or at random.
      stem: what comes before the blocks: "patches", one linear map of each, or "convolutions"
        (`conv_stem.py`), which shrink pictures as much, for small models trained from scratch.
      patch_bias: whether the patch embedding has a bias; CLIP's has none.
      pre_norm: a norm of the embedded tokens before the first block (CLIP).
      norm_pooled: the last norm is that of the pooled vector, and tokens are those of the last
        block (open_clip), instead of a norm of all tokens.
      window: side in patches of the attention windows; 0 for none. With windows there are neither
        class token nor registers.
      global_layers: blocks that attend to everything despite windows.
      position_grid: rows and columns of the table of positions, which is enlarged to the grid of
        patches (a detector's pictures are larger than those of pretraining); () for the same.
      cropped_positions: side in patches of the larger picture of which every training picture is
        taken for a random crop (`positions.py`); 0 for none.
      clip: how clips are read, if it reads any.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    pool: Literal["class", "mean", "all", "attention", "first", "none"] = "mean"
    class_token: bool = False
    num_registers: int = 0
    representation: bool = False
    num_classes: int = 0
    zero_classifier: bool = True
    stem: Literal["patches", "convolutions"] = "patches"
    patch_bias: bool = True
    pre_norm: bool = False
    norm_pooled: bool = False
    window: int = 0
    global_layers: tuple[int, ...] = ()
    position_grid: tuple[int, ...] = ()
    cropped_positions: int = 0
    clip: ClipConfig = ClipConfig()

    width_axis: ClassVar[str] = "visual_embed"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Y, X and 3 of a picture, or T, Y, X and 3 of a clip."""
        return (*([self.clip.frames] if self.clip.frames else ()), *self.image_size, 3)

    @property
    def num_tokens(self) -> int:
        """L."""
        count = self.grid[0] * self.grid[1]
        if self.clip.frames:
            count = num_tokens(self.clip, self.image_size, count)
        return count + self.class_token + self.num_registers

    def _size_errors(self) -> list[str]:
        errors = super()._size_errors()
        if self.patch_size < 1:
            errors.append(f"patch_size must be positive, got {self.patch_size}")
        return errors

    def _errors(self) -> list[str]:
        errors = super()._errors()
        if any(size < 1 or size % self.patch_size for size in self.image_size):
            errors.append(
                f"image_size {self.image_size} is not made of patches of {self.patch_size} pixels"
            )
        if self.stem not in STEMS:
            errors.append(f"stem {self.stem!r} is none of {', '.join(STEMS)}")
        elif self.stem == "convolutions":
            errors += conv_stem.misfits(self.hidden_dim, self.patch_size)
        if self.pool not in POOLS:
            errors.append(f"pool {self.pool!r} is none of {', '.join(POOLS)}")
        if self.pool == "class" and not self.class_token:
            errors.append('pool "class" needs class_token=True')
        if self.norm_pooled and self.pool == "none":
            errors.append('norm_pooled needs a pooled vector: not pool "none"')
        if self.window and (self.class_token or self.num_registers):
            errors.append("windows leave no place for a class token or registers")
        if self.window and any(side % self.window for side in self.grid):
            errors.append(f"window {self.window} does not divide the grid {self.grid}")
        if self.window and self.scan_layers:
            errors.append("scan_layers needs blocks that are all alike: not with windows")
        if self.clip.frames:
            errors += self.clip.misfits(self.image_size)
        if self.clip.frames and self.window:
            errors.append("windows are of one grid of patches: not with clips")
        if any(not 0 <= layer < self.num_layers for layer in self.global_layers):
            errors.append(f"global_layers {self.global_layers}: there are {self.num_layers} layers")
        if self.position_grid and (len(self.position_grid) != 2 or min(self.position_grid) < 1):
            errors.append(f"position_grid {self.position_grid} should be rows and columns")
        if self.cropped_positions and self.position_grid:
            errors.append(
                "cropped_positions are for pretraining, position_grid for what follows it"
            )
        if self.cropped_positions and not self.grid[0] == self.grid[1] <= self.cropped_positions:
            errors.append(
                f"cropped_positions {self.cropped_positions}: should be a larger side than that of "
                f"the grid {self.grid}, which should be square"
            )
        return errors


# width, depth, heads, feed-forward width (Dosovitskiy et al. 2021; Zhai et al. 2022; SoViT).
_SIZES = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "So400m": (1152, 27, 16, 4304),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
    "G": (1664, 48, 16, 8192),
}


def named_vit(name: str, **fields: Any) -> ViTConfig:
    """A published size, such as "B/16"; `fields` are any of `ViTConfig`'s.

    Raises:
      ValueError: no such size, or incompatible fields.
    """
    size, slash, patch = name.partition("/")
    if size not in _SIZES or not slash or not patch.isdecimal():
        raise ValueError(f"no ViT {name!r}: SIZE/PATCH with SIZE one of {', '.join(_SIZES)}")
    width, depth, heads, mlp = _SIZES[size]
    return ViTConfig(width, depth, heads, mlp, **dict(patch_size=int(patch)) | fields)


class ViT(nn.Module):
    """A Vision Transformer."""

    config: ViTConfig

    @nn.compact
    def __call__(
        self, images: Array, dropout_key: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Encodes images.

        Args:
          images: float[B, Y, X, 3] of `config.image_size`, or clips float[B, T, Y, X, 3], in the
            value range used to train the weights (big_vision: -1 to 1).
          dropout_key: key of dropout and drop path, or None.

        Returns:
          The tokens after the last norm (before it with `norm_pooled`), [B, L, D], and the named
          intermediates: "patches" [B, rows, columns, D], "embedded" [B, P, D] (with positions; of
          clips, whose frames with patches are rows of "patches", with those of tubes),
          "block_i/NAME" of every block (not scanned), "pooled" [B, D], "representation" [B, D],
          "logits" [B, C], or [B, L, C] with pool "none".

        Raises:
          ValueError: images of another size.
        """
        config, numerics = self.config, self.config.numerics
        if images.shape[1:] != config.input_shape:
            raise ValueError(
                f"images of shape {images.shape[1:]}, the model is for {config.input_shape}"
            )
        x, aux = self._embed(images, dropout_key)
        windows = {
            i: (config.grid, config.window)
            for i in range(config.num_layers)
            if config.window and i not in config.global_layers
        }
        x, blocks = run_blocks(config, x, fold_key(dropout_key, 1), windows)
        aux |= blocks
        norm = layer_norm("visual_embed", numerics, name="final_norm")
        tokens = x if config.norm_pooled else norm(x)
        aux |= self._head(tokens, norm)
        return tokens, aux

    def _embed(self, images: Array, key: Array | None) -> tuple[Array, dict[str, Array]]:
        config, numerics, width = self.config, self.config.numerics, self.config.hidden_dim
        size = (config.patch_size,) * 2
        axes = (None, None, None, "visual_embed")
        clips = images
        if config.clip.frames:
            # [B, T, Y, X, 3] -> [B * N, Y, X, 3], the frames with patches
            images = clips[:, :: config.clip.every].reshape(-1, *config.image_size, 3)
        if config.stem == "convolutions":
            halvings = config.patch_size.bit_length() - 1
            images = ConvStem(width, halvings, "visual_embed", numerics, name="stem")(images)
            size = (1, 1)
        # [B, Y, X, 3] -> [B, rows, columns, D]
        patches = nn.Conv(
            width,
            size,
            strides=size,
            padding="VALID",
            use_bias=config.patch_bias,
            dtype=numerics.dtype,
            kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[-1:]),
            name="patch_embedding",
        )(images.astype(numerics.dtype))
        x = patches.reshape(patches.shape[0], -1, width) + self._positions(images.shape[0], key)
        if config.clip.frames:
            embed = ClipTokens(config.clip, width, config.patch_size, numerics, name="clip")
            x = embed(clips, x, config.grid)
        aux = {"patches": patches, "embedded": x}
        special = []
        if config.class_token:
            special.append(self._table("class_token", 1, 0.0))
        if config.num_registers:
            special.append(self._table("registers", config.num_registers, 1e-6))
        # [B, P, D] -> [B, L, D]
        special = [jnp.broadcast_to(t, (x.shape[0], *t.shape)) for t in special]
        x = jnp.concatenate([*special, x], axis=1)
        x = constrain(x, "act_batch", "act_length", "act_embed")
        if config.pre_norm:
            x = layer_norm("visual_embed", numerics, name="embedding_norm")(x)
        return dropout(x, config.dropout_rate, fold_key(key, 0)), aux

    def _positions(self, count: int, key: Array | None) -> Array:
        """[1, P, D], or [B, P, D] if each of `count` pictures has its own."""
        config = self.config
        grid = config.position_grid or config.grid
        table = self._table("position", grid[0] * grid[1], config.hidden_dim**-0.5)
        if config.cropped_positions and key is not None:
            boxes = positions.random_boxes(fold_key(key, 2), count, config.cropped_positions)
            return positions.cropped(table, grid, config.cropped_positions, boxes)
        return positions.resized(table, grid, config.grid)[None]

    def _table(self, name: str, rows: int, stddev: float) -> Array:
        init = nn.initializers.normal(stddev)
        axes = ("positions" if name == "position" else None, "visual_embed")
        table = self.param(
            name, nn.with_logical_partitioning(init, axes), (rows, self.config.hidden_dim)
        )
        return table.astype(self.config.numerics.dtype)

    def _head(self, tokens: Array, norm: nn.LayerNorm) -> dict[str, Array]:
        """The pooled vector of tokens [B, L, D], and the classes' scores."""
        config, aux = self.config, {}
        special = config.class_token + config.num_registers
        if config.pool == "class":
            x = tokens[:, 0]
        elif config.pool == "mean":
            x = jnp.mean(tokens[:, special:], axis=1)
        elif config.pool == "all":
            x = jnp.mean(tokens, axis=1)
        elif config.pool == "attention":
            x = AttentionPool(config, name="attention_pool")(tokens)
        else:
            x = tokens if config.pool == "none" else tokens[:, special]
        if config.norm_pooled:
            x = norm(x)
        if config.pool != "none":
            aux["pooled"] = x
        if config.representation:
            axes = ("visual_embed", "pooled")
            x = dense(config.hidden_dim, axes, config.numerics, name="representation")(x)
            aux["representation"] = x = jnp.tanh(x)
        if config.num_classes:
            start = (
                nn.initializers.zeros_init()
                if config.zero_classifier
                else nn.initializers.lecun_normal()
            )
            init = nn.with_logical_partitioning(start, ("visual_embed", "labels"))
            aux["logits"] = nn.Dense(
                config.num_classes,
                dtype=config.dtype,
                kernel_init=init,
                bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("labels",)),
                name="classifier",
            )(x)
        return aux


def init_params(config: ViTConfig, key: Array) -> Any:
    """Random parameters with their logical axis names, as big_vision draws them."""
    images = jnp.zeros((1, *config.input_shape), config.dtype)
    return ViT(config).init(key, images)["params"]


def abstract_params(config: ViTConfig) -> Any:
    """Shapes of `init_params`, without computing anything."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


def resize_positions(
    table: np.ndarray,
    old: tuple[int, int],
    new: tuple[int, int],
    method: Literal["zoom", "resize", "bicubic"] = "zoom",
) -> np.ndarray:
    """A position table for another grid.

    Args:
      table: float[P, D] of the grid `old`.
      old: rows and columns.
      new: rows and columns.
      method: "zoom" is bilinear, keeps corners in place and does not average when shrinking
        (big_vision's ViT); "resize" is bilinear by `jax.image.resize`, which takes positions as
        cell centres and averages when shrinking (scenic, RO-ViT); "bicubic" is PyTorch's, with
        cell centres and without averaging (Hugging Face's models).

    Returns:
      float32[P', D].
    """
    if method == "resize":
        grid = jnp.asarray(table, jnp.float32).reshape(*old, -1)
        resized = jax.image.resize(grid, (*new, grid.shape[-1]), "bilinear")
        return np.asarray(resized).reshape(-1, grid.shape[-1])
    grid = np.asarray(table, np.float64).reshape(*old, -1)
    weights = _bicubic_weights if method == "bicubic" else _zoom_weights
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        # [after, before] x [.., before, ..] -> [.., after, ..]
        grid = np.moveaxis(np.tensordot(weights(before, after), grid, (1, axis)), 0, axis)
    return grid.reshape(-1, grid.shape[-1]).astype(np.float32)


def _zoom_weights(before: int, after: int) -> np.ndarray:
    """[after, before], linear between the neighbours, from corner to corner."""
    distance = np.linspace(0.0, before - 1, after)[:, None] - np.arange(before)
    return np.maximum(0.0, 1.0 - np.abs(distance))


def _bicubic_weights(before: int, after: int) -> np.ndarray:
    """[after, before], of the four neighbours of each centre, with PyTorch's a = -0.75."""
    a, weights = -0.75, np.zeros((after, before))
    middles = (np.arange(after) + 0.5) * before / after - 0.5
    for step in range(-1, 3):
        x = np.abs(middles - (np.floor(middles) + step))
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        column = np.clip(np.floor(middles).astype(int) + step, 0, before - 1)
        np.add.at(weights, (np.arange(after), column), np.where(x <= 1, near, far))
    return weights


def resize_patches(kernel: np.ndarray, size: int) -> np.ndarray:
    """A patch embedding's kernel for patches of another size (Beyer et al. 2022, FlexiViT).

    Its products with bilinearly resized patches are as close as possible to those of the old
    kernel with the original patches: equal if patches grow.

    Args:
      kernel: float[p, p, 3, D].
      size: side of the new patches in pixels.

    Returns:
      float32[size, size, 3, D].
    """
    old = kernel.shape[0]
    basis = jnp.eye(old * old, dtype=jnp.float32).reshape(old * old, old, old)
    shape = (old * old, size, size)
    resized = jax.image.resize(basis, shape, "bilinear", antialias=False)
    # [p * p, s * s]: patches are resized by its transpose, kernels by its pseudo-inverse.
    inverse = np.linalg.pinv(np.asarray(resized, np.float64).reshape(old * old, -1))
    flat = np.asarray(kernel, np.float64).reshape(old * old, -1)
    return (inverse @ flat).reshape(size, size, *kernel.shape[2:]).astype(np.float32)

"""The Vision Transformer: pixels to tokens, and to one vector where one is wanted.

Pre-norm blocks on the embeddings of patches. What differs between the published families
(big_vision's ViT and SigLIP, CLIP, DINOv2) is config: the pooling, a class token, registers, a norm
before the blocks, the activation, the epsilon.

Shape letters: B batch, Y and X pixels, P patches (a grid of rows x columns), L tokens (class token,
registers, then patches), D width, N heads, C classes.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models.layers import Attention, activation, dense, dropout, fold_key, layer_norm
from twelve_in_one.models.two_stream.config import ACTIVATIONS, DTYPES, REMAT_POLICIES, Numerics
from twelve_in_one.parallel.sharding import constrain

Array = jax.Array

POOLS = ("class", "mean", "attention", "first", "none")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes and numerics of a Vision Transformer.

    Attributes:
      hidden_dim: width D.
      num_layers: blocks.
      num_heads: attention heads; divides `hidden_dim`.
      mlp_dim: width of the feed-forward blocks.
      image_size: rows and columns of pixels; multiples of `patch_size`.
      patch_size: side of a patch in pixels.
      pool: how tokens become one vector: "class" takes the class token (big_vision's tok), "mean"
        the mean of the patches (gap), "attention" a learned probe's reading of them (map), "first"
        the first patch; with "none" there is no vector, and classes are scored for each token.
      class_token: whether there is one; always with "class".
      num_registers: tokens that are only there to be written to (Darcet et al. 2023).
      representation: a linear layer and tanh between pooled vector and classes (pre_logits).
      num_classes: C; 0 leaves the classifier out.
      patch_bias: whether the patch embedding has a bias; CLIP's has none.
      pre_norm: a norm of the embedded tokens before the first block (CLIP).
      window: side in patches of the windows that attention is confined to; 0 for none. With windows
        there are neither class token nor registers.
      global_layers: blocks that attend to everything all the same.
      activation: one of `config.ACTIVATIONS`.
      layer_norm_eps: added to the variance inside the square root.
      dropout_rate: on embedded tokens, sub-layer outputs and the feed-forward blocks' hidden layer.
      drop_path_rate: share of rows for which the last block's sub-layers are left out; it grows
        linearly from 0 at the first block (stochastic depth).
      initializer_range: see `config.Numerics`.
      dtype: compute dtype.
      scan_layers: run the blocks with `lax.scan`: the same numbers, shorter compilation, stacked
        parameters.
      remat: see `TwoStreamConfig`.
    """

    hidden_dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    pool: Literal["class", "mean", "attention", "first", "none"] = "mean"
    class_token: bool = False
    num_registers: int = 0
    representation: bool = False
    num_classes: int = 0
    patch_bias: bool = True
    pre_norm: bool = False
    window: int = 0
    global_layers: tuple[int, ...] = ()
    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-6
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    initializer_range: float | None = None
    dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"

    def __post_init__(self) -> None:
        errors = _config_errors(self)
        if errors:
            raise ValueError("ViTConfig: " + "; ".join(errors))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def numerics(self) -> Numerics:
        """The settings that every layer shares."""
        return Numerics(self.dtype, self.layer_norm_eps, self.initializer_range)


def _config_errors(config: ViTConfig) -> list[str]:
    errors = [
        f"{name} must be positive, got {getattr(config, name)}"
        for name in ("hidden_dim", "num_layers", "num_heads", "mlp_dim", "patch_size")
        if getattr(config, name) < 1
    ]
    if errors:
        return errors
    if config.hidden_dim % config.num_heads:
        errors.append(
            f"num_heads {config.num_heads} does not divide hidden_dim {config.hidden_dim}"
        )
    if any(size < 1 or size % config.patch_size for size in config.image_size):
        errors.append(
            f"image_size {config.image_size} is not made of patches of {config.patch_size} pixels"
        )
    for name, known in (
        ("pool", POOLS),
        ("activation", ACTIVATIONS),
        ("dtype", DTYPES),
        ("remat", REMAT_POLICIES),
    ):
        if getattr(config, name) not in known:
            errors.append(f"{name} {getattr(config, name)!r} is none of {', '.join(known)}")
    if config.pool == "class" and not config.class_token:
        errors.append('pool "class" needs class_token=True')
    if config.window and (config.class_token or config.num_registers):
        errors.append("windows leave no place for a class token or registers")
    if config.window and any(side % config.window for side in config.grid):
        errors.append(f"window {config.window} does not divide the grid {config.grid}")
    if config.window and config.scan_layers:
        errors.append("scan_layers needs blocks that are all alike: not with windows")
    if any(not 0 <= layer < config.num_layers for layer in config.global_layers):
        errors.append(f"global_layers {config.global_layers}: there are {config.num_layers} layers")
    for name in ("dropout_rate", "drop_path_rate"):
        if not 0.0 <= getattr(config, name) < 1.0:
            errors.append(f"{name} must be in [0, 1), got {getattr(config, name)}")
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
      ValueError: no such size, or fields that do not go together.
    """
    size, slash, patch = name.partition("/")
    if size not in _SIZES or not slash or not patch.isdecimal():
        raise ValueError(f"no ViT {name!r}: SIZE/PATCH with SIZE one of {', '.join(_SIZES)}")
    width, depth, heads, mlp = _SIZES[size]
    return ViTConfig(width, depth, heads, mlp, **dict(patch_size=int(patch)) | fields)


class FeedForward(nn.Module):
    """down(dropout(act(up(x))))."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Array, dropout_key: Array | None = None) -> Array:
        """Maps [B, L, D] to [B, L, D]."""
        config = self.config
        hidden = dense(config.mlp_dim, ("visual_embed", "mlp"), config.numerics, name="up")(x)
        hidden = constrain(
            activation(config.activation)(hidden), "act_batch", "act_length", "act_mlp"
        )
        hidden = dropout(hidden, config.dropout_rate, dropout_key)
        down = dense(config.hidden_dim, ("mlp", "visual_embed"), config.numerics, name="down")
        return down(hidden)


def _attention(config: ViTConfig, name: str) -> Attention:
    return Attention(
        num_heads=config.num_heads,
        qkv_dim=config.hidden_dim,
        out_dim=config.hidden_dim,
        dropout_rate=0.0,
        numerics=config.numerics,
        q_axis="visual_embed",
        kv_axis="visual_embed",
        with_probabilities=False,
        name=name,
    )


def _drop_path(x: Array, rate: float | Array, key: Array | None) -> Array:
    """Leaves whole rows of [B, L, D] out, and scales the others up."""
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0], 1, 1))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x)).astype(x.dtype)


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    config: ViTConfig
    windowed: bool = False

    @nn.compact
    def __call__(
        self, x: Array, layer: int | Array, key: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        """Runs the block.

        Args:
          x: [B, L, D].
          layer: number of the block, which seeds its dropout and sets its drop-path rate.
          key: of the model's dropout, or None.

        Returns:
          [B, L, D], and what each sub-layer made, before and after it was added.
        """
        config, key = self.config, fold_key(key, layer)
        path_key = key if config.drop_path_rate else None
        rate = config.drop_path_rate * layer / max(config.num_layers - 1, 1)

        def add(x: Array, y: Array, k: int) -> Array:
            y = dropout(y, config.dropout_rate, fold_key(key, k))
            y = _drop_path(y, rate, fold_key(path_key, k + 1))
            return constrain(x + y, "act_batch", "act_length", "act_embed")

        y = layer_norm("visual_embed", config.numerics, name="attention_norm")(x)
        if self.windowed:
            y = split_windows(y, config.grid, config.window)
        y, _ = _attention(config, "attention")(y, y, None)
        if self.windowed:
            y = join_windows(y, config.grid, config.window)
        aux = {"attention": y}
        aux["after_attention"] = x = add(x, y, 0)
        y = layer_norm("visual_embed", config.numerics, name="mlp_norm")(x)
        aux["mlp"] = y = FeedForward(config, name="mlp")(y, fold_key(key, 2))
        aux["after_mlp"] = x = add(x, y, 3)
        return x, aux


def split_windows(x: Array, grid: tuple[int, int], window: int) -> Array:
    """Tokens [B, P, D] of a grid as windows [B * rows/w * columns/w, w * w, D]."""
    (rows, columns), width = grid, x.shape[-1]
    x = x.reshape(-1, rows // window, window, columns // window, window, width)
    return jnp.swapaxes(x, 2, 3).reshape(-1, window * window, width)


def join_windows(x: Array, grid: tuple[int, int], window: int) -> Array:
    """The inverse of `split_windows`."""
    (rows, columns), width = grid, x.shape[-1]
    x = x.reshape(-1, rows // window, columns // window, window, window, width)
    return jnp.swapaxes(x, 2, 3).reshape(-1, rows * columns, width)


class AttentionPool(nn.Module):
    """A learned probe reads the tokens; then x + feed_forward(norm(x)) (SigLIP's MAP head)."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, L, D] to [B, D]."""
        config = self.config
        init = nn.initializers.xavier_uniform()
        axes = (None, "visual_embed")
        probe = self.param("probe", nn.with_logical_partitioning(init, axes), (1, x.shape[-1]))
        probe = jnp.broadcast_to(probe.astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x, _ = _attention(config, "attention")(probe, x, None)
        y = layer_norm("visual_embed", config.numerics, name="norm")(x)
        return (x + FeedForward(config, name="mlp")(y))[:, 0]


class ViT(nn.Module):
    """A Vision Transformer."""

    config: ViTConfig

    @nn.compact
    def __call__(
        self, images: Array, dropout_key: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Encodes images.

        Args:
          images: float[B, Y, X, 3] of `config.image_size`, in the value range that the weights were
            trained with (big_vision: -1 to 1).
          dropout_key: key of dropout and drop path, or None.

        Returns:
          The tokens behind the last norm, [B, L, D], and the named intermediates: "patches"
          [B, rows, columns, D], "embedded" [B, P, D] (with positions), "block_i/NAME" of every
          block (not scanned), "pooled" [B, D], "representation" [B, D], "logits" [B, C], or
          [B, L, C] with pool "none".

        Raises:
          ValueError: images of another size.
        """
        config, numerics = self.config, self.config.numerics
        if images.shape[1:] != (*config.image_size, 3):
            raise ValueError(
                f"images of shape {images.shape[1:]}, the model is for {(*config.image_size, 3)}"
            )
        x, aux = self._embed(images, dropout_key)
        x, blocks = self._blocks(x, fold_key(dropout_key, 1))
        aux |= blocks
        tokens = layer_norm("visual_embed", numerics, name="final_norm")(x)
        aux |= self._head(tokens)
        return tokens, aux

    def _embed(self, images: Array, key: Array | None) -> tuple[Array, dict[str, Array]]:
        config, numerics, width = self.config, self.config.numerics, self.config.hidden_dim
        size = (config.patch_size,) * 2
        axes = (None, None, None, "visual_embed")
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
        positions = self._table("position", config.grid[0] * config.grid[1], width**-0.5)
        x = patches.reshape(patches.shape[0], -1, width) + positions[None]
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

    def _table(self, name: str, rows: int, stddev: float) -> Array:
        init = nn.initializers.normal(stddev)
        axes = ("positions" if name == "position" else None, "visual_embed")
        table = self.param(
            name, nn.with_logical_partitioning(init, axes), (rows, self.config.hidden_dim)
        )
        return table.astype(self.config.numerics.dtype)

    def _blocks(self, x: Array, key: Array | None) -> tuple[Array, dict[str, Array]]:
        config = self.config
        block = Block
        if config.remat != "none":
            policies = jax.checkpoint_policies
            save = policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
            block = nn.remat(Block, policy=save, prevent_cse=not config.scan_layers)
        if config.scan_layers:
            scan = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
                length=config.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = scan(config, name="blocks")(x, jnp.arange(config.num_layers), key)
            return x, {}
        aux = {}
        for i in range(config.num_layers):
            windowed = bool(config.window) and i not in config.global_layers
            x, parts = block(config, windowed, name=f"block_{i}")(x, i, key)
            aux |= {f"block_{i}/{name}": value for name, value in parts.items()}
        return x, aux

    def _head(self, tokens: Array) -> dict[str, Array]:
        """What is pooled from tokens [B, L, D], and the classes' scores."""
        config, aux = self.config, {}
        special = config.class_token + config.num_registers
        if config.pool == "class":
            x = tokens[:, 0]
        elif config.pool == "mean":
            x = jnp.mean(tokens[:, special:], axis=1)
        elif config.pool == "attention":
            x = AttentionPool(config, name="attention_pool")(tokens)
        else:
            x = tokens if config.pool == "none" else tokens[:, special]
        if config.pool != "none":
            aux["pooled"] = x
        if config.representation:
            axes = ("visual_embed", "pooled")
            x = dense(config.hidden_dim, axes, config.numerics, name="representation")(x)
            aux["representation"] = x = jnp.tanh(x)
        if config.num_classes:
            # Zero, as in big_vision: the first loss is that of a guess.
            zeros = nn.with_logical_partitioning(
                nn.initializers.zeros_init(), ("visual_embed", "labels")
            )
            aux["logits"] = nn.Dense(
                config.num_classes,
                dtype=config.dtype,
                kernel_init=zeros,
                bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("labels",)),
                name="classifier",
            )(x)
        return aux


def init_params(config: ViTConfig, key: Array) -> Any:
    """Random parameters with their logical axis names, as big_vision draws them."""
    images = jnp.zeros((1, *config.image_size, 3), config.dtype)
    return ViT(config).init(key, images)["params"]


def abstract_params(config: ViTConfig) -> Any:
    """Shapes of `init_params`, without computing anything."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


def stack_blocks(config: ViTConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an unrolled model in the scanned layout: blocks along a new leading axis."""
    names = [f"block_{i}" for i in range(config.num_layers)]
    rest = {name: value for name, value in params.items() if name not in names}
    blocks = jax.tree.map(lambda *leaves: np.stack(leaves), *(params[name] for name in names))
    return rest | {"blocks": blocks}


def unstack_blocks(config: ViTConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_blocks`."""
    rest = {name: value for name, value in params.items() if name != "blocks"}
    return rest | {
        f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        for i in range(config.num_layers)
    }


def resize_positions(table: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """A position table for another grid: bilinear between the corners (big_vision's `zoom`).

    Corners stay where they are, and shrinking does not average, unlike `jax.image.resize`.

    Args:
      table: float[P, D] of the grid `old`.
      old: rows and columns.
      new: rows and columns.

    Returns:
      float32[P', D].
    """
    grid = np.asarray(table, np.float64).reshape(*old, -1)
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        where = np.linspace(0.0, before - 1, after)
        low = np.clip(np.floor(where).astype(int), 0, max(before - 2, 0))
        high = np.minimum(low + 1, before - 1)
        share = (where - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        grid = np.take(grid, low, axis) * (1 - share) + np.take(grid, high, axis) * share
    return grid.reshape(-1, grid.shape[-1]).astype(np.float32)

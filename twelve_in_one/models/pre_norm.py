"""Pre-norm transformer blocks, the parts of image towers and text towers.

A block is x + attention(norm(x)), then x + feed_forward(norm(x)). Sizes and numerics are config.

Shape letters: B batch, L tokens, P patches, D width, N heads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.models.layers import Attention, activation, dense, dropout, fold_key, layer_norm
from twelve_in_one.models.two_stream.config import ACTIVATIONS, DTYPES, REMAT_POLICIES, Numerics
from twelve_in_one.parallel.sharding import constrain

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class BlocksConfig:
    """Sizes and numerics of a stack of blocks; towers add their own fields.

    Attributes:
      hidden_dim: width D.
      num_layers: blocks.
      num_heads: attention heads; divides `hidden_dim`.
      mlp_dim: width of the feed-forward blocks.
      activation: one of `config.ACTIVATIONS`.
      layer_norm_eps: added to the variance inside the square root.
      dropout_rate: on embedded tokens, sub-layer outputs and the feed-forward blocks' hidden layer.
      drop_path_rate: share of rows for which the last block's sub-layers are skipped; it grows
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
    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-6
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    initializer_range: float | None = None
    dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"

    width_axis: ClassVar[str]  # logical name of the width

    def __post_init__(self) -> None:
        errors = self._size_errors() or self._errors()
        if errors:
            raise ValueError(f"{type(self).__name__}: " + "; ".join(errors))

    @property
    def numerics(self) -> Numerics:
        """The settings that every layer shares."""
        return Numerics(self.dtype, self.layer_norm_eps, self.initializer_range)

    def _size_errors(self) -> list[str]:
        """Sizes below 1, which would break later checks."""
        return [
            f"{name} must be positive, got {getattr(self, name)}"
            for name in ("hidden_dim", "num_layers", "num_heads", "mlp_dim")
            if getattr(self, name) < 1
        ]

    def _errors(self) -> list[str]:
        errors = []
        if self.hidden_dim % self.num_heads:
            errors.append(
                f"num_heads {self.num_heads} does not divide hidden_dim {self.hidden_dim}"
            )
        for name, known in (
            ("activation", ACTIVATIONS),
            ("dtype", DTYPES),
            ("remat", REMAT_POLICIES),
        ):
            if getattr(self, name) not in known:
                errors.append(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")
        for name in ("dropout_rate", "drop_path_rate"):
            if not 0.0 <= getattr(self, name) < 1.0:
                errors.append(f"{name} must be in [0, 1), got {getattr(self, name)}")
        return errors


# Rows and columns of a grid of patches, and the side of its windows.
Window = tuple[tuple[int, int], int]


class FeedForward(nn.Module):
    """down(dropout(act(up(x))))."""

    config: BlocksConfig
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array, dropout_key: Array | None = None) -> Array:
        """Maps [B, L, D] to [B, L, D]."""
        config, axis, options = self.config, self.config.width_axis, dict(use_bias=self.use_bias)
        hidden = dense(config.mlp_dim, (axis, "mlp"), config.numerics, name="up", **options)(x)
        hidden = constrain(
            activation(config.activation)(hidden), "act_batch", "act_length", "act_mlp"
        )
        hidden = dropout(hidden, config.dropout_rate, dropout_key)
        down = dense(config.hidden_dim, ("mlp", axis), config.numerics, name="down", **options)
        return down(hidden)


def attention(config: BlocksConfig, **fields: Any) -> Attention:
    """Attention of a block's width, without dropout; `fields` are any of `Attention`'s."""
    defaults = dict(dropout_rate=0.0, kv_axis=config.width_axis, with_probabilities=False)
    return Attention(
        num_heads=config.num_heads,
        qkv_dim=config.hidden_dim,
        out_dim=config.hidden_dim,
        numerics=config.numerics,
        q_axis=config.width_axis,
        **defaults | fields,
    )


def add_residual(
    config: BlocksConfig,
    x: Array,
    y: Array,
    layer: int | Array,
    dropout_key: Array | None,
    path_key: Array | None,
) -> Array:
    """x + y, where `y` is a sub-layer's output, with dropout and drop path where there are keys."""
    y = dropout(y, config.dropout_rate, dropout_key)
    rate = config.drop_path_rate * layer / max(config.num_layers - 1, 1)
    y = _drop_path(y, rate, path_key if config.drop_path_rate else None)
    return constrain(x + y, "act_batch", "act_length", "act_embed")


def _drop_path(x: Array, rate: float | Array, key: Array | None) -> Array:
    """Drops whole rows of [B, L, D], and scales up the others."""
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0], 1, 1))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x)).astype(x.dtype)


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    config: BlocksConfig
    window: Window | None = None

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
          [B, L, D], and the output of each sub-layer, before and after its addition.
        """
        config, key = self.config, fold_key(key, layer)

        def add(x: Array, y: Array, k: int) -> Array:
            return add_residual(config, x, y, layer, fold_key(key, k), fold_key(key, k + 1))

        y = layer_norm(config.width_axis, config.numerics, name="attention_norm")(x)
        if self.window:
            y = split_windows(y, *self.window)
        y, _ = attention(config, name="attention")(y, y, None)
        if self.window:
            y = join_windows(y, *self.window)
        aux = {"attention": y}
        aux["after_attention"] = x = add(x, y, 0)
        y = layer_norm(config.width_axis, config.numerics, name="mlp_norm")(x)
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

    config: BlocksConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, L, D] to [B, D]."""
        config = self.config
        init = nn.initializers.xavier_uniform()
        axes = (None, config.width_axis)
        probe = self.param("probe", nn.with_logical_partitioning(init, axes), (1, x.shape[-1]))
        probe = jnp.broadcast_to(probe.astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x, _ = attention(config, name="attention")(probe, x, None)
        y = layer_norm(config.width_axis, config.numerics, name="norm")(x)
        return (x + FeedForward(config, name="mlp")(y))[:, 0]


def rematerialised(block: type[nn.Module], config: BlocksConfig) -> type[nn.Module]:
    """`block` that keeps of its activations what `config.remat` says."""
    if config.remat == "none":
        return block
    policies = jax.checkpoint_policies
    save = policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
    return nn.remat(block, policy=save, prevent_cse=not config.scan_layers)


def scanned(block: type[nn.Module], config: BlocksConfig, num_inputs: int) -> type[nn.Module]:
    """All blocks as one, called with x, the layers' numbers, and inputs that all layers share."""
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, *(nn.broadcast,) * (num_inputs - 2)),
        length=config.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def run_blocks(
    config: BlocksConfig,
    x: Array,
    key: Array | None,
    windows: Mapping[int, Window] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Runs all blocks, as sub-modules of the module whose compact method calls this.

    Args:
      config: sizes; `scan_layers` and `remat` say how they run.
      x: [B, L, D].
      key: of dropout and drop path, or None.
      windows: of the blocks with attention within windows.

    Returns:
      [B, L, D], and each sub-layer's output as "block_i/NAME"; none if scanned.
    """
    if config.scan_layers:
        scan = scanned(rematerialised(Block, config), config, 3)
        x, _ = scan(config, name="blocks")(x, jnp.arange(config.num_layers), key)
        return x, {}
    block, aux = rematerialised(Block, config), {}
    for i in range(config.num_layers):
        x, parts = block(config, (windows or {}).get(i), name=f"block_{i}")(x, i, key)
        aux |= {f"block_{i}/{name}": value for name, value in parts.items()}
    return x, aux


def stack_blocks(config: BlocksConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an unrolled model in the scanned layout: blocks along a new leading axis."""
    names = [f"block_{i}" for i in range(config.num_layers)]
    rest = {name: value for name, value in params.items() if name not in names}
    blocks = jax.tree.map(lambda *leaves: np.stack(leaves), *(params[name] for name in names))
    return rest | {"blocks": blocks}


def unstack_blocks(config: BlocksConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_blocks`."""
    rest = {name: value for name, value in params.items() if name != "blocks"}
    return rest | {
        f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        for i in range(config.num_layers)
    }

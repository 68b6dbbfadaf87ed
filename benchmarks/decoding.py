"""Writing with a cache against recomputation, and training a decoder on a frozen encoder.

    python benchmarks/decoding.py                                 # B, 2 layers, ViT-B/16, 32 tokens
    python benchmarks/decoding.py --what writing --texts 64 --dtype bfloat16

Writing: 32 tokens per text, greedily and with 4 beams, no text ending before. Recomputation runs
the whole text so far again for each token, with the logits of that token only. With few texts at a
time a cached step is bound by reading the parameters.
Training: loss, gradients and an AdaFactor update of texts of 64 tokens, with the encoder frozen
(run forward only, without a state) and trained. FLOPs are those of the products
(`models/flops.py`), forward three times for what is trained; the peak is that of `model_step.py`,
measured right before and right after.
"""

import argparse
import statistics
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from model_step import matmul_peak, restart_with_allocator, seconds

from twelve_in_one.models import decoder_block, generate, text_decoder, vit
from twelve_in_one.models.flops import (
    decoder_forward_flops,
    encoder_key_macs,
    vit_forward_flops,
)
from twelve_in_one.models.reading import Context, Options, read_prompt
from twelve_in_one.models.text_decoder import TextDecoder, TextDecoderConfig, shift_right
from twelve_in_one.models.vit import ViT, ViTConfig
from twelve_in_one.optim import adamw, schedules
from twelve_in_one.optim.adafactor import adafactor
from twelve_in_one.optim.param_groups import ParamGroup
from twelve_in_one.tasks.losses import sequence_loss

BEAMS = 4


def endless(params: Any, options: Options) -> Any:
    """Parameters whose logits depend on the input, and never prefer the end or the padding."""
    kernel = params["logits"]["kernel"]
    noise = 0.02 * jax.random.normal(jax.random.key(2), kernel.shape, kernel.dtype)
    bias = params["logits"]["bias"].at[jnp.array([options.end_id, options.pad_id])].set(-1e9)
    return params | {"logits": {"kernel": noise, "bias": bias}}


def recompute(config: TextDecoderConfig, params: Any, encoder: jax.Array, options: Options) -> Any:
    """Greedy texts [B, L], everything run again for every token."""
    longest = options.max_tokens
    text = jnp.full((len(encoder), longest), options.pad_id, jnp.int32)

    def step(i: jax.Array, text: jax.Array) -> jax.Array:
        _, log_p = read_prompt(config, params, Context(encoder, text[:, :-1]), options, 0)
        return text.at[:, i].set(jnp.argmax(log_p, axis=1).astype(jnp.int32))

    return jax.lax.fori_loop(0, longest, step, text)


def measure_writing(config: TextDecoderConfig, params: Any, args: argparse.Namespace) -> None:
    """Prints tokens/s of greedy and beams, with a cache and without."""
    options = Options(end_id=config.vocab_size - 1, max_tokens=args.tokens)
    params = endless(params, options)
    shape = (args.texts, args.encoded, config.encoder_dim)
    encoder = jax.random.normal(jax.random.key(1), shape, config.dtype)
    plain = jax.jit(recompute, static_argnums=(0, 3))

    def beams() -> Any:
        return generate.beam_search(config, params, Context(encoder), options, beams=BEAMS)

    cases = (
        ("greedy", lambda: generate.greedy(config, params, Context(encoder), options), encoder),
        (f"{BEAMS} beams", beams, jnp.repeat(encoder, BEAMS, axis=0)),
    )
    for name, write, rows in cases:
        steps = jax.device_get(write().steps)
        if (steps != args.tokens).any():
            raise SystemExit(f"{name}: texts ended after {steps.min()} tokens")
        kept = statistics.median(seconds(write, args.repeats))
        again = statistics.median(
            seconds(lambda rows=rows: plain(config, params, rows, options), args.repeats)
        )
        tokens = args.texts * args.tokens
        print(
            f"{name}: {tokens / kept:.0f} tokens/s with a cache, {tokens / again:.0f} recomputed: "
            f"{again / kept:.1f} times as fast"
        )


def make_step(encoder: ViTConfig, decoder: TextDecoderConfig, frozen: bool) -> tuple[Any, Any]:
    """An optimizer, and (params, state, images, labels) -> the next params and state, and loss."""
    groups = (ParamGroup("encoder/.*", 0.0 if frozen else 1.0), ParamGroup(".*"))
    optimizer = adafactor(3e-4, schedules.make("constant", 1), groups)

    def step(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss_of(trained: Any) -> jax.Array:
            both = params | trained
            tokens, _ = ViT(encoder).apply({"params": both["encoder"]}, images)
            logits, _ = TextDecoder(decoder).apply(
                {"params": both["decoder"]}, shift_right(labels), tokens
            )
            weights, rows = labels != 0, jnp.ones(len(labels), bool)
            return sequence_loss(logits, labels, weights, rows, label_smoothing=0.1).mean_loss()

        trained = {"decoder": params["decoder"]} if frozen else params
        loss, grads = jax.value_and_grad(loss_of)(trained)
        grads, _ = adamw.clip_by_global_norm(grads, 1.0)
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = optimizer.update(zeros | grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return optimizer, jax.jit(step, donate_argnums=(0, 1))


def measure_training(
    encoder: ViTConfig, decoder: TextDecoderConfig, params: Any, args: argparse.Namespace
) -> None:
    """Prints a training step with the encoder frozen and trained, against the peak."""
    shape = (args.batch_size, *encoder.image_size, 3)
    images = jax.random.normal(jax.random.key(1), shape, encoder.dtype)
    labels = jax.random.randint(
        jax.random.key(2), (args.batch_size, decoder.max_tokens), 2, decoder.vocab_size
    )
    encoded = encoder.grid[0] * encoder.grid[1]
    below = vit_forward_flops(encoder)
    above = 3 * decoder_forward_flops(decoder, decoder.max_tokens, encoded)
    unread = 2 * len(decoder.cross_layers) * encoder_key_macs(decoder, encoded)
    times = {}
    for frozen, flops in ((True, below + above - unread), (False, 3 * below + above)):
        optimizer, step = make_step(encoder, decoder, frozen)
        start = jax.tree.map(jnp.copy, params)
        holder = [start, optimizer.init(start)]

        def update(step: Any = step, holder: list[Any] = holder) -> jax.Array:
            holder[0], holder[1], loss = step(*holder, images, labels)
            return loss

        peak = matmul_peak(args.dtype, args.repeats)
        times[frozen] = statistics.median(seconds(update, args.repeats))
        peak = max(peak, matmul_peak(args.dtype, args.repeats))
        rate = args.batch_size * flops / times[frozen]
        print(
            f"training step, encoder {'frozen' if frozen else 'trained'}: {times[frozen]:.3f} s, "
            f"{args.batch_size / times[frozen]:.1f} pairs/s, {rate / 1e9:.0f} GFLOP/s, "
            f"{rate / peak:.1%} of the peak of {peak / 1e9:.0f}"
        )
    print(f"frozen is {times[False] / times[True]:.2f} times as fast as trained")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", choices=("all", "writing", "training"), default="all")
    parser.add_argument("--encoder", default="B/16", help="SIZE/PATCH of a ViT (default B/16)")
    parser.add_argument("--decoder", default="B", help="size of the decoder (default B)")
    parser.add_argument("--layers", type=int, default=2, help="of the decoder (default 2)")
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument("--tokens", type=int, default=32, help="of a written text (default 32)")
    parser.add_argument("--encoded", type=int, default=196, help="encoder tokens read in writing")
    parser.add_argument("--texts", type=int, default=32, help="written at a time (default 32)")
    parser.add_argument("--batch_size", type=int, default=8, help="of training (default 8)")
    parser.add_argument("--dtype", default="float32", help="compute dtype (default float32)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep_allocator", action="store_true", help="see model_step.py")
    args = parser.parse_args()
    restart_with_allocator(args.keep_allocator)

    encoder = vit.named_vit(args.encoder, dtype=args.dtype)
    decoder = decoder_block.named_decoder(
        args.decoder,
        args.layers,
        vocab_size=args.vocab_size,
        encoder_dim=encoder.hidden_dim,
        block_biases=False,
        dtype=args.dtype,
    )
    params = nn.unbox(
        jax.jit(lambda key: text_decoder.init_params(decoder, key))(jax.random.key(0))
    )
    device = jax.devices()[0]
    print(
        f"{device.device_kind} ({device.platform}), jax {jax.__version__}, decoder "
        f"{args.decoder} with {args.layers} layers and {args.vocab_size} pieces, "
        f"{args.texts} texts, {args.batch_size} pairs, {args.dtype}, median of {args.repeats}"
    )
    if args.what != "training":
        writing = jax.tree.map(lambda x: x.astype(args.dtype), params)
        measure_writing(decoder, writing, args)
    if args.what != "writing":
        below = nn.unbox(jax.jit(lambda key: vit.init_params(encoder, key))(jax.random.key(0)))
        measure_training(encoder, decoder, {"encoder": below, "decoder": params}, args)


if __name__ == "__main__":
    sys.exit(main())

"""The two-stream model in NumPy and float64, written from the specification."""

import math

import numpy as np

from twelve_in_one.convert import names


class Reference:
    """The released model in float64, on parameters under the released names (spec section 1)."""

    def __init__(self, config, params):
        flat = names.flatten(params)
        self.config = config
        self.state = {
            entry.name: entry.from_ours(flat[entry.path]).astype(np.float64)
            for entry in names.table(config)
            if entry.path is not None
        }

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        root = np.sqrt((centred**2).mean(-1, keepdims=True) + self.config.layer_norm_eps)
        return centred / root * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def act(self, name, x):
        if name == "gelu":
            return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        if name == "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return {"relu": np.maximum(x, 0), "swish": x / (1 + np.exp(-x))}[name]

    def attend(self, q, k, v, mask, num_heads):
        """q [B, Q, C], k and v [B, K, C], mask [B, K] of 0 and 1: context [B, Q, C] and the map."""

        def split(x):
            return x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)

        scores = split(q) @ split(k).swapaxes(-1, -2) / math.sqrt(q.shape[-1] // num_heads)
        scores = scores + (1 - mask[:, None, None, :]) * -10000.0
        e = np.exp(scores - scores.max(-1, keepdims=True))
        probabilities = e / e.sum(-1, keepdims=True)
        context = (probabilities @ split(v)).transpose(0, 2, 1, 3)
        return context.reshape(*context.shape[:2], -1), probabilities

    def feed_forward(self, prefix, x, activation):
        stem = prefix if prefix[-1] in "._" else prefix + "."
        hidden = self.act(activation, self.linear(f"{stem}intermediate.dense", x))
        return self.norm(f"{stem}output.LayerNorm", self.linear(f"{stem}output.dense", hidden) + x)

    def layer(self, name, x, mask, stream, gate_input=None):
        at = f"{name}.attention.self"
        q, k, v = (self.linear(f"{at}.{part}", x) for part in ("query", "key", "value"))
        if gate_input is not None:
            gates = (self.linear(f"{at}.dyLinear_{part}", gate_input) for part in "qk")
            q, k = (
                y * (1 + 1 / (1 + np.exp(-gate)))[:, None]
                for y, gate in zip((q, k), gates, strict=True)
            )
        context, probabilities = self.attend(q, k, v, mask, stream.num_heads)
        x = self.norm(
            f"{name}.attention.output.LayerNorm",
            self.linear(f"{name}.attention.output.dense", context) + x,
        )
        return self.feed_forward(name, x, stream.activation), probabilities

    def connection(self, name, text, visual, text_mask, region_mask):
        """Suffix 1 is vision, 2 is text; the contexts are crossed (spec 1.7)."""
        at, config = f"{name}.biattention", self.config
        q1, k1, v1 = (self.linear(f"{at}.{part}1", visual) for part in ("query", "key", "value"))
        q2, k2, v2 = (self.linear(f"{at}.{part}2", text) for part in ("query", "key", "value"))
        context1, text_map = self.attend(q2, k1, v1, region_mask, config.coattention_heads)
        context2, visual_map = self.attend(q1, k2, v2, text_mask, config.coattention_heads)
        out = f"{name}.biOutput"
        visual = self.norm(f"{out}.LayerNorm1", self.linear(f"{out}.dense1", context2) + visual)
        text = self.norm(f"{out}.LayerNorm2", self.linear(f"{out}.dense2", context1) + text)
        visual = self.feed_forward(f"{name}.v_", visual, config.visual.activation)
        text = self.feed_forward(f"{name}.t_", text, config.text.activation)
        return text, visual, text_map, visual_map

    def pool(self, stream, x):
        return np.maximum(self.linear(f"bert.{stream}_pooler.dense", x[:, 0]), 0)

    def classifier(self, name, x):
        x = self.act("gelu", self.linear(f"{name}.logit_fc.0", x))
        return self.linear(f"{name}.logit_fc.3", self.norm(f"{name}.logit_fc.2", x))

    def __call__(
        self, *, tokens, token_mask, regions, boxes, region_mask, token_types, task_id=None
    ):
        config, aux = self.config, {}
        table = "bert.embeddings.{}_embeddings.weight".format
        rows, length = tokens.shape
        positions = np.arange(length) + config.position_offset
        text = (
            self.state[table("word")][tokens]
            + self.state[table("position")][positions]
            + self.state[table("token_type")][token_types]
        )
        text_mask, region_mask = token_mask.astype(float), region_mask.astype(float)
        if config.num_tasks:
            task = self.state[table("task")][task_id][:, None]
            text = np.concatenate([text[:, :1], task, text[:, 1:]], axis=1)
            text_mask = np.concatenate([np.ones((rows, 1)), text_mask], axis=1)
        text = self.norm("bert.embeddings.LayerNorm", text)
        visual = self.norm(
            "bert.v_embeddings.LayerNorm",
            self.linear("bert.v_embeddings.image_embeddings", regions.astype(float))
            + self.linear("bert.v_embeddings.image_location_embeddings", boxes.astype(float)),
        )
        aux |= {"text_embedding": text, "visual_embedding": visual}

        def run_text(stop):
            nonlocal text, text_at
            for i in range(text_at, stop):
                name = f"bert.encoder.layer.{i}"
                text, probabilities = self.layer(name, text, text_mask, config.text)
                aux[f"text_layer_{i}"] = text
                aux[f"attention/text_layer_{i}"] = probabilities
            text_at = stop

        def run_visual(stop):
            nonlocal visual, visual_at
            for i in range(visual_at, stop):
                gate_input = None
                if config.dynamic_attention:
                    weights = text_mask / text_mask.sum(1, keepdims=True)
                    gate_input = (weights[..., None] * text).sum(1)
                name = f"bert.encoder.v_layer.{i}"
                visual, probabilities = self.layer(
                    name, visual, region_mask, config.visual, gate_input
                )
                aux[f"visual_layer_{i}"] = visual
                aux[f"attention/visual_layer_{i}"] = probabilities
            visual_at = stop

        text_at = visual_at = 0
        pairs = zip(config.text_connections, config.visual_connections, strict=True)
        for c, (text_stop, visual_stop) in enumerate(pairs):
            run_text(text_stop)
            run_visual(visual_stop)
            if config.with_coattention:
                text, visual, text_map, visual_map = self.connection(
                    f"bert.encoder.c_layer.{c}", text, visual, text_mask, region_mask
                )
                aux |= {f"connection_{c}_text": text, f"connection_{c}_visual": visual}
                aux[f"attention/connection_{c}_text_reads_visual"] = text_map
                aux[f"attention/connection_{c}_visual_reads_text"] = visual_map
        run_visual(config.visual.num_layers)
        run_text(config.text.num_layers)

        pooled_text, pooled_visual = self.pool("t", text), self.pool("v", visual)
        fused = (
            pooled_text * pooled_visual if config.fusion == "mul" else pooled_text + pooled_visual
        )
        aux |= dict(
            text=text,
            visual=visual,
            text_pooled=pooled_text,
            visual_pooled=pooled_visual,
            fused=fused,
        )

        def transform(name, x, activation):
            x = self.act(activation, self.linear(f"{name}.transform.dense", x))
            return self.norm(f"{name}.transform.LayerNorm", x)

        compute = dict(
            vqa=lambda: self.classifier("vil_prediction", fused),
            gqa=lambda: self.classifier("vil_prediction_gqa", fused),
            image_pair=lambda: self.classifier(
                "vil_binary_prediction", np.concatenate([fused[::2], fused[1::2]], axis=1)
            ),
            image_text_match=lambda: self.linear("vil_logit", fused)[:, 0],
            three_way=lambda: self.linear("vil_tri_prediction", fused),
            region_score=lambda: self.linear("vision_logit", visual)[..., 0],
            token_score=lambda: self.linear("linguisic_logit", text)[..., 0],
            masked_language=lambda: (
                transform("cls.predictions", text, config.text.activation)
                @ self.state[table("word")].T
                + self.state["cls.predictions.bias"]
            ),
            masked_region=lambda: self.linear(
                "cls.imagePredictions.decoder",
                transform("cls.imagePredictions", visual, config.visual.activation),
            ),
            alignment=lambda: self.linear("cls.bi_seq_relationship", fused),
        )
        return {head: compute[head]() for head in config.heads}, aux

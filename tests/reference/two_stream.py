"""The two-stream model in NumPy and float64, written from the specification.

Settings have the released names here, and each is read where the specification says so.
"""

import math

import numpy as np

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.convert import names

HEAD_DROPOUT = "head dropout"  # has no released name: 0.1 is hard-coded


def released_settings(config):
    """{released name: value}; the last ones have no released name."""
    return {
        "hidden_act": config.text.activation,
        "v_hidden_act": config.visual.activation,
        "hidden_dropout_prob": config.text.dropout_rate,
        "v_hidden_dropout_prob": config.visual.dropout_rate,
        "attention_probs_dropout_prob": config.text.attention_dropout_rate,
        "v_attention_probs_dropout_prob": config.visual.attention_dropout_rate,
        "num_attention_heads": config.text.num_heads,
        "v_num_attention_heads": config.visual.num_heads,
        "bi_num_attention_heads": config.coattention_heads,
        "num_hidden_layers": config.text.num_layers,
        "v_num_hidden_layers": config.visual.num_layers,
        "t_biattention_id": config.text_connections,
        "v_biattention_id": config.visual_connections,
        "task_specific_tokens": config.num_tasks > 0,
        "dynamic_attention": config.dynamic_attention,
        "with_coattention": config.with_coattention,
        "fusion_method": config.fusion,
        HEAD_DROPOUT: config.head_dropout_rate,
        "layer norm epsilon": config.layer_norm_eps,
        "position offset": config.position_offset,
    }


class Reference:
    """The released model in float64, on parameters under the released names (spec section 1).

    With `dropout`, each place with a dropout rate in the specification multiplies by the share
    kept: a rate in the wrong place shows, and nothing is random.
    """

    def __init__(self, config, params, *, dropout=False):
        flat = flatten(params)
        self.settings, self.heads, self.with_dropout = (
            released_settings(config),
            config.heads,
            dropout,
        )
        self.state = {
            entry.name: entry.from_ours(flat[entry.path]).astype(np.float64)
            for entry in names.table(config)
            if entry.path is not None
        }

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        root = np.sqrt((centred**2).mean(-1, keepdims=True) + self.settings["layer norm epsilon"])
        return centred / root * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def drop(self, setting, x):
        return x * (1 - self.settings[setting]) if self.with_dropout else x

    def act(self, setting, x):
        name = self.settings.get(setting, setting)
        if name == "gelu":
            return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        if name == "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return {"relu": np.maximum(x, 0), "swish": x / (1 + np.exp(-x))}[name]

    def attend(self, q, k, v, mask, heads, dropout):
        """q [B, Q, C], k and v [B, K, C], mask [B, K] of 0 and 1: context [B, Q, C] and the map."""
        num_heads = self.settings[heads]

        def split(x):
            return x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)

        scores = split(q) @ split(k).swapaxes(-1, -2) / math.sqrt(q.shape[-1] // num_heads)
        scores = scores + (1 - mask[:, None, None, :]) * -10000.0
        e = np.exp(scores - scores.max(-1, keepdims=True))
        probabilities = e / e.sum(-1, keepdims=True)
        context = (self.drop(dropout, probabilities) @ split(v)).transpose(0, 2, 1, 3)
        return context.reshape(*context.shape[:2], -1), probabilities

    def feed_forward(self, stem, x, v):
        hidden = self.act(f"{v}hidden_act", self.linear(f"{stem}intermediate.dense", x))
        y = self.drop(f"{v}hidden_dropout_prob", self.linear(f"{stem}output.dense", hidden))
        return self.norm(f"{stem}output.LayerNorm", y + x)

    def layer(self, name, x, mask, v_, gate_input=None):
        """`v_` is the prefix of the stream's settings: "" or "v_"."""
        at = f"{name}.attention.self"
        q, k, v = (self.linear(f"{at}.{part}", x) for part in ("query", "key", "value"))
        if gate_input is not None:
            gates = (self.linear(f"{at}.dyLinear_{part}", gate_input) for part in "qk")
            q, k = (
                y * (1 + 1 / (1 + np.exp(-gate)))[:, None]
                for y, gate in zip((q, k), gates, strict=True)
            )
        context, probabilities = self.attend(
            q, k, v, mask, f"{v_}num_attention_heads", f"{v_}attention_probs_dropout_prob"
        )
        y = self.linear(f"{name}.attention.output.dense", context)
        x = self.norm(
            f"{name}.attention.output.LayerNorm", self.drop(f"{v_}hidden_dropout_prob", y) + x
        )
        return self.feed_forward(f"{name}.", x, v_), probabilities

    def connection(self, name, text, visual, text_mask, region_mask):
        """Suffix 1 is vision, 2 is text; the contexts are crossed (spec 1.7)."""
        at, heads = f"{name}.biattention", "bi_num_attention_heads"
        q1, k1, v1 = (self.linear(f"{at}.{part}1", visual) for part in ("query", "key", "value"))
        q2, k2, v2 = (self.linear(f"{at}.{part}2", text) for part in ("query", "key", "value"))
        context1, text_map = self.attend(
            q2, k1, v1, region_mask, heads, "v_attention_probs_dropout_prob"
        )
        context2, visual_map = self.attend(
            q1, k2, v2, text_mask, heads, "attention_probs_dropout_prob"
        )
        out = f"{name}.biOutput"
        read1 = self.drop("v_hidden_dropout_prob", self.linear(f"{out}.dense1", context2))
        read2 = self.drop("hidden_dropout_prob", self.linear(f"{out}.dense2", context1))
        visual = self.norm(f"{out}.LayerNorm1", read1 + visual)
        text = self.norm(f"{out}.LayerNorm2", read2 + text)
        visual = self.feed_forward(f"{name}.v_", visual, "v_")
        text = self.feed_forward(f"{name}.t_", text, "")
        return text, visual, text_map, visual_map

    def pool(self, stream, x):
        return np.maximum(self.linear(f"bert.{stream}_pooler.dense", x[:, 0]), 0)

    def classifier(self, name, x):
        x = self.act("gelu", self.linear(f"{name}.logit_fc.0", x))
        return self.linear(f"{name}.logit_fc.3", self.norm(f"{name}.logit_fc.2", x))

    def __call__(
        self, *, tokens, token_mask, regions, boxes, region_mask, token_types, task_id=None
    ):
        settings, aux = self.settings, {}
        table = "bert.embeddings.{}_embeddings.weight".format
        rows, length = tokens.shape
        positions = np.arange(length) + settings["position offset"]
        text = (
            self.state[table("word")][tokens]
            + self.state[table("position")][positions]
            + self.state[table("token_type")][token_types]
        )
        text_mask, region_mask = token_mask.astype(float), region_mask.astype(float)
        if settings["task_specific_tokens"]:
            task = self.state[table("task")][task_id][:, None]
            text = np.concatenate([text[:, :1], task, text[:, 1:]], axis=1)
            text_mask = np.concatenate([np.ones((rows, 1)), text_mask], axis=1)
        text = self.drop("hidden_dropout_prob", self.norm("bert.embeddings.LayerNorm", text))
        visual = self.norm(
            "bert.v_embeddings.LayerNorm",
            self.linear("bert.v_embeddings.image_embeddings", regions.astype(float))
            + self.linear("bert.v_embeddings.image_location_embeddings", boxes.astype(float)),
        )
        visual = self.drop("hidden_dropout_prob", visual)  # the text stream's rate (spec 1.4)
        aux |= {"text_embedding": text, "visual_embedding": visual}

        def run_text(stop):
            nonlocal text, text_at
            for i in range(text_at, stop):
                name = f"bert.encoder.layer.{i}"
                text, probabilities = self.layer(name, text, text_mask, "")
                aux[f"text_layer_{i}"] = text
                aux[f"attention/text_layer_{i}"] = probabilities
            text_at = stop

        def run_visual(stop):
            nonlocal visual, visual_at
            for i in range(visual_at, stop):
                gate_input = None
                if settings["dynamic_attention"]:
                    weights = text_mask / text_mask.sum(1, keepdims=True)
                    gate_input = (weights[..., None] * text).sum(1)
                name = f"bert.encoder.v_layer.{i}"
                visual, probabilities = self.layer(name, visual, region_mask, "v_", gate_input)
                aux[f"visual_layer_{i}"] = visual
                aux[f"attention/visual_layer_{i}"] = probabilities
            visual_at = stop

        text_at = visual_at = 0
        pairs = zip(settings["t_biattention_id"], settings["v_biattention_id"], strict=True)
        for c, (text_stop, visual_stop) in enumerate(pairs):
            run_text(text_stop)
            run_visual(visual_stop)
            if settings["with_coattention"]:
                text, visual, text_map, visual_map = self.connection(
                    f"bert.encoder.c_layer.{c}", text, visual, text_mask, region_mask
                )
                aux |= {f"connection_{c}_text": text, f"connection_{c}_visual": visual}
                aux[f"attention/connection_{c}_text_reads_visual"] = text_map
                aux[f"attention/connection_{c}_visual_reads_text"] = visual_map
        run_visual(settings["v_num_hidden_layers"])
        run_text(settings["num_hidden_layers"])

        pooled_text, pooled_visual = self.pool("t", text), self.pool("v", visual)
        fused = (
            pooled_text * pooled_visual
            if settings["fusion_method"] == "mul"
            else pooled_text + pooled_visual
        )
        aux |= dict(
            text=text,
            visual=visual,
            text_pooled=pooled_text,
            visual_pooled=pooled_visual,
            fused=fused,
        )

        fused, read_text, read_visual = (self.drop(HEAD_DROPOUT, x) for x in (fused, text, visual))

        def transform(name, x):
            """For both streams: hidden_act, and no dropout (spec 1.10)."""
            x = self.act("hidden_act", self.linear(f"{name}.transform.dense", x))
            return self.norm(f"{name}.transform.LayerNorm", x)

        compute = dict(
            vqa=lambda: self.classifier("vil_prediction", fused),
            gqa=lambda: self.classifier("vil_prediction_gqa", fused),
            image_pair=lambda: self.classifier(
                "vil_binary_prediction", np.concatenate([fused[::2], fused[1::2]], axis=1)
            ),
            image_text_match=lambda: self.linear("vil_logit", fused)[:, 0],
            three_way=lambda: self.linear("vil_tri_prediction", fused),
            region_score=lambda: self.linear("vision_logit", read_visual)[..., 0],
            token_score=lambda: self.linear("linguisic_logit", read_text)[..., 0],
            masked_language=lambda: (
                transform("cls.predictions", text) @ self.state[table("word")].T
                + self.state["cls.predictions.bias"]
            ),
            masked_region=lambda: self.linear(
                "cls.imagePredictions.decoder",
                transform("cls.imagePredictions", visual),
            ),
            alignment=lambda: self.linear("cls.bi_seq_relationship", fused),
        )
        return {head: compute[head]() for head in self.heads}, aux

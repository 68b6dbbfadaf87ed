"""Which parameter belongs to which group, and the groups of the two-stream model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.models.two_stream.config import ALL_HEADS
from twelve_in_one.models.two_stream.trunk import abstract_params
from twelve_in_one.optim.param_groups import ParamGroup, assign, describe, two_stream


def test_first_match_wins_and_whole_paths_match():
    tree = assign({"a": 0, "ab": {"a": 0}}, [ParamGroup("a", 3.0), ParamGroup(".*", 2.0)])
    assert tree["a"].learning_rate == 3.0
    assert tree["ab"]["a"].learning_rate == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("heads/(", 1.0, 0.0), r"group 'heads/\(' is no regular expression"),
        (("a", -1.0), "group 'a': learning_rate=-1.0"),
        (("a", float("nan")), "learning_rate=nan"),
        (("a", 1.0, float("inf")), "weight_decay=inf"),
    ],
)
def test_bad_groups(arguments, message):
    with pytest.raises(ValueError, match=message):
        ParamGroup(*arguments)


def test_group_table():
    params = {
        "a": {"b": jax.ShapeDtypeStruct((30, 50), jnp.float32), "c": jnp.zeros(400)},
        "d": jax.ShapeDtypeStruct((), jnp.float32),
        "e": np.zeros(99),
    }
    same = ParamGroup("never", 5.0, 0.01)
    groups = [ParamGroup("a/b", 0.0, 0.1), same, same, ParamGroup("a/.*", 0.25), ParamGroup(".*")]
    assert describe(params, groups).split("\n") == [
        "tensors     parameters   share    rate   decay  pattern",
        "      1          1,500   75.0%  frozen     0.1  a/b",
        "      0              0    0.0%      x5    0.01  never  (matches nothing)",
        "      0              0    0.0%      x5    0.01  never  (matches nothing)",
        "      1            400   20.0%   x0.25       0  a/.*",
        "      2            100    5.0%      x1       0  .*",
        "      4          2,000  100.0%",
    ]
    with pytest.raises(ValueError, match="3 parameters match no group"):
        describe(params, groups[:1])


def test_groups_of_the_user_win(tiny_config):
    params = nn.unbox(abstract_params(tiny_config(heads=ALL_HEADS)))
    extra = (ParamGroup("trunk/text_embedding/.*", 0.0), ParamGroup("heads/vqa/.*", 7.0, 0.5))
    groups = two_stream(head_learning_rate=5, weight_decay=0.01, extra=extra)
    for path, group in flatten(assign(params, groups)).items():
        if path[:2] == ("trunk", "text_embedding"):
            assert group is extra[0], path
        elif path[:2] == ("heads", "vqa"):
            assert group is extra[1], path
        else:
            assert group not in extra, path
    without = two_stream(head_learning_rate=5, weight_decay=0.01)
    assert groups == (*extra, *without)
    assert "frozen" in describe(params, groups)


# --------------------------------------------------------------------------- the model's groups

ENCODER = "trunk/encoder/"
EXPECTED = {  # path: (multiplier, decays, decays under the released rule)
    "trunk/text_embedding/word/embedding": (1, True, True),
    "trunk/text_embedding/norm/scale": (1, False, False),
    ENCODER + "text_layer_0/attention/query/kernel": (1, True, True),
    ENCODER + "text_layer_0/attention/query/bias": (1, False, False),
    ENCODER + "text_layer_0/feed_forward/norm/scale": (1, False, False),
    ENCODER + "connection_0/text_norm/scale": (1, False, True),
    ENCODER + "connection_1/visual_norm/scale": (1, False, True),
    ENCODER + "connection_1/visual_norm/bias": (1, False, False),
    ENCODER + "connection_0/text_feed_forward/norm/scale": (1, False, False),
    "heads/vqa/hidden/kernel": (5, True, True),
    "heads/vqa/norm/scale": (5, False, True),
    "heads/vqa/norm/bias": (5, False, False),
    "heads/image_pair/logits/bias": (5, False, False),
    "heads/three_way/kernel": (5, True, True),
    "heads/image_text_match/bias": (5, False, False),
    "heads/region_score/kernel": (1, True, True),
    "heads/token_score/bias": (1, False, False),
    "heads/masked_language/norm/scale": (1, False, False),
    "heads/masked_region/dense/kernel": (1, True, True),
    "heads/masked_language_bias": (1, False, False),
}


@pytest.mark.parametrize("official", [False, True])
def test_two_stream_groups(tiny_config, official):
    params = nn.unbox(abstract_params(tiny_config(heads=ALL_HEADS)))
    groups = two_stream(head_learning_rate=5, weight_decay=0.01, official_decayed_norms=official)
    assigned = {"/".join(p): g for p, g in flatten(assign(params, groups)).items()}
    for path, (multiplier, decays, official_decays) in EXPECTED.items():
        group = assigned[path]
        assert group.learning_rate == multiplier, path
        assert bool(group.weight_decay) == (official_decays if official else decays), path
    norms_and_biases = [p for p in assigned if p.rsplit("/")[-1] in ("bias", "scale")]
    if not official:
        assert all(assigned[path].weight_decay == 0 for path in norms_and_biases)

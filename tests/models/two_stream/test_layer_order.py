"""The execution order against the released rule, and its compression into segments."""

import random

import pytest

from twelve_in_one.models.two_stream.config import named_size
from twelve_in_one.models.two_stream.order import execution_order, order_string, segments

BASE_6 = "T0 T1 T2 T3 T4 T5 C0 T6 V0 C1 T7 V1 C2 T8 V2 C3 T9 V3 C4 T10 V4 C5 V5 T11"  # spec 1.6


def simulate(num_text, num_visual, text_ids, visual_ids, with_coattention=True):
    """The released rule, word for word (spec 1.6)."""
    ran, t_start, v_start = [], 0, 0
    for c, (t_id, v_id) in enumerate(zip(text_ids, visual_ids, strict=True)):
        while t_start < t_id:
            ran.append(f"T{t_start}")
            t_start += 1
        while v_start < v_id:
            ran.append(f"V{v_start}")
            v_start += 1
        if with_coattention:
            ran.append(f"C{c}")
    ran += [f"V{i}" for i in range(v_start, num_visual)]
    ran += [f"T{i}" for i in range(t_start, num_text)]
    return " ".join(ran)


@pytest.fixture(scope="module")
def random_configs(tiny_config):
    """300 configs with any number of layers, connections (also on one layer) and frozen layers."""
    rng, configs = random.Random(0), []
    for _ in range(300):
        num_text, num_visual = rng.randint(1, 14), rng.randint(1, 9)
        connections = rng.randint(1, 8)
        if rng.random() < 0.5:  # regular spacing, so that stretches repeat
            step_t, step_v = rng.randint(0, 2), rng.randint(0, 2)
            start_t, start_v = rng.randrange(num_text), rng.randrange(num_visual)
            text_ids = [start_t + step_t * c for c in range(connections)]
            visual_ids = [start_v + step_v * c for c in range(connections)]
            num_text, num_visual = (
                max(num_text, text_ids[-1] + 1),
                max(num_visual, visual_ids[-1] + 1),
            )
        else:
            text_ids = sorted(rng.choices(range(num_text), k=connections))
            visual_ids = sorted(rng.choices(range(num_visual), k=connections))
        configs.append(
            tiny_config(
                text=dict(
                    num_layers=num_text,
                    num_frozen_layers=rng.choice([0, rng.randint(0, text_ids[0])]),
                ),
                visual=dict(
                    num_layers=num_visual,
                    num_frozen_layers=rng.choice([0, rng.randint(0, visual_ids[0])]),
                ),
                text_connections=tuple(text_ids),
                visual_connections=tuple(visual_ids),
                with_coattention=rng.random() < 0.8,
            )
        )
    return configs


def test_base_6_runs_in_the_released_order():
    assert order_string(named_size("base_6l")) == BASE_6


def test_without_coattention_the_connections_are_left_out(tiny_config):
    config = tiny_config(with_coattention=False)
    assert order_string(config) == "T0 T1 V0 V1 T2"
    assert order_string(tiny_config()) == "T0 C0 T1 V0 C1 V1 T2"


def test_order_of_random_configs_is_the_simulated_one(random_configs):
    for config in random_configs:
        assert order_string(config) == simulate(
            config.text.num_layers,
            config.visual.num_layers,
            config.text_connections,
            config.visual_connections,
            config.with_coattention,
        )


def test_segments_cover_every_layer_once(random_configs):
    for config in random_configs:
        layers = execution_order(config)
        assert len(layers) == len(set(layers))
        connections = config.num_connections if config.with_coattention else 0
        assert set(layers) == (
            {("text", i) for i in range(config.text.num_layers)}
            | {("visual", i) for i in range(config.visual.num_layers)}
            | {("connection", i) for i in range(connections)}
        )


def test_no_segment_crosses_a_boundary(random_configs):
    """Neither the end of the frozen layers nor the point in front of the first connection."""
    crossed = 0  # how many runs of one kind would have been merged across, had nothing prevented it
    for config in random_configs:
        for kind, frozen, first in (
            ("text", config.text.num_frozen_layers, config.text_connections[0]),
            ("visual", config.visual.num_frozen_layers, config.visual_connections[0]),
        ):
            for segment in segments(config):
                ids = [i for r in range(segment.repeats) for k, i in segment.layers(r) if k == kind]
                for boundary in (frozen, first):
                    assert not (ids and min(ids) < boundary <= max(ids)), (config, segment)
            crossed += 0 < frozen < first
    assert crossed > 20


def test_nothing_that_precedes_the_first_connection_shares_a_segment_with_it(random_configs):
    for config in random_configs:
        before = {("text", i) for i in range(config.text_connections[0])}
        before |= {("visual", i) for i in range(config.visual_connections[0])}
        for segment in segments(config):
            layers = {layer for r in range(segment.repeats) for layer in segment.layers(r)}
            assert layers <= before or not layers & before


def test_base_6_compresses_to_five_segments():
    """Scanning is worth it: the repeats are found, not just allowed."""
    found = [(s.pattern, s.repeats) for s in segments(named_size("base_6l"))]
    assert found == [
        (("text",), 6),
        (("connection",), 1),
        (("text", "visual", "connection"), 5),
        (("visual",), 1),
        (("text",), 1),
    ]


def test_repeats_advance_ids_by_the_pattern(tiny_config):
    config = tiny_config(
        text=dict(num_layers=7), text_connections=(1, 3, 5), visual_connections=(0, 1, 1)
    )
    assert order_string(config) == "T0 C0 T1 T2 V0 C1 T3 T4 C2 V1 T5 T6"
    pairs = tiny_config(
        text=dict(num_layers=7), text_connections=(1, 3, 5), visual_connections=(1, 1, 1)
    )
    segment = segments(pairs)[3]
    assert (segment.pattern, segment.repeats) == (("text", "text", "connection"), 2)
    assert segment.layers(1) == [("text", 3), ("text", 4), ("connection", 2)]

"""Weights to begin with: what is taken, what stays, and what is refused."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from reference.spoiled_files import truncate_arrays

from twelve_in_one.checkpoints import init_from, model_folder, state
from twelve_in_one.checkpoints import weights as checkpoint
from twelve_in_one.checkpoints.init_from import load
from twelve_in_one.checkpoints.report import StateDictError
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.config import defaults
from twelve_in_one.config.settings import CheckpointOptions, InitFrom
from twelve_in_one.data import trained_on
from twelve_in_one.data.encode.text import SPECIALS, Tokenizer
from twelve_in_one.data.serving import Serving
from twelve_in_one.data.stored.preprocessing import Preprocessing
from twelve_in_one.models.two_stream.encoder import stack_layers, unstack_layers
from twelve_in_one.models.two_stream.trunk import abstract_params
from twelve_in_one.parallel import sharding
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.tasks.twelve import TWELVE
from twelve_in_one.training.steps import TrainState

WORDS = "trunk/text_embedding/word/embedding"


@pytest.fixture(scope="module")
def config(tiny_config):
    # Two text layers before the connection repeat, so that stacking does something.
    return tiny_config(
        visual=dict(num_layers=1),
        text_connections=(2,),
        visual_connections=(0,),
        num_tasks=20,
        heads=("vqa", "region_score"),
    )


def make_serving(config, *, words="word", answers=("yes", "no")):
    count = config.vocab_size - len(SPECIALS)
    tokenizer = Tokenizer((*SPECIALS, *(f"{words}{i}" for i in range(count))))
    preprocessing = Preprocessing(
        tokenizer.sha256, tokenizer.vocab_size, True, {}, {}, config.region_feature_dim, "boxes"
    )
    return Serving(TWELVE[:1], tokenizer, {"vqa": answers}, preprocessing)


@pytest.fixture(scope="module")
def serving(config):
    return make_serving(config)


@pytest.fixture(scope="module")
def source(tmp_path_factory, config, random_params, serving):
    path = tmp_path_factory.mktemp("source") / "model"
    model_folder.save(path, random_params(config), Vilbert(config), serving)
    return path


@pytest.fixture
def start(config, random_params):
    """Parameters of the new run, with numbers of their own."""
    return jax.tree.map(jax.numpy.asarray, random_params(config, 1))


def names_taken(params, source, before):
    """Names whose array is the source's; all others must be as they were."""
    ours, theirs, before = flatten(params), flatten(source), flatten(before)
    assert set(ours) == set(before)
    taken = set()
    for path, array in ours.items():
        if path in theirs and np.array_equal(array, theirs[path]):
            taken.add("/".join(path))
        else:
            np.testing.assert_array_equal(array, before[path])
    return taken


def all_names(config):
    return {"/".join(path) for path in checkpoint.expected_shapes(Vilbert(config))}


def test_all_is_loaded(source, config, start, serving, random_params):
    params, report = load(InitFrom(str(source)), start, Vilbert(config), serving)
    assert names_taken(params, random_params(config), start) == all_names(config)
    assert set(report.loaded) == all_names(config)
    assert report.ok and not report.initialised and not report.unused
    assert re.match(rf"loaded +{len(all_names(config))}  ", str(report))
    assert jax.tree.structure(params) == jax.tree.structure(start)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "include, exclude",
    [
        ((".*",), ("heads/.*",)),
        (("trunk/.*",), (".*/bias", ".*norm.*")),
        (("heads/vqa/.*", "trunk/text_embedding/.*"), ()),
        ((".*", "x"), (".*bias",)),
        (("trunk",), ()),  # whole names, not parts of them
        ((), ()),
    ],
)
def test_include_and_exclude(source, config, start, serving, random_params, include, exclude):
    expected = {
        name
        for name in all_names(config)
        if any(re.fullmatch(p, name) for p in include)
        and not any(re.fullmatch(p, name) for p in exclude)
    }
    options = InitFrom(str(source), include, exclude)
    params, report = load(options, start, Vilbert(config), serving)
    assert names_taken(params, random_params(config), start) == set(report.loaded) == expected
    assert set(report.initialised) == set(report.unused) == all_names(config) - expected


def test_other_heads(source, config, start, serving, tiny_config, random_params):
    """The source has a head that the run does not know, the run one that the source lacks."""
    new = dataclasses.replace(config, heads=("vqa", "image_pair"))
    start = jax.tree.map(jax.numpy.asarray, random_params(new, 1))
    lacking = {name for name in all_names(new) if name.startswith("heads/image_pair/")}
    with pytest.raises(StateDictError) as caught:
        load(InitFrom(str(source)), start, Vilbert(new), serving)
    report = caught.value.report
    assert set(report.missing) == lacking and not report.unexpected and not report.wrong_shape
    assert all(name in str(caught.value) for name in lacking)
    options = InitFrom(str(source), allow_missing=("heads/.*",))
    params, report = load(options, start, Vilbert(new), serving)
    assert set(report.initialised) == lacking
    assert {name.split("/")[1] for name in report.unused} == {"region_score"}
    assert names_taken(params, random_params(config), start) == all_names(new) - lacking


def test_parameters_that_the_run_does_not_know(source, config, serving, random_params):
    """A source with task tokens for a run without: probably not what was meant."""
    new = dataclasses.replace(config, num_tasks=0)
    start = jax.tree.map(jax.numpy.asarray, random_params(new, 1))
    with pytest.raises(StateDictError, match="text_embedding/task/embedding") as caught:
        load(InitFrom(str(source)), start, Vilbert(new), serving)
    assert caught.value.report.unexpected == ("trunk/text_embedding/task/embedding",)
    options = InitFrom(str(source), exclude=(".*/task/embedding",))
    _, report = load(options, start, Vilbert(new), serving)
    assert set(report.loaded) == all_names(new)
    assert report.unused == ("trunk/text_embedding/task/embedding",)


def test_other_shapes(source, config, serving, random_params):
    new = dataclasses.replace(config, max_positions=17, region_feature_dim=12)
    start = jax.tree.map(jax.numpy.asarray, random_params(new, 1))
    with pytest.raises(StateDictError) as caught:
        load(InitFrom(str(source)), start, Vilbert(new), serving)
    wrong = {name: (found, needed) for name, found, needed in caught.value.report.wrong_shape}
    positions = "trunk/text_embedding/position/embedding"
    assert wrong.pop(positions) == ("(13, 16)", "(17, 16)")
    ((features, shapes),) = wrong.items()
    assert shapes == ("(10, 24)", "(12, 24)")
    for text in (positions, features, "(13, 16), expected (17, 16)"):
        assert text in str(caught.value)
    # One of them allowed: the other is still an error.
    with pytest.raises(StateDictError) as caught:
        load(InitFrom(str(source), allow_missing=(positions,)), start, Vilbert(new), serving)
    assert [name for name, *_ in caught.value.report.wrong_shape] == [features]
    options = InitFrom(str(source), allow_missing=(positions, features))
    params, report = load(options, start, Vilbert(new), serving)
    assert set(report.initialised) == {positions, features}
    expected = all_names(new) - {positions, features}
    assert names_taken(params, random_params(config), start) == expected


@pytest.mark.parametrize("larger", [0, 3])
def test_another_vocabulary(source, config, random_params, larger):
    """As large as the source's or larger, its word pieces are not to be had."""
    new = dataclasses.replace(config, vocab_size=config.vocab_size + larger)
    start = jax.tree.map(jax.numpy.asarray, random_params(new, 1))
    serving = make_serving(new, words="other")
    with pytest.raises(ValueError, match=f"vocab.txt differs.*exclude '{WORDS}' in init_from"):
        load(InitFrom(str(source)), start, Vilbert(new), serving)
    options = InitFrom(str(source), exclude=(WORDS,))
    params, report = load(options, start, Vilbert(new), serving)
    assert report.initialised == (WORDS,)
    assert WORDS not in names_taken(params, random_params(config), start)


def test_words_of_lower_cased_texts_are_no_start_for_cased_ones(source, config, random_params):
    start = jax.tree.map(jax.numpy.asarray, random_params(config, 1))
    serving = make_serving(config)
    cased = dataclasses.replace(serving.tokenizer, lower_case=False)
    serving = dataclasses.replace(serving, tokenizer=cased)
    with pytest.raises(ValueError, match="trained with lower_case True, the data .* with False"):
        load(InitFrom(str(source)), start, Vilbert(config), serving)
    load(InitFrom(str(source), exclude=(WORDS,)), start, Vilbert(config), serving)


@pytest.mark.parametrize("larger", [0, 3])
def test_other_answers(source, config, random_params, larger):
    new = dataclasses.replace(config, num_vqa_answers=config.num_vqa_answers + larger)
    start = jax.tree.map(jax.numpy.asarray, random_params(new, 1))
    serving = make_serving(new, answers=("no", "yes"))
    fix = r"answers of its 'vqa' head.*exclude 'heads/vqa/\.\*' in init_from"
    with pytest.raises(ValueError, match=fix):
        load(InitFrom(str(source)), start, Vilbert(new), serving)
    params, report = load(
        InitFrom(str(source), exclude=("heads/vqa/.*",)), start, Vilbert(new), serving
    )
    assert all(name.startswith("heads/vqa/") for name in report.initialised)
    assert any(name.startswith("heads/region_score") for name in report.loaded)


@pytest.mark.parametrize(
    ("change", "weights", "said"),
    [
        ({"image_descriptor": "pixels-2"}, "trunk/visual_embedding/.*", "other regions .*pixels-2"),
        ({"boxes": "x, y, w, h"}, "trunk/visual_embedding/.*", "other regions .*x, y, w, h"),
        (None, "trunk/text_embedding/task/.*", "has row 1 .*here 5: .*task.vqa.task_token=1"),
    ],
)
def test_other_regions_and_task_tokens(source, config, start, serving, change, weights, said):
    if change is None:
        other = dataclasses.replace(
            serving, tasks=(dataclasses.replace(serving.tasks[0], task_id=5),)
        )
    else:
        changed = dataclasses.replace(serving.preprocessing, **change)
        other = dataclasses.replace(serving, preprocessing=changed)
    with pytest.raises(ValueError, match=f"{said}.*exclude '{re.escape(weights)}'"):
        load(InitFrom(str(source)), start, Vilbert(config), other)
    _, report = load(InitFrom(str(source), exclude=(weights,)), start, Vilbert(config), other)
    assert report.ok and any(re.fullmatch(weights, name) for name in report.initialised)


def test_what_the_source_was_trained_on(tmp_path, source, config, random_params, serving):
    assert "were trained on" in init_from.trained_on_of(source).unknown[0]
    seen = trained_on.TrainedOn({"vqa": np.arange(3, dtype=np.uint64)}, np.zeros(0, np.uint64))
    noted = dataclasses.replace(serving, trained_on=seen)
    model_folder.save(tmp_path / "model", random_params(config), Vilbert(config), noted)
    for path in (tmp_path, tmp_path / "model"):
        found = init_from.trained_on_of(path)
        assert found.examples["vqa"].tolist() == [0, 1, 2] and not found.unknown


def test_answers_of_a_head_that_the_run_has_no_use_for(source, config, start, serving):
    """A run without answers takes the weights of the answer head as they are."""
    bare = dataclasses.replace(serving, answers={})
    assert len(load(InitFrom(str(source)), start, Vilbert(config), bare)[1].loaded) == len(
        all_names(config)
    )


@pytest.mark.parametrize("layout", ["dp", "fsdp"])
def test_placed_as_the_parameters_were(source, config, serving, random_params, layout):
    """Stacked layers over eight devices, from an unrolled source."""
    stacked = dataclasses.replace(config, scan_layers=True)
    mesh = sharding.make_mesh()
    shardings = sharding.param_shardings(abstract_params(stacked), mesh, layout)
    start = jax.device_put(stack_layers(config, random_params(config, 1)), shardings)
    options = InitFrom(str(source), exclude=(".*/bias",))
    params, report = load(options, start, Vilbert(stacked), serving)
    assert jax.tree.structure(params) == jax.tree.structure(start)
    for leaf, where in zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding == where
    taken = names_taken(
        unstack_layers(config, params), random_params(config), random_params(config, 1)
    )
    assert taken == set(report.loaded) == {n for n in all_names(config) if "bias" not in n}


def test_sources(tmp_path, source, config, start, serving, random_params):
    """A workdir whose run has ended, and a converted checkpoint, which has no vocabularies."""
    other = make_serving(config, words="other", answers=("no",))
    workdir = tmp_path / "workdir"
    (workdir / "checkpoints" / "10").mkdir(parents=True)
    unfinished = f"--from {workdir} --to FOLDER --format params"
    with pytest.raises(ValueError, match=f"has not ended.*twelve_in_one.export {unfinished}"):
        load(InitFrom(str(workdir)), start, Vilbert(config), serving)
    model_folder.save(workdir / "model", random_params(config), Vilbert(config), serving)
    assert load(InitFrom(str(workdir)), start, Vilbert(config), serving)[1].ok
    with pytest.raises(ValueError, match="vocab.txt differs"):
        load(InitFrom(str(workdir)), start, Vilbert(config), other)
    converted = tmp_path / "converted"
    checkpoint.save_params(
        converted, random_params(config), Vilbert(config), {"a": np.ones(1, np.float32)}
    )
    params, report = load(InitFrom(str(converted)), start, Vilbert(config), other)
    assert names_taken(params, random_params(config), start) == all_names(config)
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ValueError, match=f"{path} is not a checkpoint directory"):
            load(InitFrom(str(path)), start, Vilbert(config), serving)
    (source / "tasks.json").rename(tmp_path / "tasks.json")  # not taken for a converted one
    try:
        with pytest.raises(ValueError, match=r"tasks\.json"):
            load(InitFrom(str(source)), start, Vilbert(config), serving)
    finally:
        (tmp_path / "tasks.json").rename(source / "tasks.json")


def test_a_run_whose_model_is_damaged(tmp_path, config, start, serving, random_params, caplog):
    """A checkpoint of it does instead."""
    params, zero = random_params(config), np.zeros((), np.int32)
    state.write_config(tmp_path, defaults.world_config())
    with state.Checkpoints(tmp_path, CheckpointOptions(1, 1, 0, 0)) as checkpoints:
        saved = TrainState(zero, zero, zero, params, {"count": zero})
        checkpoints.save(saved, state.Progress(7, {}, {}, {}, {}, 0.0))
    model_folder.save(tmp_path / "model", random_params(config, 2), Vilbert(config), serving)
    truncate_arrays(tmp_path / "model")
    taken, report = load(InitFrom(str(tmp_path)), start, Vilbert(config), serving)
    assert report.ok
    assert names_taken(taken, params, start) == all_names(config)
    assert f"damaged model: {tmp_path / 'model'}" in caplog.text
    with pytest.raises(ValueError, match="model is damaged"):
        load(InitFrom(str(tmp_path / "model")), start, Vilbert(config), serving)


def test_the_report(source, config, serving, random_params):
    new = dataclasses.replace(config, heads=("vqa", "image_pair"))
    start = jax.tree.map(jax.numpy.asarray, random_params(new, 1))
    options = InitFrom(str(source), exclude=("heads/vqa/.*",), allow_missing=("heads/.*",))
    _, report = load(options, start, Vilbert(new), serving)
    lines = str(report).splitlines()
    drawn = [name for name in all_names(new) if name.startswith("heads/")]
    trunk = len(all_names(new)) - len(drawn)
    assert lines[0] == f"loaded      {trunk:>5}  became parameters"
    assert lines[1].startswith(f"initialised {len(drawn):>5}  ")
    assert any("heads/vqa" in line for line in lines)
    for kind in ("missing", "unexpected", "wrong shape"):
        assert any(re.match(rf"{kind} +0\b", line) for line in lines)

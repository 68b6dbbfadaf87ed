"""Exported models: what is written is the model, and can be used without this package."""

import dataclasses
import gc
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export
from reference.spoiled_files import truncate_arrays
from safetensors.numpy import load_file

from twelve_in_one.checkpoints import model_folder, state
from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.config import defaults
from twelve_in_one.config.settings import CheckpointOptions
from twelve_in_one.convert.__main__ import main as convert
from twelve_in_one.convert.files import read_state_dict
from twelve_in_one.data.encode.text import SPECIALS, Tokenizer
from twelve_in_one.data.serving import Serving, load_serving
from twelve_in_one.data.stored.preprocessing import Preprocessing
from twelve_in_one.export import (
    export_jax,
    export_params,
    export_safetensors,
    main,
    open_model,
)
from twelve_in_one.exporting.signature import artefacts
from twelve_in_one.models.two_stream.config import named_size
from twelve_in_one.models.two_stream.encoder import stack_layers
from twelve_in_one.models.two_stream.trunk import TwoStreamModel, abstract_params
from twelve_in_one.parallel import sharding
from twelve_in_one.systems.vilbert import Vilbert, trunk_inputs
from twelve_in_one.tasks.twelve import TWELVE
from twelve_in_one.training.steps import TrainState

TASKS = tuple(
    dataclasses.replace(task, max_tokens=6, max_regions=5)
    for task in TWELVE
    if task.name in ("vqa", "coco", "refcoco", "refcoco+", "nlvr2")
)
BY_NAME = {task.name: task for task in TASKS}
TEXTS = ("vocab.txt", "answers-vqa.json", "preprocessing.json", "tasks.json")
# Of the scores of one program compiled twice, for other sizes of batch.
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def config(tiny_config):
    # Dropout that would show if it were on.
    rates = dict(dropout_rate=0.5, attention_dropout_rate=0.5)
    heads = ("vqa", "image_pair", "image_text_match", "region_score", "masked_language")
    return tiny_config(
        text=rates | dict(num_layers=1),
        visual=rates | dict(num_layers=1),
        text_connections=(0,),
        visual_connections=(0,),
        num_tasks=20,
        heads=heads,
        head_dropout_rate=0.5,
    )


@pytest.fixture(scope="module")
def params(config, random_params):
    return random_params(config)


@pytest.fixture(scope="module")
def serving(config):
    words = (*SPECIALS, *(f"word{i}" for i in range(config.vocab_size - len(SPECIALS))))
    tokenizer = Tokenizer(words)
    preprocessing = Preprocessing(
        vocab_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        lower_case=True,
        max_tokens={task.name: task.max_tokens for task in TASKS},
        max_regions={task.name: task.max_regions for task in TASKS},
        region_feature_dim=config.region_feature_dim,
        region_source="boxes",
    )
    answers = ("yes", "no", "grün")
    return Serving(TASKS, tokenizer, {"vqa": answers}, preprocessing)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, config, params, serving):
    path = tmp_path_factory.mktemp("saved") / "model"
    model_folder.save(path, params, Vilbert(config), serving)
    return path


@pytest.fixture(scope="module")
def jax_dir(tmp_path_factory, model_dir):
    path = tmp_path_factory.mktemp("exported") / "jax"
    heads = "vqa,image_text_match,region_score"
    asked = ["--from", str(model_dir), "--to", str(path), "--format", "jax"]
    assert main([*asked, "--heads", heads, "--platforms", "cpu"]) == 0
    return path


@pytest.fixture(scope="module")
def signature(jax_dir):
    return json.loads((jax_dir / "signature.json").read_text())


@pytest.fixture(scope="module")
def expected(config, params):
    """{task: (inputs of 8 examples, the model's scores)}; rows do not depend on each other."""

    def one(task, seed):
        rng = np.random.default_rng(seed)
        k = 2 if task.head == "image_pair" else 1
        lead, t, r = (8, k) if k > 1 else (8,), task.max_tokens, task.max_regions
        batch = dict(
            tokens=rng.integers(0, config.vocab_size, (*lead, t), np.int32),
            token_mask=np.arange(t) < rng.integers(2, t + 1, (*lead, 1)),
            regions=rng.normal(size=(*lead, r, config.region_feature_dim)).astype(np.float32),
            boxes=rng.uniform(size=(*lead, r, 5)).astype(np.float32),
            region_mask=np.arange(r) < rng.integers(1, r + 1, (*lead, 1)),
            task_id=np.int32(task.task_id),
        )
        inputs = rows = trunk_inputs(dataclasses.replace(task, rows_per_example=k), batch)
        if task.kind == "match":  # all pairs of 8 captions and 8 images, as plain rows
            caption, image = np.indices((8, 8)).reshape(2, 64)
            pick = {key: caption if "token" in key else image for key in inputs}
            rows = {key: x[pick[key]] if x.ndim else x for key, x in inputs.items()}
        apply = jax.jit(lambda *args: model.apply(*args, **rows, heads=(task.head,))[0][task.head])
        scores = np.asarray(apply({"params": params}))
        return inputs, scores.reshape(8, 8) if task.kind == "match" else scores

    model = TwoStreamModel(config)
    return {task.name: one(task, seed) for seed, task in enumerate(TASKS) if task.name != "refcoco"}


def some(inputs, texts, images):
    """The first so many rows."""
    counts = {k: texts if "token" in k else images for k in inputs}
    return {k: x[: counts[k]] if x.ndim else x for k, x in inputs.items()}


def function(folder, signature, task):
    """A task's function of an exported folder."""
    (entry,) = [item for item in signature["artefacts"] if task.name in item["task_ids"]]
    assert entry["task_ids"][task.name] == task.task_id
    score = jax.jit(export.deserialize((folder / entry["file"]).read_bytes()).call)
    params = numbers(folder)
    return lambda inputs: np.asarray(score(params, inputs))


def numbers(folder):
    """The parameters of an exported folder."""
    return load_file(folder / "params.safetensors")


def flat(params):
    return {"/".join(path): leaf for path, leaf in flatten(params).items()}


def assert_same(ours, theirs):
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(np.asarray(array), np.asarray(theirs[name]), err_msg=name)


# ------------------------------------------------------------------------------------------- jax


def test_another_process_runs_it_without_the_package(tmp_path, jax_dir, expected):
    """Isolated from PYTHONPATH and from what is installed; only where jax lies is put back."""
    assert len((jax_dir / "run.py").read_text().splitlines()) <= 45
    code = (
        "import runpy, sys\n"
        "_, site, script, task, inputs = sys.argv\n"
        "sys.path.append(site)\n"
        "try:\n"
        "    import twelve_in_one\n"
        "except ImportError:\n"
        "    for sys.argv in ([script, task], [script, task, inputs]):\n"
        "        runpy.run_path(script, run_name='__main__')\n"
        "else:\n"
        "    sys.exit('the package can be imported')\n"
    )
    inputs, wanted = expected["refcoco+"]
    np.savez(tmp_path / "inputs.npz", **inputs)
    site, script = Path(jax.__file__).parents[1], jax_dir / "run.py"
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, site, script, "refcoco+", "inputs.npz"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=environment | {"JAX_PLATFORMS": "cpu"},
    )
    assert run.returncode == 0, run.stderr
    random, given = (np.array(json.loads(line)) for line in run.stdout.splitlines())
    assert random.shape == (2, 5) and np.isfinite(random).all()
    np.testing.assert_allclose(given, wanted, **CLOSE)


@pytest.mark.parametrize(
    "arguments, code",
    [([], 2), (["vqq"], 2), (["vqa", "a.npz", "b.npz"], 2), (["--help"], 0), (["vqa", "-h"], 0)],
)
def test_its_usage_lists_the_tasks(arguments, code, jax_dir, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(jax_dir / "run.py"), run_name="__main__")
    assert ended.value.code == code
    usage = "usage: python run.py TASK [INPUTS.npz]\nTASK is one of vqa, coco, refcoco, refcoco+\n"
    assert capsys.readouterr() == ((usage, "") if code == 0 else ("", usage))


def test_loading_an_unknown_task_names_the_known(jax_dir):
    load = runpy.run_path(str(jax_dir / "run.py"))["load"]
    with pytest.raises(ValueError, match="has no task 'vqq'; it has vqa, coco, refcoco, refcoco"):
        load(jax_dir, "vqq")


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_any_number_of_rows(rows, jax_dir, signature, expected):
    inputs, wanted = expected["vqa"]
    found = function(jax_dir, signature, BY_NAME["vqa"])(some(inputs, rows, rows))
    np.testing.assert_allclose(found, wanted[:rows], **CLOSE)


def test_captions_and_images_are_counted_apart(jax_dir, signature, expected):
    inputs, wanted = expected["coco"]
    found = function(jax_dir, signature, BY_NAME["coco"])(some(inputs, 2, 5))
    np.testing.assert_allclose(found, wanted[:2, :5], **CLOSE)


def test_signature_says_what_the_functions_take(jax_dir, signature):
    assert [entry["file"] for entry in signature["artefacts"]] == [
        "vqa.jaxexport", "coco.jaxexport", "refcoco.jaxexport",
    ]  # fmt: skip
    assert signature["artefacts"][2]["task_ids"] == {"refcoco": 9, "refcoco+": 10}
    assert set(signature["letters"]) == {"b", "m", "n"}
    readme = (jax_dir / "README.md").read_text()
    assert len([line for line in readme.splitlines() if line.startswith("|")]) == 2 + 3
    for entry in signature["artefacts"]:
        loaded = export.deserialize((jax_dir / entry["file"]).read_bytes())
        assert loaded.platforms == tuple(signature["platforms"]) == ("cpu",)
        (_, inputs), _ = jax.tree.unflatten(loaded.in_tree, loaded.in_avals)
        (output,) = loaded.out_avals
        for item, aval in [(entry["inputs"][k], x) for k, x in inputs.items()] + [
            (entry["output"], output)
        ]:
            assert list(map(str, item["shape"])) == list(map(str, aval.shape))
            assert item["dtype"] == aval.dtype
        assert inputs.keys() == entry["inputs"].keys()
        assert entry["file"] in readme
        assert 0 <= entry["largest_difference"] <= 1e-4


def test_beside_the_functions_is_what_serving_takes(jax_dir, model_dir, params, serving):
    tasks = tuple(task for task in TASKS if task.name != "nlvr2")
    assert (jax_dir / "config.json").read_bytes() == (model_dir / "config.json").read_bytes()
    assert load_serving(jax_dir) == dataclasses.replace(serving, tasks=tasks)
    assert len({path.stat().st_mode for path in jax_dir.iterdir()}) == 1
    stored, wanted = numbers(jax_dir), flat(params)
    assert {name.split("/")[1] for name in wanted if name not in stored} == {
        "image_pair", "masked_language", "masked_language_bias",
    }  # fmt: skip
    for name, array in stored.items():
        np.testing.assert_array_equal(array, wanted[name])


def test_one_head_of_a_model_that_trains_on_eight_devices(
    tmp_path, config, params, serving, expected
):
    """Distributed parameters give functions for one device, of every platform."""
    mesh = sharding.make_mesh(model=2)
    placed = jax.device_put(
        params, sharding.param_shardings(abstract_params(config), mesh, "fsdp_tp")
    )
    trained = dataclasses.replace(config, remat="full")
    lines = []
    out = tmp_path / "out"
    export_jax(out, placed, Vilbert(trained), serving, heads=("image_pair",), log=lines.append)
    assert {path.name for path in out.iterdir()} == {
        "nlvr2.jaxexport", "params.safetensors", "signature.json", "README.md", "run.py",
        "config.json", "vocab.txt", "preprocessing.json", "tasks.json",
    }  # fmt: skip
    assert any("nlvr2.jaxexport" in line and "MB" in line for line in lines)
    loaded = export.deserialize((out / "nlvr2.jaxexport").read_bytes())
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    assert loaded.nr_devices == 1
    stored = numbers(out)
    assert {name.split("/")[1] for name in stored if name.startswith("heads/")} == {"image_pair"}
    signature = json.loads((out / "signature.json").read_text())
    assert set(signature["letters"]) == {"b", "2*b"}
    inputs, wanted = expected["nlvr2"]
    found = function(out, signature, BY_NAME["nlvr2"])(inputs)
    np.testing.assert_allclose(found, wanted, **CLOSE)


def test_no_mesh_gets_in(tmp_path, config, params, serving):
    with (
        sharding.use(sharding.make_mesh(), "dp"),
        pytest.raises(ValueError, match="outside of sharding.use"),
    ):
        export_jax(tmp_path / "out", params, Vilbert(config), serving)


def test_low_precision_passes_its_own_check(tmp_path, config, params, serving):
    low = dataclasses.replace(config, dtype="bfloat16")
    heads = ("image_text_match",)
    export_jax(tmp_path / "out", params, Vilbert(low), serving, heads=heads, platforms=("cpu",))
    signature = json.loads((tmp_path / "out" / "signature.json").read_text())
    assert signature["artefacts"][0]["output"]["dtype"] == "float32"


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_what_is_wrong_is_not_left_behind(value, tmp_path, config, params, serving):
    shape = config.num_vqa_answers

    class Broken(Vilbert):
        """One whose exported function does not give what the model says."""

        def _function(self, task):
            def constant(value):
                return lambda params, inputs: jax.numpy.full(
                    (inputs["tokens"].shape[0], shape), value, jax.numpy.float32
                )

            found = super()._function(task)
            return dataclasses.replace(found, scores=constant(value), plain=constant(1))

    with pytest.raises(ValueError, match=r"vqa.jaxexport differs from the model by (\d|nan)"):
        export_jax(
            tmp_path / "out", params, Broken(config), serving, heads=("vqa",), platforms=("cpu",)
        )
    assert list(tmp_path.iterdir()) == []


def test_tasks_that_differ_in_lengths_get_functions_of_their_own():
    functions = artefacts(Vilbert(named_size("tiny")), TWELVE)
    assert [list(function.task_ids) for function in functions] == [
        ["vqa"], ["vgqa"], ["gqa"], ["coco", "flickr30k"], ["refcoco", "refcoco+", "refcocog"],
        ["visual7w"], ["guesswhat"], ["nlvr2"], ["snli_ve"],
    ]  # fmt: skip


# --------------------------------------------------------------------------- params, safetensors


def test_safetensors_come_back_through_convert(tmp_path, model_dir, config, params, serving):
    out, back = tmp_path / "out", tmp_path / "back"
    assert main(["--from", str(model_dir), "--to", str(out), "--format", "safetensors"]) == 0
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    assert "bert.t_pooler.dense.weight" in read_state_dict(out / "model.safetensors")
    for name in TEXTS:
        assert (out / name).read_bytes() == (model_dir / name).read_bytes()
    assert load_serving(out) == serving
    assert convert([str(out), str(back), "--config", str(out / "two_stream_config.json")]) == 0
    loaded, loaded_config, _ = model_folder.weights.load_params(back)
    assert_same(loaded, params)
    assert loaded_config == Vilbert(config)
    assert convert([str(out), str(tmp_path / "plain")]) == 0  # with the released keys alone
    assert_same(model_folder.weights.load_params(tmp_path / "plain")[0], params)


@pytest.fixture(scope="module")
def deep(tiny_config):
    """A config with layers that repeat, so that stacking does something."""
    one = dict(visual=dict(num_layers=1), text_connections=(2,), visual_connections=(0,))
    return tiny_config(num_tasks=20, **one)


def test_stacked_layers_are_written_like_others(tmp_path, deep, random_params, serving):
    params = random_params(deep)
    scanned, stacked = dataclasses.replace(deep, scan_layers=True), stack_layers(deep, params)
    assert any(name.startswith("segment_") for name in stacked["trunk"]["encoder"])
    export_params(tmp_path / "params", stacked, Vilbert(scanned), serving)
    loaded, loaded_config, loaded_serving = model_folder.load(tmp_path / "params")
    assert_same(loaded, params)
    assert (loaded_config, loaded_serving) == (Vilbert(deep), serving)
    export_safetensors(tmp_path / "stacked", stacked, Vilbert(scanned), serving)
    export_safetensors(tmp_path / "plain", params, Vilbert(deep), serving)
    for name in ("model.safetensors", "config.json", "two_stream_config.json"):
        pair = ((tmp_path / folder / name).read_bytes() for folder in ("stacked", "plain"))
        assert len(set(pair)) == 1


# ------------------------------------------------------------------------------ what to export


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, deep, random_params, serving):
    """Of a run with stacked layers that has saved rounds 2, 4 and 6, the second the best."""
    folder = tmp_path_factory.mktemp("run")
    params = random_params(deep)
    settings = defaults.world_config()
    settings.model.scan_layers = True
    state.write_config(folder, settings)
    options = CheckpointOptions(every_rounds=2, keep_latest=3, keep_best=1, keep_every_rounds=0)
    zero = np.zeros((), np.int32)
    with state.Checkpoints(folder, options) as checkpoints:
        for round, score in ((2, 0.5), (4, 0.7), (6, 0.6)):
            scaled = jax.tree.map(lambda leaf, factor=round: leaf * np.float32(factor), params)
            saved = TrainState(zero, zero, zero, stack_layers(deep, scaled), {"count": zero})
            checkpoints.save(saved, state.Progress(round, {}, {}, {"vqa": score}, {}, 0.0))
    model_folder.save(folder / "model", params, Vilbert(deep), serving)
    return folder


@pytest.mark.parametrize("name, factor", [("2", 2), ("best", 4), ("latest", 6), (None, 1)])
def test_rounds_of_a_run(name, factor, tmp_path, workdir, deep, random_params, serving):
    asked = ["--from", str(workdir), "--to", str(tmp_path / "out"), "--format", "params"]
    assert main(asked + (["--round", name] if name else [])) == 0
    loaded, loaded_config, loaded_serving = model_folder.load(tmp_path / "out")
    params = random_params(deep)
    assert_same(loaded, jax.tree.map(lambda leaf: leaf * np.float32(factor), params))
    assert (loaded_config, loaded_serving) == (Vilbert(deep), serving)


@pytest.mark.parametrize("name, broken, factor", [
    ("best", ["checkpoints/4"], 6), ("latest", ["checkpoints/6", "checkpoints/4"], 2),
    (None, ["model"], 6), (None, ["model", "checkpoints/6"], 4),
])  # fmt: skip
def test_what_is_damaged_gives_way(
    name, broken, factor, tmp_path, workdir, deep, random_params, caplog
):
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    for part in broken:
        truncate_arrays(folder / part)
    params = open_model(folder, name).params
    expected = random_params(deep)
    assert_same(params, jax.tree.map(lambda leaf: leaf * np.float32(factor), expected))
    for part in broken:
        assert str(folder / part) in caplog.text
    assert f"going on from round {factor}" in caplog.text or broken == ["model"]
    gc.collect()
    assert "never retrieved" not in caplog.text  # tracebacks of the library's tasks


def test_a_damaged_round_by_number(tmp_path, workdir):
    """Another would not be what was asked for: what there is is named."""
    shutil.copytree(workdir, tmp_path / "run")
    truncate_arrays(tmp_path / "run" / "checkpoints" / "4")
    with pytest.raises(ValueError, match="run/checkpoints/4.*other rounds there: 2, 6"):
        open_model(tmp_path / "run", "4")


@pytest.mark.parametrize(
    "source, options, message",
    [
        ("nowhere", [], "nowhere does not exist; give a workdir or a model folder"),
        ("empty", [], "empty has no checkpoint: give a workdir"),
        ("model", ["--round", "2"], "is a model folder, which has no rounds"),
        ("run", ["--round", "3"], "no checkpoint of round 3; there are 2, 4, 6, latest and best"),
        ("run", ["--round", "first"], "no checkpoint of round first"),
        ("model", ["--heads", "vqa,gqq"], "heads gqq: the tasks of the model read vqa, image_tex"),
        ("model", ["--platforms", "cpu,gpu"], "platforms gpu: known are cpu, cuda, rocm, tpu"),
        ("model", ["--platforms", "tpu"], "platforms tpu: add cpu, on which this process runs"),
        ("model", ["--to", "there"], "there exists; pass --overwrite to replace it"),
        ("bare", [], "preprocessing.json"),
        ("model", ["--overwrite", "--to", "model"], "would replace what --from reads"),
        ("model", ["--overwrite", "--to", "mine"], "mine is a folder with thesis.txt, no model"),
        ("model", ["--overwrite", "--to", "run"], "no model that this package wrote"),
    ],
)
def test_user_errors(source, options, message, tmp_path, capsys, model_dir, workdir):
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    shutil.copytree(model_dir, tmp_path / "bare")
    (tmp_path / "bare" / "preprocessing.json").unlink()
    known = {"model": model_dir, "run": workdir}
    path = known.get(source, tmp_path / source)
    if "--to" in options:
        to = options[-1]
        options = [*options[:-1], str(known.get(to, tmp_path / to))]
    asked = ["--from", str(path), "--to", str(tmp_path / "out"), "--format", "jax", *options]
    before = sorted(tmp_path.rglob("*"))
    assert main(asked) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_no_round_was_validated(tmp_path, capsys, workdir):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copytree(workdir / "checkpoints" / "2", tmp_path / "run" / "checkpoints" / "2")
    progress = tmp_path / "run" / "checkpoints" / "2" / "progress" / "metadata"
    progress.write_text(json.dumps(json.loads(progress.read_text()) | {"scores": {}}))
    asked = ["--from", str(tmp_path / "run"), "--to", str(tmp_path / "out"), "--format", "params"]
    assert main([*asked, "--round", "best"]) == 1
    assert "no checkpoint was validated yet; take --round latest" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--format", "onnx"], "invalid choice: 'onnx'"),
        (["--format", "params", "--heads", "vqa"], "--heads and --platforms are for --format jax"),
    ],
)
def test_wrong_usage(options, message, tmp_path, capsys, model_dir):
    with pytest.raises(SystemExit) as error:
        main(["--from", str(model_dir), "--to", str(tmp_path / "out"), *options])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_replaces_only_on_request(tmp_path, config, params, serving):
    for write in (export_params, export_safetensors):
        out = tmp_path / write.__name__
        write(out, params, Vilbert(config), serving)
        (out / "old").touch()
        with pytest.raises(FileExistsError, match="exists"):
            write(out, params, Vilbert(config), serving)
        assert (out / "old").exists()
        write(out, params, Vilbert(config), serving, overwrite=True)
        assert not (out / "old").exists()

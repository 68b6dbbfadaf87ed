"""Train and eval steps of all kinds of task: what they sum, what they change, that they resume."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from twelve_in_one.checkpoints.trees import flatten
from twelve_in_one.evaluators import rows
from twelve_in_one.models.two_stream.config import PRETRAINING_HEADS
from twelve_in_one.models.two_stream.trunk import TwoStreamModel
from twelve_in_one.optim import adamw, param_groups
from twelve_in_one.systems.vilbert import TRUNK_KEYS, Vilbert
from twelve_in_one.tasks.losses import Sums
from twelve_in_one.tasks.task import Task
from twelve_in_one.tasks.twelve import CONCEPTUAL_CAPTIONS
from twelve_in_one.training import steps

B, T, R, M = 4, 5, 4, 3


def task(task_id, kind, head, rows_per_example=1, num_choices=0):
    sizes = dict(max_tokens=T, max_regions=R, batch_size=B, learning_rate=1e-4)
    return Task(
        kind, kind, "G1", task_id, head, kind, rows_per_example, num_choices=num_choices, **sizes
    )


TASKS = (
    task(1, "answer", "vqa"),
    task(2, "verdict", "image_pair", rows_per_example=2),
    task(3, "match", "image_text_match", rows_per_example=4),
    task(4, "region", "region_score"),
    task(5, "choice", "region_score", num_choices=M),
)
ANSWER = TASKS[0]
EVERY_KIND = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)


@pytest.fixture(scope="module")
def config(tiny_config):
    noisy = dict(num_layers=1, dropout_rate=0.1, attention_dropout_rate=0.1)
    return tiny_config(
        text=noisy,
        visual=noisy,
        text_connections=(0,),
        visual_connections=(0,),
        coattention_heads=4,
        heads=("vqa", "image_pair", "image_text_match", "region_score"),
        head_dropout_rate=0.1,
    )


@pytest.fixture(scope="module")
def params(config, random_params):
    return random_params(config)


@pytest.fixture(scope="module")
def draw(config, random_batch):
    """Batches of a task with soft targets, noise in padding, and the last row only a filler."""

    def make(task, seed=0):
        k = task.rows_per_example
        rng = np.random.default_rng(seed)
        rows = random_batch(config, rows=B * k, tokens=T, regions=R, seed=seed)
        del rows["token_types"], rows["task_id"]
        batch = {x: v.reshape(B, k, *v.shape[1:]) if k > 1 else v for x, v in rows.items()}
        batch |= dict(task_id=np.int32(task.task_id), _mask=np.arange(B) < B - 1)
        width = dict(answer=config.num_vqa_answers, verdict=2, region=R, choice=M)
        if task.kind == "match":
            return batch | dict(targets=rng.integers(0, k, B, np.int32))
        targets = rng.uniform(size=(B, width[task.kind])).astype(np.float32)
        if task.kind == "choice":
            order = rng.permuted(np.tile(np.arange(R, dtype=np.int32), (B, 1)), axis=1)
            batch["choices"] = order[:, :M]
            batch["choice_mask"] = np.arange(M) < np.array([[3], [2], [3], [2]])
        return batch | dict(targets=targets)

    return make


@pytest.fixture(scope="module")
def evaluate(config, params):
    """Eval step of a task, `evaluate(task, batch)` gives NumPy `Sums`."""
    compiled = functools.cache(lambda task: jax.jit(rows.make_eval_step(Vilbert(config), task)))
    return lambda task, batch: jax.device_get(compiled(task)(params, batch).sums)


# ------------------------------------------------------------------------- sums of an evaluation


def cross_entropy(x, y):
    """Sigmoid cross-entropy in float64, from its definition."""
    p = 1 / (1 + np.exp(-x))
    return -y * np.log(p) - (1 - y) * np.log(1 - p)


def expected_sums(task, logits, batch):
    """Loss and score, an example at a time, from the logits of all trunk rows."""
    loss = score = 0.0
    logits = np.asarray(logits, np.float64)
    for b in np.flatnonzero(batch["_mask"]):
        y = batch["targets"][b]
        if task.kind in ("answer", "verdict"):
            x = logits[b]
            loss += (
                cross_entropy(x, y).sum() if task.kind == "answer" else cross_entropy(x, y).mean()
            )
            score += y[x.argmax()]
        elif task.kind == "match":
            x = logits[4 * b : 4 * b + 4]
            loss -= np.log(np.exp(x[y]) / np.exp(x).sum())
            score += x.argmax() == y
        elif task.kind == "region":
            real = batch["region_mask"][b]
            x, y = logits[b][real], y[real]
            loss += cross_entropy(x, y).sum()
            score += y[x.argmax()] > 0.5
        else:
            choices = batch["choices"][b]
            real = batch["choice_mask"][b] & batch["region_mask"][b][choices]
            x, y = logits[b][choices[real]], y[real]
            loss += cross_entropy(x, y).sum()
            score += x.argmax() == y.argmax()
    return loss, score, batch["_mask"].sum()


@pytest.fixture(scope="module")
def logits_of(config, params):
    """logits_of(task, batch): of its trunk rows, in order. One program of all heads serves all."""
    model, rows = TwoStreamModel(config), B * max(task.rows_per_example for task in TASKS)
    apply = jax.jit(functools.partial(model.apply, heads=config.heads))

    def run(task, batch):
        inputs = {name: batch[name] for name in TRUNK_KEYS}
        if task.rows_per_example > 1:  # every row of every example
            inputs = {name: np.concatenate(list(x)) for name, x in inputs.items()}
        filled = {name: np.resize(x, (rows, *x.shape[1:])) for name, x in inputs.items()}
        out, _ = apply({"params": params}, **filled, task_id=np.int32(task.task_id))
        return out[task.head]

    return run


@EVERY_KIND
def test_eval_step_sums_what_the_logits_say(task, draw, evaluate, logits_of):
    batch = draw(task)
    expected = expected_sums(task, logits_of(task, batch), batch)
    np.testing.assert_allclose(evaluate(task, batch), expected, rtol=2e-6)


@EVERY_KIND
def test_fillers_add_exactly_nothing(task, draw, evaluate):
    batch, other = draw(task), draw(task, seed=1)
    keep = batch["_mask"]
    assert keep.any() and not keep.all()
    swapped = dict(batch)
    for name, x in batch.items():
        if x.ndim:
            rows = keep.reshape(-1, *[1] * (x.ndim - 1))
            swapped[name] = np.where(rows, x, other[name]) if name != "_mask" else x
    assert not np.array_equal(swapped["regions"], batch["regions"])
    ours, theirs = evaluate(task, batch), evaluate(task, swapped)
    np.testing.assert_array_equal(ours, theirs)
    nothing = evaluate(task, batch | dict(_mask=np.zeros(B, bool)))
    np.testing.assert_array_equal(nothing, (0, 0, 0))


@pytest.mark.parametrize("task", (TASKS[1], TASKS[4]), ids=lambda task: task.kind)
def test_halves_add_up(task, draw, evaluate):
    batch = draw(task)
    halves = [
        evaluate(task, {name: x[half] if x.ndim else x for name, x in batch.items()})
        for half in (slice(2), slice(2, B))
    ]
    added = Sums(*map(np.add, *halves))
    np.testing.assert_allclose(added, evaluate(task, batch), rtol=1e-6)
    assert [half.count for half in halves] == [2, 1]


# ------------------------------------------------------------------------------------- updates


GROUPS = param_groups.two_stream(head_learning_rate=1.0, weight_decay=0.0)
ADAM = adamw.adamw(3e-3, GROUPS)
SCALE = 3.0  # of the loss, in the gradient


@pytest.fixture(scope="module")
def still(config):
    """The config without dropout, so that a batch and its parts have the same masks: none."""
    quiet = dict(dropout_rate=0.0, attention_dropout_rate=0.0)
    return dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, **quiet),
        visual=dataclasses.replace(config.visual, **quiet),
        head_dropout_rate=0.0,
    )


@pytest.fixture(scope="module")
def gradient_of(still):
    """gradient_of(task, params, batch): of the scaled loss without dropout, and the metrics."""
    compiled = functools.cache(
        lambda task: jax.jit(
            steps.make_grad_step(Vilbert(still).objective((task,)), loss_scale=SCALE)
        )
    )
    return lambda task, params, batch: compiled(task)(params, np.int32(0), batch, jax.random.key(0))


@pytest.fixture(scope="module")
def updated():
    """updated(state, gradient): by AdamW without decay, at the end of a round."""
    update = jax.jit(steps.make_update_step(ADAM))
    return lambda state, gradient: update(state, gradient, np.bool_(False), np.bool_(True))


# What the region scores do not read: whatever only the text or the pooled vectors pass through.
UNREAD_BY_REGIONS = (
    "trunk/text_pooler/",
    "trunk/visual_pooler/",
    "trunk/encoder/text_layer_0/",
    "trunk/encoder/connection_0/text_",
)


@EVERY_KIND
def test_updates_lower_the_loss_and_change_only_what_the_task_reads(
    task, params, draw, gradient_of, updated
):
    """Other heads, and other rows of the task table, stay as they were to the bit."""
    batch, state = draw(task), steps.init_state(params, ADAM)
    history = []
    for _ in range(40):
        gradient, metrics = gradient_of(task, state.params, batch)
        state = updated(state, gradient)
        history.append(float(metrics.sums.mean_loss()))
    assert state.step == state.clock == 40 and metrics.sums.count == B - 1
    assert np.mean(history[-5:]) < 0.8 * np.mean(history[:5])

    after = flatten(state.params)
    for path, value in flatten(params).items():
        changed = np.asarray(after[path]) != value
        name = "/".join(path)
        if path[0] == "heads":
            assert changed.any() == (path[1] == task.head), name
        elif path[-2:] == ("task", "embedding"):
            assert np.flatnonzero(changed.any(axis=1)).tolist() == [task.task_id]
        else:
            unread = task.head == "region_score" and name.startswith(UNREAD_BY_REGIONS)
            assert changed.any() != unread, name


def test_a_resumed_run_goes_on_to_the_bit(config, random_params, draw):
    """Dropout included: its masks follow from the key and the number of the step."""
    config = dataclasses.replace(config, heads=(ANSWER.head,))
    params = random_params(config)
    batches = [draw(ANSWER, seed) for seed in range(2)]
    # This kind of key compiles in a fraction of the default kind's time.
    key, another = (jax.random.key(seed, impl="unsafe_rbg") for seed in range(2))
    state = steps.init_state(params, ADAM)
    step = jax.jit(steps.make_train_step(Vilbert(config).objective((ANSWER,)), ADAM))
    saved = jax.device_get(step(state, batches[0], key)[0])
    through, through_sums = step(step(state, batches[0], key)[0], batches[1], key)
    resumed, resumed_sums = step(jax.device_put(saved), batches[1], key)
    assert resumed.step == 2
    assert jax.tree.structure(resumed) == jax.tree.structure(through)
    jax.tree.map(np.testing.assert_array_equal, resumed, through)
    jax.tree.map(np.testing.assert_array_equal, resumed_sums, through_sums)
    # The step, and nothing else, makes the difference between one mask and the next.
    losses = [step(saved._replace(step=np.int32(i)), batches[1], key)[1].sums.loss for i in (1, 2)]
    assert losses[0] == through_sums.sums.loss != losses[1]
    other_key = step(saved, batches[1], another)[1].sums.loss
    assert other_key != through_sums.sums.loss


def test_the_gradient_is_that_of_the_scaled_mean_loss(params, draw, evaluate, gradient_of):
    """Against a difference quotient along it; the scale goes into the gradient, not the sums."""
    task = TASKS[3]
    batch = draw(task)
    gradient, metrics = gradient_of(task, params, batch)
    grads = jax.tree.map(lambda grad: np.asarray(grad, np.float64), gradient.grads)
    norm = np.sqrt(sum(np.sum(grad**2) for grad in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-5)

    def mean_loss(along):
        moved = jax.tree.map(lambda x, grad: np.float32(x + along * grad / norm), params, grads)
        return float(gradient_of(task, moved, batch)[1].sums.mean_loss())

    slope = (mean_loss(0.003) - mean_loss(-0.003)) / 0.006
    np.testing.assert_allclose(SCALE * slope, norm, rtol=0.01)
    # What is reported has no scale.
    np.testing.assert_allclose(metrics.sums, evaluate(task, batch), rtol=1e-6)


# ------------------------------------------------------------ parts, sums of tasks, bad gradients


# Of an example a row, of one with several, and of one that gathers its choices.
@pytest.mark.parametrize("task", (TASKS[0], TASKS[2], TASKS[4]), ids=lambda task: task.kind)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(task, params, still, draw, gradient_of):
    """Parts with different numbers of real rows weigh by them."""
    batch = draw(task)
    whole = gradient_of(task, params, batch)
    in_parts = jax.jit(
        steps.make_grad_step(Vilbert(still).objective((task,)), loss_scale=SCALE, accumulate=2)
    )
    parts = in_parts(params, np.int32(0), batch, jax.random.key(0))
    np.testing.assert_allclose(parts[1].sums, whole[1].sums, rtol=1e-6)
    norm = float(whole[1].grad_norm)
    np.testing.assert_allclose(parts[1].grad_norm, norm, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * norm),
        parts[0].grads,
        whole[0].grads,
    )


def test_parts_have_masks_of_their_own(params, config, draw):
    """Equal rows in both parts; the loss of each part alone, the other left out."""
    batch, key, zero = draw(ANSWER), jax.random.key(0, impl="unsafe_rbg"), np.int32(0)
    for name, x in batch.items():
        if np.ndim(x):
            batch[name] = np.repeat(x[: B // 2], 2, axis=0)  # rows alternate between the parts
    run = jax.jit(steps.make_grad_step(Vilbert(config).objective((ANSWER,)), accumulate=2))
    first, second = (
        float(run(params, zero, batch | {"_mask": np.arange(B) % 2 == part}, key)[1].sums.loss)
        for part in (0, 1)
    )
    assert first > 0 and abs(first - second) > 1e-3 * first


def test_pretraining_in_parts_has_the_gradient_of_the_whole(still, random_params, draw):
    """Of all three losses, though the parts hide different numbers of words and regions."""
    config = dataclasses.replace(still, heads=PRETRAINING_HEADS, visual_target=1)
    task = dataclasses.replace(CONCEPTUAL_CAPTIONS, max_tokens=T, max_regions=R, batch_size=B)
    rng = np.random.default_rng(0)
    batch = draw(dataclasses.replace(ANSWER, task_id=0))
    del batch["targets"]
    batch |= {
        "token_labels": np.where(rng.random((B, T)) < 0.5, batch["tokens"], -1),
        "region_labels": np.where(rng.random((B, R)) < 0.5, 1, -1) * (np.arange(R) > 0),
        "region_features": rng.normal(size=(B, R, config.region_feature_dim)).astype(np.float32),
        "is_misaligned": rng.integers(0, 2, B),
        "region_weight": np.float32(0.7),
        "alignment_weight": np.float32(1.0),
    }
    params, key, zero = random_params(config), jax.random.key(0), np.int32(0)
    whole, parts = (
        jax.jit(steps.make_grad_step(Vilbert(config).objective((task,)), accumulate=accumulate))(
            params, zero, batch, key
        )
        for accumulate in (1, 2)
    )
    assert whole[1].sums.loss.shape == (3,) and whole[0].ok
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), parts[1].sums, whole[1].sums
    )
    norm = float(whole[1].grad_norm)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * norm),
        parts[0].grads,
        whole[0].grads,
    )


def test_one_update_from_two_tasks_is_that_of_the_summed_loss(params, still, draw, gradient_of):
    """Against a gradient of the sum, taken at once, and plain descent."""
    tasks = (TASKS[0], TASKS[3])
    batches = [draw(task) for task in tasks]

    def loss(params):
        pairs = zip(tasks, batches, strict=True)
        return sum(
            Vilbert(still).objective((t,)).loss(params, b, None).mean_loss() for t, b in pairs
        )

    optimizer = optax.sgd(0.1)
    gradients = [
        gradient_of(task, params, batch)[0] for task, batch in zip(tasks, batches, strict=True)
    ]
    update = jax.jit(steps.make_update_step(optimizer))
    state = steps.init_state(params, optimizer)
    added = jax.jit(steps.add_gradients)(*gradients)
    state = update(state, added, np.bool_(False), np.bool_(True))
    grads = jax.device_get(jax.jit(jax.grad(loss))(params))
    expected = jax.tree.map(lambda x, g: x - 0.1 * SCALE * g, params, grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, expected
    )
    assert (int(state.step), int(state.clock), int(state.skipped)) == (1, 1, 0)


def part_of(tree):
    """The embedding of the text and a head: few arrays, whose update compiles fast."""
    return {
        "trunk": {"text_embedding": tree["trunk"]["text_embedding"]},
        "heads": {ANSWER.head: tree["heads"][ANSWER.head]},
    }


def test_a_gradient_that_is_not_finite_changes_counters_only(params, draw, gradient_of):
    optimizer = adamw.adamw(3e-3, param_groups.two_stream(head_learning_rate=1.0, weight_decay=0.1))
    update = jax.jit(steps.make_update_step(optimizer))
    batch, flags = draw(ANSWER), (np.bool_(False), np.bool_(True))
    state = steps.init_state(part_of(params), optimizer)
    gradient, _ = gradient_of(ANSWER, params, batch)
    state = update(state, gradient._replace(grads=part_of(gradient.grads)), *flags)
    poisoned = batch | {"targets": np.where(batch["_mask"][:, None], np.nan, 0).astype(np.float32)}
    gradient, metrics = gradient_of(ANSWER, params, poisoned)
    after = update(state, gradient._replace(grads=part_of(gradient.grads)), *flags)
    assert not np.isfinite(metrics.grad_norm)
    assert (int(after.step), int(after.skipped)) == (2, 1)
    for a, b in ((after.params, state.params), (after.opt_state, state.opt_state)):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_clock_ticks_with_the_last_update_of_a_round(params, draw, gradient_of):
    """All updates of a round have its rate; the official schedule gives later ones the next."""
    seen = []

    def rate(clock):
        return 1e-3 * (clock + 1)

    optimizer = adamw.adamw(rate, GROUPS)
    gradient, _ = gradient_of(ANSWER, params, draw(ANSWER))
    gradient = gradient._replace(grads=part_of(gradient.grads))
    for official in (False, True):
        update = jax.jit(steps.make_update_step(optimizer, official_schedule=official))
        state = steps.init_state(part_of(params), optimizer)
        sizes = []
        for later, last in ((False, False), (True, True), (False, True)):
            new = jax.device_get(update(state, gradient, np.bool_(later), np.bool_(last)))
            # With the same gradient every time, Adam's step is the rate, in every element.
            moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), new.params, state.params)
            sizes.append(round(1e3 * float(max(jax.tree.leaves(moved)))))
            state = new
        seen.append((sizes, int(state.clock)))
    # The official clock counts twice as fast, and is odd for later updates.
    assert seen == [([1, 1, 2], 2), ([1, 2, 3], 2)]


def test_clipping_is_by_the_global_norm(params, draw, gradient_of):
    optimizer = optax.sgd(1.0)
    gradient, _ = gradient_of(ANSWER, params, draw(ANSWER))
    params, grads = part_of(params), jax.device_get(part_of(gradient.grads))
    norm = np.sqrt(sum(np.sum(grad**2) for grad in jax.tree.leaves(grads)))
    for limit, expected in ((norm / 4, norm / 4), (norm * 4, norm)):
        update = jax.jit(steps.make_update_step(optimizer, clip_norm=limit))
        state = update(
            steps.init_state(params, optimizer),
            gradient._replace(grads=grads),
            np.bool_(False),
            np.bool_(True),
        )
        new = jax.device_get(state.params)
        moved = jax.tree.map(lambda a, b: np.sum((a - b) ** 2), new, params)
        moved = np.sqrt(sum(jax.tree.leaves(moved)))
        np.testing.assert_allclose(moved, expected, rtol=1e-4)

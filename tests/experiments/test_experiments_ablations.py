"""What each variant changes, how updates are made equal, and which task converged first."""

import jax
import numpy as np
import pytest

from twelve_in_one.config import check
from twelve_in_one.evaluators import rows
from twelve_in_one.experiments import ablations
from twelve_in_one.mixing import plan
from twelve_in_one.systems.vilbert import Vilbert
from twelve_in_one.tasks.twelve import TWELVE

TASKS = {task.name: task for task in TWELVE}


def test_variants_change_what_they_are_called(base, pretend):
    runner, trainer = pretend()
    (outcome,) = ablations.run(runner, base, [2], ablations.MODELS)
    assert list(outcome.results) == list(ablations.MODELS)
    assert len(trainer.configs) == ablations.count(base, [2], ablations.MODELS)
    found = {name.split("/")[0]: config for name, config in trainer.configs.items()}
    assert list(found) == [f"ablation-{name}" for name in ablations.MODELS]
    kinds = [config.schedule.kind for config in found.values()]
    go = "stop_and_go"
    robin = "round_robin"
    assert kinds == [go, go, go, robin, "curriculum", "anti_curriculum", robin]
    assert [config.model.num_tasks for config in found.values()] == [20, 20, 0, 20, 20, 20, 0]
    for config in found.values():
        check.check(config)
        assert config.seed == 2
    runs = check.task_runs(check.check(found["ablation-head-token"]))
    for one in runs:
        for other in runs:
            same_head = one.task.head == other.task.head
            assert (one.task.task_id == other.task.task_id) == same_head
    updates = {
        variant: sum(entry["updates"] for entry in entries.values())
        for variant, entries in outcome.results.items()
    }
    assert updates["full"] < 12 * 20
    for variant in ("no-stop", "vanilla", "curriculum", "anti-curriculum"):
        assert abs(updates[variant] - updates["full"]) <= 6
    # In the pretended histories, later tasks of the list converge sooner.
    assert found["ablation-curriculum"].schedule.order == tuple(base.tasks)[::-1]
    assert found["ablation-anti-curriculum"].schedule.order == tuple(base.tasks)[::-1]


def test_without_tokens_the_task_makes_no_difference(tiny_config, random_params, random_batch):
    config = tiny_config(num_tasks=0)
    step = jax.jit(rows.make_eval_step(Vilbert(config), TASKS["vqa"]))
    targets = np.eye(4, config.num_vqa_answers, dtype=np.float32)
    batch = random_batch(config) | {"targets": targets, "_mask": np.ones(4, bool)}
    first, second = (
        step(random_params(config), batch | {"task_id": np.int32(number)}) for number in (1, 30)
    )
    np.testing.assert_array_equal(first.confidence, second.confidence)
    assert np.isfinite(first.confidence).all()


def test_a_choice_of_variants_trains_no_others(base, pretend):
    runner, trainer = pretend()
    ablations.run(runner, base, [0], ("full", "no-token"))
    assert list(trainer.configs) == ["ablation-full/seed-0", "ablation-no-token/seed-0"]


def test_nothing_is_compared_where_nothing_stopped(base, pretend):
    base.tasks = ("vqa", "flickr30k")  # of which the pretended trainer stops one
    assert ablations.run(pretend()[0], base, [1], ("full", "no-stop"))
    base.tasks = ("vqa",)
    with pytest.raises(ValueError, match="no task was stopped, so no-stop would be the same run"):
        ablations.run(pretend()[0], base, [0], ("full", "no-stop"))
    assert ablations.run(pretend()[0], base, [0], ("full", "no-token"))


@pytest.mark.parametrize("kind", ["round_robin", "curriculum", "anti_curriculum"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("updates", [1, 5, 37, 200])
def test_rounds_come_closest_to_the_updates(kind, share, updates):
    names = ("vqa", "gqa", "coco")
    planned = tuple(plan.PlannedTask(name, 1, 1) for name in names)

    def counted(rounds):
        schedule = plan.Schedule(planned, kind=kind, num_rounds=rounds, curriculum_share=share)
        return sum(map(len, plan.plan(schedule, {n: None for n in names}, 0, rounds)))

    rounds = ablations.rounds_for(updates, names, kind, share)
    best = min(abs(counted(other) - updates) for other in range(1, updates + 1))
    assert abs(counted(rounds) - updates) == best


def history(**curves):
    return [{"event": "start", "round": 0}] + [
        {"event": "validation", "round": 10 * (i + 1), "task": name, "score": score}
        for name, scores in curves.items()
        for i, score in enumerate(scores)
    ]


def test_tasks_converge_when_most_of_the_gain_is_there():
    tasks = {name: {"chance": 0.5} for name in ("nlvr2", "snli_ve", "vqa", "coco", "gqa")}
    # Gains over chance: vqa 0.1, 0.2, 0.4: 0.38 is reached 9/10 of the way from 20 to 30, at 29;
    # nlvr2 0.4 at 10: at 9.5; coco, whose chance among four is 0.25, 0.2, 0.2: at 9.5 of 10, after
    # nlvr2 in the list; gqa: 0.19 of 0.2 at 10 + 10 * 0.09 / 0.1 = 19; snli_ve never.
    records = history(
        vqa=[0.6, 0.7, 0.9],
        nlvr2=[0.9, 0.7, 0.8],
        coco=[0.45, 0.45, 0.3],
        gqa=[0.6, 0.7, 0.7],
        snli_ve=[0.5, 0.4, 0.5],
    )
    order = ablations.convergence_order(records, tasks)
    assert order == ("nlvr2", "coco", "gqa", "vqa", "snli_ve")


def test_order_is_that_of_the_interpolated_curves():
    rng = np.random.default_rng(0)
    names = ("vqa", "gqa", "nlvr2", "refcoco", "visual7w")
    for _ in range(20):
        records, crossings = [], {}
        for name in names:
            scores, rounds = rng.uniform(0.2, 0.9, 6), np.cumsum(rng.integers(1, 999, 6))
            records += [
                {"event": "validation", "round": int(number), "task": name, "score": float(score)}
                for number, score in zip(rounds, scores, strict=True)
            ]
            fine = np.linspace(0, rounds[-1], 100_001)
            gain = np.interp(fine, [0, *rounds], [0, *(scores - 0.1)])
            crossings[name] = fine[np.argmax(gain >= 0.95 * (scores.max() - 0.1))]
        order = ablations.convergence_order(records, {name: {"chance": 0.1} for name in names})
        assert order == tuple(sorted(names, key=lambda name: crossings[name]))


def test_what_cannot_be_left_out(base):
    base.schedule.kind = "round_robin"
    with pytest.raises(ValueError, match="schedule.kind=stop_and_go, it is round_robin"):
        ablations.count(base, [0], ablations.MODELS)
    base.schedule.kind, base.model.num_tasks = "stop_and_go", 0
    with pytest.raises(ValueError, match="num_tasks is 0"):
        ablations.count(base, [0], ablations.MODELS)
    base.model.num_tasks, base.task.gqa.task_token = 20, 1
    with pytest.raises(ValueError, match="task_token is set for gqa"):
        ablations.count(base, [0], ablations.MODELS)
    with pytest.raises(ValueError, match="no validation of gqa"):
        ablations.convergence_order([], {"gqa": {}})


def test_report_has_a_row_a_variant(base, pretend, tmp_path):
    def score(name, task, seed):
        return 0.5 + 0.01 * seed + (0.1 if name == "ablation-no-token" else 0)

    outcomes = ablations.run(pretend(score)[0], base, [0, 1], ("full", "no-token", "vanilla"))
    lines = ablations.report(outcomes).splitlines()
    assert lines[0].startswith("| variant | G1 | G2 | G3 | G4 | average | Δ G1 |")
    assert lines[3].startswith("| no task token | 60.5 ± 6.4 |")
    assert lines[3].count("**+10.0 ± 0.0**") == 5
    assert lines[4].startswith("| neither (no token, round robin) | 50.5 ± 6.4 |")
    ablations.plot(outcomes, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")

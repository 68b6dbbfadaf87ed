"""In what two configs differ."""

import dataclasses

from twelve_in_one.config import check, defaults
from twelve_in_one.config.diff import differences


def test_differences_are_named_with_both_values():
    before = check.check(defaults.world_config())
    assert differences(before, before) == []
    optimizer = dataclasses.replace(before.optimizer, b1=0.8)
    changed = before.task | {"vqa": dataclasses.replace(before.task["vqa"], batch_size=7)}
    now = dataclasses.replace(before, optimizer=optimizer, seed=5, task=changed)
    assert differences(before, now) == [
        "optimizer.b1 is 0.9 there and 0.8 here",
        "seed is 0 there and 5 here",
        f"task.vqa.batch_size is {before.task['vqa'].batch_size} there and 7 here",
    ]
    assert differences(before, now, ignore=("optimizer", "task.vqa.batch_size")) == [
        "seed is 0 there and 5 here"
    ]

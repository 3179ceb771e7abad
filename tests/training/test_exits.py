"""Exits of finished branches: what they learn, what they leave alone, and what is kept of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from branches import random_branch
from projects import SORTS
from torch import Tensor

from trunkline.model.branch import Branch, Reading, load_branch, may_exit, save_branch
from trunkline.model.exits import Form
from trunkline.model.trunk import Trunk
from trunkline.project.speed import Rule
from trunkline.training.candidates import train_tuned
from trunkline.training.exits import load_exits, save_exits, train_exits
from trunkline.training.leaving import SPEEDS, Prices
from trunkline.training.loop import Progress, Schedule
from trunkline.training.material import TaskMaterial
from trunkline.training.speeds import WithExits, choose_exits
from trunkline.training.states import StateCache

FORMS = [Form.ATTENTION, Form.LINEAR]
CHEAP = {Form.ATTENTION: 0.02, Form.LINEAR: 0.01}
PRICES = Prices([1.0, 3.0, 5.0, 7.0], CHEAP, branch=2.0, end=2.0, own_exits=CHEAP)
JOINT = [(task, "joint" if task == "same" else "single") for task in SORTS]


def quick(rate: float = 2e-3, **changes: Any) -> Schedule:
    options = {"epochs": 0.1, "batch_size": 8, "min_steps": 8, "patience": 9, "warmup": 0.1, "weight_decay": 0.01}
    return Schedule(**{**options, "learning_rate": rate, "seed": 1, **changes})


def quiet(_: Progress) -> None: ...


def tuned(material: TaskMaterial, path: Path, *, layers: int = 2, reading: str = "single") -> Branch:
    return train_tuned(material, Reading(reading), layers, quick(1e-3), path / "tune.pt", quiet).branch


def given(material: TaskMaterial, branch: Branch, path: Path, report: Any = quiet, **changes: Any) -> WithExits:
    """The branch with exits at the depths asked for, by default all that it can have."""
    asked: dict[str, Any] = {"forms": FORMS, "depths": list(may_exit(branch.spec)), **changes}
    rule, prices, schedule = (
        asked.pop(name, default)
        for name, default in {"rule": Rule.ENTROPY, "prices": PRICES, "schedule": quick()}.items()
    )
    found = train_exits(material, branch, schedule, path / "exits.pt", report, **asked)
    if found is None:
        return WithExits(branch)
    every = bool(asked["depths"])
    return choose_exits(material, branch, found[0], lambda: [prices], rule=rule, every=every)


def learnt(material: TaskMaterial, branch: Branch, path: Path, schedule: Schedule) -> float:
    """How near exits come to what the head says of held-out rows: 0 is the same, less is further."""
    found = train_exits(material, branch, schedule, path / "exits.pt", quiet, forms=FORMS, depths=[])
    assert found is not None
    return found[1].score


def weights(branch: Branch) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in branch.state_dict().items()}


def own(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without those of exits."""
    return {name: tensor for name, tensor in found.items() if not name.startswith("exits.")}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("task", "reading", "rule"), [*((*one, Rule.ENTROPY) for one in JOINT), ("intent", "single", Rule.PATIENCE)]
)
def test_a_branch_of_every_kind_gets_exits_and_keeps_its_own_weights(
    make: Any, tmp_path: Path, trunk: Trunk, task: str, reading: str, rule: Rule
) -> None:
    material = make(task)
    branch = tuned(material, tmp_path, reading=reading)
    before = weights(branch)
    found = given(material, branch, tmp_path, rule=rule)
    spec = found.branch.spec
    assert same(own(weights(found.branch)), before)
    assert same(weights(branch), before)
    assert branch.spec.exits == ()
    assert [one.depth for one in spec.exits] == [1, 2]  # fork 1, and between its two own layers
    assert spec.rule is rule
    assert set(found.speeds) == {"valid", "test"}
    assert all((error is None) == (task == "urgency") for errors in found.ece.values() for error in errors)
    assert [point.speed for point in spec.speeds] == list(SPEEDS)
    assert spec.speeds == found.speeds["valid"]
    assert spec.speeds[0].time == 1.0
    assert spec.speeds[0].layers == spec.depth
    assert all(1 <= point.layers <= spec.depth for points in found.speeds.values() for point in points)
    assert (spec.exits[0].temperature != 1.0) == (task != "urgency")
    save_branch(found.branch, tmp_path / "branch.safetensors")
    read = load_branch(tmp_path / "branch.safetensors", trunk.encoder)
    assert read.spec == spec
    assert same(weights(read), weights(found.branch))


def test_speed_0_is_the_branch_itself(make: Any, tmp_path: Path) -> None:
    material = make("intent")
    trained = train_tuned(material, Reading.SINGLE, 2, quick(1e-3), tmp_path / "tune.pt", quiet)
    speeds = given(material, trained.branch, tmp_path).speeds
    for split, points in speeds.items():
        assert points[0].quality == trained.metrics[split][material.metric]


@pytest.mark.parametrize("task", ["intent", "tone", "urgency", "slots"])
def test_exits_come_to_say_what_the_head_says(make: Any, tmp_path: Path, task: str) -> None:
    material = make(task, rows=120)
    branch = tuned(material, tmp_path)
    still = learnt(material, branch, tmp_path / "still", quick(1e-9))
    assert learnt(material, branch, tmp_path / "learnt", quick(5e-3, min_steps=80)) > 0.5 * still


def test_own_layers_run_once_for_each_text_however_long_exits_learn(make: Any, tmp_path: Path) -> None:
    material = make("intent")
    branch = tuned(material, tmp_path)
    rows: list[int] = []
    hook = branch.layers[0].register_forward_hook(lambda _module, read, _made: rows.append(len(read[0])))
    given(material, branch, tmp_path, schedule=quick(epochs=3))
    hook.remove()
    pools = {pool for pool, _ in material.splits().values()}
    assert sum(rows) == sum(len(set(material.rows(pool).texts)) for pool in pools)


def test_labels_of_train_teach_no_exit(make: Any, tmp_path: Path) -> None:
    material = make("intent")
    branch = tuned(material, tmp_path)
    before = weights(given(material, branch, tmp_path / "a", forms=[Form.LINEAR]).branch)
    for row in material.data.train:
        material.data.fit.targets[row] = material.data.labels[0]
    assert same(
        weights(given(anew(material, material.cache), branch, tmp_path / "b", forms=[Form.LINEAR]).branch), before
    )


def anew(material: TaskMaterial, cache: StateCache) -> TaskMaterial:
    """The same data, read once more."""
    return TaskMaterial(material.name, material.settings, material.data, material.trunk, cache)


def test_exits_found_by_time_are_those_that_save_it(make: Any, tmp_path: Path) -> None:
    material = make("intent")
    said: list[str] = []
    material.say = said.append
    branch = tuned(material, tmp_path)
    with torch.no_grad():  # a head that says the same of every row, which any exit soon says too
        branch.head.output.weight.zero_()
        branch.head.output.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    kept = given(material, branch, tmp_path / "a", depths=[], schedule=quick(2e-2, min_steps=60))
    assert [one.depth for one in kept.branch.spec.exits] == [1]
    assert min(point.time for point in kept.branch.spec.speeds) < 0.61  # (3 + 0.01 or 0.02) / 5
    assert said == []
    dear = replace(PRICES, exits=dict.fromkeys(Form, 50.0), own_exits=dict.fromkeys(Form, 50.0))
    none = given(material, branch, tmp_path / "b", depths=[], prices=dear)
    assert none.branch is branch
    assert none.branch.spec.speeds == ()
    assert none.speeds == {}
    assert "intent: no exit saves 1 % of the time" in said[0]


def test_depths_that_the_branch_cannot_have_are_left_out_and_said(make: Any, tmp_path: Path, trunk: Trunk) -> None:
    said: list[str] = []
    material = make("intent")
    material.say = said.append
    branch = tuned(material, tmp_path, layers=1)
    few = random_branch(trunk, "intent", fork=1, layers=2, pooling="latents", latents=2)
    apart = random_branch(trunk, "same", kind="relevance", reading="separate", fork=2, layers=1)
    assert [one.depth for one in given(material, branch, tmp_path, depths=[1, 2]).branch.spec.exits] == [1, 2]
    assert said == []
    assert [one.depth for one in given(material, few, tmp_path / "a", depths=[1, 2]).branch.spec.exits] == [1]
    assert "no exit after layer 2: the chosen branch (fork 1, 2 of its own) can have them after layer 1" in said[0]
    pairs = make("same")
    for depths in ([1], []):
        found = given(pairs, apart, tmp_path / "b", depths=depths)
        assert (found.branch, found.speeds) == (apart, {})


def test_states_that_the_cache_does_not_admit_give_the_same_exits(make: Any, tmp_path: Path) -> None:
    material = make("slots")
    branch = tuned(material, tmp_path)
    kept = learnt(material, branch, tmp_path / "a", quick())
    live = learnt(anew(material, StateCache(tmp_path / "none", 10)), branch, tmp_path / "b", quick())
    assert live == pytest.approx(kept, rel=0.02)


def test_exits_are_read_as_they_were_written(make: Any, tmp_path: Path) -> None:
    material = make("slots")
    branch = tuned(material, tmp_path)
    found = train_exits(material, branch, quick(), tmp_path / "a.pt", quiet, forms=FORMS, depths=[])
    assert found is not None
    save_exits(found[0], tmp_path / "exits.safetensors")
    read = load_exits(tmp_path / "exits.safetensors", branch.spec)
    assert read.places == found[0].places
    assert all(torch.equal(weight, found[0].state_dict()[name]) for name, weight in read.state_dict().items())


def test_killed_exits_go_on_where_they_were(make: Any, tmp_path: Path) -> None:
    material = make("intent")
    branch = tuned(material, tmp_path)
    whole = given(material, branch, tmp_path / "whole", schedule=quick(min_steps=40))

    class Killed(Exception):
        pass

    def kill(position: Progress) -> None:
        if position.step == 30:
            raise Killed

    with pytest.raises(Killed):
        given(material, branch, tmp_path / "killed", kill, schedule=quick(min_steps=40))
    first: list[int] = []
    again = given(material, branch, tmp_path / "killed", lambda at: first.append(at.step), schedule=quick(min_steps=40))
    assert first[0] > 10
    assert same(weights(again.branch), weights(whole.branch))
    assert again.branch.spec == whole.branch.spec

"""Rows leave at exits: on every engine at the same one, whatever else stands in the batch, and never at speed 0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from branches import INPUTS, random_branch
from engines import ENGINES, agree, assert_rows_equal_themselves_alone, batches, close, engines_of, fresh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny import tiny_encoder

from trunkline.engine import Input, ItemError, predict
from trunkline.engine.base import Engine, Job
from trunkline.engine.choose import NOT_IN_OPENVINO
from trunkline.engine.reference import ReferenceEngine
from trunkline.errors import UsageError
from trunkline.model.branch import Branch
from trunkline.model.encoders import Encoder
from trunkline.model.families import FAMILIES
from trunkline.model.trunk import Trunk

pytest.importorskip("trunkline.engine.runtime", reason="OpenVINO is an extra", exc_type=ImportError)


def exits(*depths: int, form: str = "attention") -> list[dict[str, Any]]:
    other = {"attention": "linear", "linear": "attention"}
    return [{"depth": depth, "form": form if depth % 2 else other[form], "temperature": 1.5} for depth in depths]


SORTS: dict[str, dict[str, Any]] = {
    "intent": {"kind": "classification", "fork": 3, "layers": 1, "exits": exits(1, 2, 3)},
    "tone": {"kind": "multilabel", "fork": 1, "layers": 3, "pooling": "mean", "exits": exits(1, 2, 3)},
    "urgency": {"kind": "regression", "fork": 3, "layers": 1, "mean": 3.0, "std": 2.0, "exits": exits(1, 2, 3)},
    "slots": {"kind": "tagging", "fork": 2, "layers": 2, "exits": exits(1, 2, 3, form="linear")},
    "deep": {"kind": "classification", "fork": 0, "layers": 4, "exits": exits(1, 2, 3)},
    "patient": {"kind": "classification", "fork": 4, "layers": 0, "rule": "patience", "exits": exits(1, 2, 3)},
    "follows": {"kind": "relevance", "reading": "joint", "fork": 3, "layers": 1, "exits": exits(2, 3)},
    "few": {"kind": "classification", "fork": 2, "layers": 2, "pooling": "latents", "latents": 3, "exits": exits(1, 2)},
    "plain": {"kind": "classification", "fork": 2, "layers": 1},
    "same": {"kind": "relevance", "reading": "separate", "fork": 2, "layers": 1, "pooling": "pair"},
}
TASKS = tuple(SORTS)


def speeds(sort: dict[str, Any]) -> list[dict[str, Any]]:
    """A table, for a branch with exits: some speeds ask none of them, or not all."""
    depths = [one["depth"] for one in sort.get("exits", ())]
    points = [
        {"speed": 0.0, "quality": 0.9, "layers": 4.0, "time": 1.0},
        {"speed": 0.2, "quality": 0.9, "layers": 4.0, "time": 1.0, "exits": []},
        {"speed": 0.4, "quality": 0.9, "layers": 3.0, "time": 0.8, "exits": depths[::2]},
        {"speed": 0.6, "quality": 0.8, "layers": 3.0, "time": 0.7, "exits": depths[-1:]},
        {"speed": 0.8, "quality": 0.6, "layers": 2.0, "time": 0.5},
    ]
    return points if depths else []


def made(trunk: Trunk) -> dict[str, Branch]:
    return {task: random_branch(trunk, task, **sort, speeds=speeds(sort)) for task, sort in SORTS.items()}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    trunk = Trunk(Encoder.load(tiny_encoder(tmp_path_factory.mktemp("bert"))), "f" * 64)
    return engines_of(trunk, made(trunk))


@pytest.mark.parametrize("name", ["openvino", "torch"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=batches(TASKS), batch_size=st.sampled_from([None, 2, 4]))
def test_rows_of_mixed_speeds_in_one_batch_equal_the_rows_run_one_by_one(
    engines: Mapping[str, Engine], name: str, jobs: list[Job], batch_size: int | None
) -> None:
    """Promise 5; also of batches that go side by side, and whose rows go on together."""
    assert_rows_equal_themselves_alone(engines["reference"], engines[name], jobs, batch_size)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_leave_at_the_same_exits_whatever_the_family(tmp_path: Path, family: str) -> None:
    trunk = Trunk(Encoder.load(tiny_encoder(tmp_path, family)), "f" * 64)
    some = {task: SORTS[task] for task in ("deep", "slots")}
    branches = {task: random_branch(trunk, task, **sort, speeds=speeds(sort)) for task, sort in some.items()}
    names = [name for name in ENGINES if name != "openvino" or family not in NOT_IN_OPENVINO]
    engines = engines_of(trunk, branches, names)
    jobs = [
        Job(item, tuple(some), tuple((task, speed) for task in some))
        for item in INPUTS
        for speed in (0.0, 0.5, 0.8, 0.9, 1.0)
    ]
    for name in names[1:]:
        assert_rows_equal_themselves_alone(engines["reference"], engines[name], jobs)


@pytest.mark.parametrize("name", ENGINES)
def test_speed_zero_is_off(engines: Mapping[str, Engine], name: str) -> None:
    """Promise 5: to the bit, and nothing is said of exits."""
    engine = fresh(engines[name])
    off, _ = engine.run([Job(item, TASKS, tuple((task, 0.0) for task in TASKS)) for item in INPUTS])
    none, _ = engine.run([Job(item, TASKS) for item in INPUTS])
    for one, other in zip(off, none, strict=True):
        for task in TASKS:
            if isinstance(one[task], ItemError):
                assert one[task] == other[task]
                continue
            assert one[task].logits.tobytes() == other[task].logits.tobytes()
            assert (one[task].depth, one[task].uncertainty) == (engine.specs[task].depth, None)


@pytest.mark.parametrize("name", ENGINES)
def test_texts_leave_at_no_exit_that_their_speed_does_not_ask(engines: Mapping[str, Engine], name: str) -> None:
    engine = fresh(engines[name])
    full, _ = engine.run([Job(item, TASKS) for item in INPUTS])
    found, _ = engine.run([Job(item, TASKS, tuple((task, 0.3) for task in TASKS)) for item in INPUTS])
    for one, other in zip(found, full, strict=True):
        for task, answer in one.items():
            if not isinstance(answer, ItemError):  # a table's speed from 0.2 on asks none
                assert answer.depth == engine.specs[task].depth
                assert answer.logits.tobytes() == other[task].logits.tobytes()
                assert (answer.uncertainty is not None) == bool(engine.specs[task].exits)
    found, _ = engine.run([Job(item, TASKS, tuple((task, 0.7) for task in TASKS)) for item in INPUTS])
    left = {task: {one[task].depth for one in found if not isinstance(one[task], ItemError)} for task in TASKS}
    last = {task: max((one.depth for one in spec.exits), default=spec.depth) for task, spec in engine.specs.items()}
    assert all(left[task] <= {last[task], engine.specs[task].depth} for task in TASKS)
    assert any(last[task] in left[task] for task in TASKS if engine.specs[task].exits)


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=batches(TASKS), batch_size=st.sampled_from([None, 2, 4]))
def test_what_is_never_sure_is_answered_by_the_head(
    engines: Mapping[str, Engine], name: str, jobs: list[Job], batch_size: int | None
) -> None:
    """Promise 5; but a regression's exits may agree to the last digit, and a row of no words is never in doubt."""
    engine = engines[name]
    asked = [Job(job.item, job.tasks, tuple((task, 1e-9) for task in job.tasks)) for job in jobs]
    found, _ = engine.run(asked, batch_size=batch_size)
    full, _ = engine.run([Job(job.item, job.tasks) for job in jobs], batch_size=batch_size)
    for one, other in zip(found, full, strict=True):
        for task in one.keys() - {"urgency", "slots"}:
            if isinstance(one[task], ItemError):
                assert one[task] == other[task]
                continue
            assert one[task].depth == engine.specs[task].depth
            assert close(other[task].logits, one[task].logits), task


def test_the_trunk_goes_no_deeper_than_a_row_that_stays(
    engines: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 3, with exits: rows that have left are carried no further."""
    engine = engines["openvino"]
    ran: list[tuple[int, int]] = []
    layer = engine.backend.layer
    monkeypatch.setattr(
        engine.backend,
        "layer",
        lambda index, states, mask: ran.append((index, len(mask))) or layer(index, states, mask),
    )
    items = [Input(f"play some music {n}") for n in range(8)]
    _, work = engine.run([Job(item, ("intent",), (("intent", 1.0),)) for item in items])
    assert ran == [(0, 8)]
    assert work.layers == 8
    ran.clear()
    asked = [(("intent", 1.0),) if n < 6 else () for n in range(8)]
    engine.run([Job(item, ("intent",), speeds) for item, speeds in zip(items, asked, strict=True)])
    assert ran == [(0, 8), (1, 2), (2, 2)]
    ran.clear()
    asked = [(("intent", 1e-9 if n in (0, 7) else 1.0),) for n in range(8)]
    engine.run([Job(item, ("intent",), speeds) for item, speeds in zip(items, asked, strict=True)], batch_size=4)
    assert ran == [(0, 4), (0, 4), (1, 2), (2, 2)]  # what is left of two batches goes on as one


def test_answers_say_where_they_left_and_a_keep_finds_its_speed(engines: Mapping[str, Any]) -> None:
    engine = engines["openvino"]
    [plain] = predict(engine, ["play some music"], ["intent"])
    assert (plain["intent"].exit_layer, plain["intent"].uncertainty) == (None, None)
    [fast] = predict(engine, ["play some music"], ["intent", "plain"], speed=1.0)
    assert fast["intent"].exit_layer == 1
    assert 0 <= fast["intent"].uncertainty <= 1
    assert fast["plain"].exit_layer is None
    [kept] = predict(engine, ["play some music"], ["intent"], keep=0.99)
    [same] = predict(engine, ["play some music"], ["intent"], speed={"intent": 0.4})
    assert kept == same


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"speed": 2}, "speed is a number from 0 to 1; found 2"),
        ({"speed": "fast"}, "speed is a number from 0 to 1; found 'fast'"),
        ({"keep": True}, "keep is a number from 0 to 1"),
        ({"keep": {"intents": 0.9}}, "keep, of the tasks that are asked: .*intents.*intent"),
        ({"speed": 0.5, "keep": {"intent": 0.9}}, "not for both .task 'intent'"),
    ],
)
def test_what_no_dial_has_is_refused(engines: Mapping[str, Any], asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        predict(engines["reference"], ["play"], ["intent"], **asked)


def test_a_branch_with_exits_survives_its_file(tmp_path: Path) -> None:
    from trunkline.model.branch import load_branch, save_branch

    trunk = Trunk(Encoder.load(tiny_encoder(tmp_path / "bert")), "f" * 64)
    branches = made(trunk)
    save_branch(branches["slots"], tmp_path / "slots.safetensors")
    again = load_branch(tmp_path / "slots.safetensors", trunk.encoder)
    assert again.spec == branches["slots"].spec
    jobs = [Job(item, ("slots",), (("slots", 0.9),)) for item in INPUTS]
    one, other = (ReferenceEngine(trunk, {"slots": branch}).run(jobs)[0] for branch in (branches["slots"], again))
    for found, expected in zip(one, other, strict=True):
        assert agree(expected["slots"], found["slots"], 0.9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"exits": exits(1, 1)},
        {"exits": exits(2, 1)},
        {"exits": exits(4)},  # the head stands there
        {"exits": [{"depth": 0, "form": "linear"}]},
        {"exits": exits(1), "reading": "separate", "pooling": "pair"},
        {"exits": exits(3), "latents": 2, "pooling": "latents", "fork": 2, "layers": 2},
        {"speeds": speeds({"exits": exits(1)})},
        {"exits": exits(1), "speeds": speeds({"exits": exits(1)})[1:]},
        {"exits": exits(1), "speeds": [{**speeds({"exits": exits(1)})[0], "quality": float("nan")}]},
        {"exits": exits(1), "speeds": speeds({"exits": exits(1, 2)})},
    ],
)
def test_exits_that_cannot_be_are_no_branch(tmp_path: Path, wrong: dict[str, Any]) -> None:
    trunk = Trunk(Encoder.load(tiny_encoder(tmp_path / "bert")), "f" * 64)
    with pytest.raises(ValidationError):
        random_branch(trunk, "intent", **{"fork": 3, "layers": 1, **wrong})

"""Scopes on every engine: the same to rounding, whatever else stands in the batch, and exits respect them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from branches import INPUTS, random_branch
from engines import ENGINES, assert_rows_equal_themselves_alone, batches, engines_of, fresh
from hypothesis import given, settings
from pydantic import ValidationError
from tiny import tiny_encoder

from trunkline.engine import predict
from trunkline.engine.base import Engine, Job, Output
from trunkline.engine.reference import ReferenceEngine
from trunkline.engine.torch import TorchBuilder
from trunkline.model.branch import Branch, load_branch, save_branch
from trunkline.model.encoders import Encoder
from trunkline.model.trunk import Trunk

pytest.importorskip("trunkline.engine.runtime", reason="OpenVINO is an extra", exc_type=ImportError)

POINTS = [{"speed": 0.0, "quality": 0.9, "layers": 4.0, "time": 1.0}]


def scope(*depths: int, directions: int = 3) -> dict[str, Any]:
    places = [{"depth": depth, "directions": directions} for depth in depths]
    return {"false_alarms": 0.1, "classes": 4, "depths": places}


def exits(*depths: int) -> dict[str, Any]:
    return {"exits": [{"depth": depth, "form": "linear"} for depth in depths], "speeds": POINTS}


SORTS: dict[str, dict[str, Any]] = {
    "intent": {"fork": 3, "layers": 1, "scope": scope(1, 2, 3), **exits(1, 2, 3)},
    "deep": {"fork": 1, "layers": 3, "scope": scope(1), **exits(1, 2, 3)},
    "slots": {"kind": "tagging", "fork": 2, "layers": 2, "scope": scope(1, 2), **exits(1, 2, 3)},
    "urgency": {"kind": "regression", "fork": 0, "layers": 2, "scope": scope(0, directions=32)},
    "follows": {"kind": "relevance", "reading": "joint", "fork": 3, "layers": 1, "scope": scope(3, directions=1)},
    "same": {"kind": "relevance", "reading": "separate", "fork": 2, "layers": 1, "scope": scope(2)},
    "plain": {"fork": 2, "layers": 1, **exits(1)},
}
TASKS = tuple(SORTS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trunk, dict[str, Branch]]:
    trunk = Trunk(Encoder.load(tiny_encoder(tmp_path_factory.mktemp("bert"))), "f" * 64)
    branches = {task: random_branch(trunk, task, **sort) for task, sort in SORTS.items()}
    batch = trunk.encoder.collate(trunk.encoder.tokenize([item.text for item in INPUTS], max_tokens=64))
    for depth, states in trunk.states(batch, range(trunk.depth)).items():
        for task in TASKS:
            if str(depth) in branches[task].scopes:  # half of these texts are beyond it
                found = branches[task].strangeness(depth, [states], [batch.mask])
                branches[task].scopes[str(depth)].offsets.sub_(found.median() + 1e-3)
    return trunk, branches


@pytest.fixture(scope="module")
def engines(made: tuple[Trunk, dict[str, Branch]]) -> dict[str, Any]:
    return engines_of(*made)


@pytest.mark.parametrize("name", ["openvino", "torch"])
@settings(max_examples=20)
@given(jobs=batches(TASKS))
def test_rows_of_mixed_speeds_in_one_batch_equal_the_rows_run_one_by_one(
    engines: Mapping[str, Engine], name: str, jobs: list[Job]
) -> None:
    """Promise 5, with scopes."""
    assert_rows_equal_themselves_alone(engines["reference"], engines[name], jobs)


@pytest.mark.parametrize("name", ENGINES)
def test_no_row_leaves_before_the_head_where_it_is_out_of_scope(engines: Mapping[str, Engine], name: str) -> None:
    tasks = ("intent", "deep", "slots")
    found, _ = engines[name].run([Job(item, tasks, tuple((task, 1.0) for task in tasks)) for item in INPUTS])
    for task in tasks:
        depth, outputs = engines[name].specs[task].depth, [one[task] for one in found]
        early = [output for output in outputs if output.depth < depth]
        assert early
        assert all(output.scope <= 0 for output in early)
        assert any(output.scope > 0 for output in outputs)


@pytest.mark.parametrize("name", ENGINES)
def test_a_scope_leaves_the_logits_as_they_are_and_depends_on_no_other_task(
    made: tuple[Trunk, dict[str, Branch]], engines: Mapping[str, Engine], name: str
) -> None:
    """Promise 2."""
    engine = fresh(engines[name])  # texts from the cache make a batch of another shape
    all_of_them, _ = engine.run([Job(item, TASKS) for item in INPUTS])
    for task in TASKS:
        alone, _ = engine.run([Job(item, (task,)) for item in INPUTS])
        for one, other in zip(alone, all_of_them, strict=True):
            if isinstance(one[task], Output):
                assert one[task].scope == other[task].scope
                assert np.array_equal(one[task].logits, other[task].logits)
    trunk, branches = made
    bare = branches["intent"].spec.model_copy(update={"scope": None})
    without = Branch(bare, branches["intent"].layers, branches["intent"].norm, branches["intent"].head)
    without.exits = branches["intent"].exits
    [first], _ = ReferenceEngine(trunk, {"intent": without}).run([Job(INPUTS[0], ("intent",))])
    [second], _ = ReferenceEngine(trunk, branches).run([Job(INPUTS[0], ("intent",))])
    assert (first["intent"].scope, second["intent"].scope is not None) == (None, True)
    assert np.array_equal(first["intent"].logits, second["intent"].logits)


def test_an_answer_says_whether_the_text_is_out_of_scope_and_by_how_much(engines: Mapping[str, Engine]) -> None:
    for answers in predict(engines["openvino"], INPUTS, ["intent", "plain"]):
        said, plain = answers["intent"], answers["plain"]
        assert said.out_of_scope is (said.scope > 0)
        assert (plain.out_of_scope, plain.scope) == (None, None)


def test_in_bfloat16_the_distance_keeps_its_digits(made: tuple[Trunk, dict[str, Branch]]) -> None:
    """What moves is the states alone: all that is computed from them is float32."""
    trunk, branches = made
    branch = branches["intent"]
    half = TorchBuilder(trunk, device="cpu", dtype="bfloat16").part(branch)
    assert {weights.dtype.itemsize for weights in half.branch.scopes.buffers()} == {4}


def test_a_branch_file_holds_the_scope_and_gives_it_back(made: tuple[Trunk, dict[str, Branch]], tmp_path: Path) -> None:
    trunk, branches = made
    save_branch(branches["slots"], tmp_path / "slots.safetensors")
    loaded = load_branch(tmp_path / "slots.safetensors", trunk.encoder)
    assert loaded.spec == branches["slots"].spec
    for name, weights in branches["slots"].scopes.state_dict().items():
        assert np.array_equal(weights, loaded.scopes.state_dict()[name])


@pytest.mark.parametrize(
    "wrong",
    [
        {"scope": scope(2)},
        {"scope": scope(1, 2), **exits(1)},
        {"scope": scope(3), **exits(1)},
        {"scope": {**scope(3), "false_alarms": 0.0}},
        {"scope": {**scope(3), "classes": 0}},
        {"scope": scope(3, directions=33)},
    ],
)
def test_a_scope_that_is_not_where_it_is_read_is_refused(made: tuple[Trunk, Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        random_branch(made[0], "wrong", **{"fork": 3, "layers": 1, **wrong})

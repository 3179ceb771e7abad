"""int8: real integer products, answers near the reference, and ranges that depend on nothing of other tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from branches import ALL_SORTS, INPUTS, random_branch
from tiny import tiny_encoder

from trunkline.engine import Input, ItemError
from trunkline.engine.calibrate import branch_ranges, fit, rounded, trunk_ranges
from trunkline.engine.choose import INT8, Choice, choose, no_int8
from trunkline.engine.load import Loader
from trunkline.engine.planned import PlannedEngine
from trunkline.engine.ranges import Range, Ranges, integer_weights, read_ranges, write_ranges
from trunkline.engine.reference import ReferenceEngine
from trunkline.errors import BundleError, UsageError
from trunkline.model.branch import Branch
from trunkline.model.encoders import Encoder
from trunkline.model.trunk import Trunk
from trunkline.project.tasks import probabilities

pytest.importorskip("trunkline.engine.runtime", reason="OpenVINO is an extra", exc_type=ImportError)
pytestmark = pytest.mark.skipif(no_int8() is not None, reason=no_int8() or "")

CHOICE = Choice("openvino", INT8, "cpu", "a test", "float32")
NEAR = 0.15  # of a probability; the tiny encoders' random weights make more of a rounding than trained ones do
FAMILIES = ("bert", "deberta-v2", "distilbert", "modernbert", "mpnet", "roberta")


def loaded(folder: Path, family: str = "bert") -> tuple[Trunk, dict[str, Branch]]:
    trunk = Trunk(Encoder.load(tiny_encoder(folder, family)), "f" * 64)
    branches = {task: random_branch(trunk, task, **sort) for task, sort in ALL_SORTS.items()}
    return trunk, branches


def calibrated(trunk: Trunk, branches: Mapping[str, Branch]) -> tuple[Ranges, dict[str, Ranges]]:
    found = {task: branch_ranges(trunk, branch, INPUTS) for task, branch in branches.items()}
    return trunk_ranges(trunk, [(branch.spec, INPUTS) for branch in branches.values()]), found


def engine_of(loader: Loader, branches: Mapping[str, Branch], ranges: Mapping[str, Ranges]) -> PlannedEngine:
    found = loader.engine(
        {task: (task, lambda task=task: branches[task]) for task in branches},
        {task: ("ranges", lambda task=task: ranges[task]) for task in branches if ranges[task]},
    )
    assert isinstance(found, PlannedEngine)
    return found


def products(compiled: Any) -> Counter[str]:
    """Matrix products with weights in what the runtime really runs, by their precision."""
    infos = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    return Counter(
        info["runtimePrecision"].astype(str) for info in infos if info["layerType"].astype(str) == "FullyConnected"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_of_the_trunk_runs_in_integers_and_answers_stay_near(tmp_path: Path, family: str) -> None:
    trunk, branches = loaded(tmp_path, family)
    few = {task: branches[task] for task in ("intent", "slots", "same")}
    ranges, own = calibrated(trunk, few)
    engine = engine_of(Loader(trunk, CHOICE, ranges), few, own)
    _, *layers = engine.backend._layers  # type: ignore[attr-defined]
    for index, layer in enumerate(layers):
        ran = products(layer.get_compiled_model())
        assert ran["u8"] + ran["i8"] == sum(name.startswith(f"{index}.") for name in ranges) > 0
    reference = ReferenceEngine(trunk, few)
    expected, found = reference.logits(INPUTS, few), engine.logits(INPUTS, few)
    for task in few:
        kind = few[task].spec.kind
        for one, other in zip(expected[task], found[task], strict=True):
            if isinstance(one, ItemError):
                assert one == other
            else:
                assert np.abs(probabilities(kind, one) - probabilities(kind, other)).max() <= NEAR, task


def test_a_branch_has_ranges_where_its_layers_run_for_every_token(tmp_path: Path) -> None:
    trunk, _ = loaded(tmp_path)
    sorts = {
        "cheap": {"layers": 1},
        "deep": {"layers": 2, "fork": 1},
        "slots": {"kind": "tagging", "layers": 1},
        "pair": {"reading": "separate", "layers": 1},
    }
    branches = {task: random_branch(trunk, task, **sort) for task, sort in sorts.items()}
    ranges, own = calibrated(trunk, branches)
    assert {task: len(found) for task, found in own.items()} == {"cheap": 0, "deep": 6, "slots": 6, "pair": 6}
    assert all(name.startswith("layers.0.") for found in own.values() for name in found)
    parts = engine_of(Loader(trunk, CHOICE, ranges), branches, own).backend.parts  # type: ignore[attr-defined]
    ran = {task: products(part.pieces[None].compiled) for task, part in parts.items()}
    assert {task: found["u8"] + found["i8"] for task, found in ran.items()} == {
        task: len(found) for task, found in own.items()
    }


def test_isolation_in_int8_when_tasks_come_and_go(tmp_path: Path) -> None:
    """Promise 2."""
    trunk, branches = loaded(tmp_path)
    ranges, own = calibrated(trunk, branches)
    again = branch_ranges(trunk, branches["slots"], INPUTS)
    assert again.keys() == own["slots"].keys()
    assert all(again[name].scale.tobytes() == own["slots"][name].scale.tobytes() for name in again)
    loader = Loader(trunk, CHOICE, ranges)
    before = engine_of(loader, {task: branches[task] for task in ("slots", "same", "tone")}, own)
    was = before.logits(INPUTS, ["slots", "same"])
    del before
    now = engine_of(loader, {task: branches[task] for task in ("slots", "same", "intent")}, own)
    for task, found in now.logits(INPUTS, ["slots", "same"]).items():
        for one, other in zip(was[task], found, strict=True):
            assert one == other if isinstance(one, ItemError) else one.tobytes() == other.tobytes()


def test_one_large_channel_does_not_take_the_steps_of_all_others() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((512, 16)).astype(np.float32)
    inputs[:, 3] *= 50
    weights = [rng.standard_normal((8, 16)).astype(np.float32) for _ in range(2)]

    def error(found: Range) -> float:
        total = 0.0
        for weight in weights:
            integers, steps = integer_weights(weight * found.scale)
            expected = inputs @ weight.T
            total += float(np.square(rounded(inputs, found) @ (integers * steps).T - expected).mean())
        return total

    best = fit(inputs, weights)
    whole = Range(float(inputs.min()), float(inputs.max()), np.ones(16, np.float32))
    assert error(best) < 0.2 * error(whole)
    assert best.scale[3] == best.scale.max()
    step = (best.high - best.low) / 255
    assert best.low <= 0 <= best.high
    assert abs(best.low / step - round(best.low / step)) < 1e-6


def test_rounding_is_to_the_nearest_of_256_steps() -> None:
    found = Range(-1.0, 1.55, np.array([1.0, 2.0], np.float32))
    inputs = np.array([[0.004, 0.03], [-7.0, 9.0]], np.float32)
    np.testing.assert_allclose(rounded(inputs, found), [[0.0, 0.02], [-1.0, 1.55]], atol=1e-6)
    values, steps = integer_weights(np.array([[1.0, -2.54], [0.0, 0.0]], np.float32))
    assert values.tolist() == [[50, -127], [0, 0]]
    assert steps[0] == pytest.approx(0.02)


def test_ranges_are_kept_in_one_file_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    ranges = {"0.a.b": Range(-1.0, 2.0, np.array([1.0, 0.5], np.float32)), "1.c": Range(0.0, 3.0, np.ones(3, "f"))}
    write_ranges(ranges, tmp_path / "ranges")
    write_ranges(dict(reversed(ranges.items())), tmp_path / "again")
    assert (tmp_path / "ranges").read_bytes() == (tmp_path / "again").read_bytes()
    read = read_ranges(tmp_path / "ranges")
    assert {name: (found.low, found.high, found.scale.tolist()) for name, found in read.items()} == {
        "0.a.b": (-1.0, 2.0, [1.0, 0.5]),
        "1.c": (0.0, 3.0, [1.0, 1.0, 1.0]),
    }
    (tmp_path / "text").write_text("no safetensors")
    with pytest.raises(BundleError, match="cannot be read as int8 ranges"):
        read_ranges(tmp_path / "text")
    for broken in (Range(2.0, 1.0, np.ones(2, "f")), Range(-1.0, 1.0, np.zeros(2, "f"))):
        write_ranges({"0.a": broken}, tmp_path / "ranges")
        with pytest.raises(BundleError, match=r"range of '0\.a' is none"):
            read_ranges(tmp_path / "ranges")


def test_ranges_of_another_width_are_refused(tmp_path: Path) -> None:
    trunk, branches = loaded(tmp_path)
    ranges, _ = calibrated(trunk, {"intent": branches["intent"]})
    wide = {name: Range(found.low, found.high, np.ones(7, np.float32)) for name, found in ranges.items()}
    with pytest.raises(BundleError, match="another width"):
        Loader(trunk, CHOICE, wide).engine({"intent": ("intent", lambda: branches["intent"])})


def test_int8_is_chosen_only_where_it_is_asked_for(tmp_path: Path) -> None:
    trunk, _ = loaded(tmp_path)
    asked = choose(trunk, dtype=INT8, device="cpu")
    assert (asked.engine, asked.dtype) == ("openvino", INT8)
    assert asked.floats == "float32"
    assert choose(trunk, dtype=INT8, device="cpu", rest="bfloat16").floats in ("float32", "bfloat16")
    assert choose(trunk, device="cpu").dtype != INT8
    for how in (("torch", INT8), ("auto", INT8, "cuda")):
        with pytest.raises(UsageError, match="int8 takes the engine openvino"):
            choose(trunk, *how)
    with pytest.raises(UsageError, match="deberta does not run on"):
        choose(loaded(tmp_path / "deberta", "deberta")[0], dtype=INT8)


def test_texts_that_a_task_cannot_read_do_not_count(tmp_path: Path) -> None:
    trunk, branches = loaded(tmp_path)
    readable = [Input("play some music", "it will rain"), Input("no", "yes")]
    with_others = [*readable, Input("only one text"), Input("", "")]
    one, other = (branch_ranges(trunk, branches["same"], items) for items in (readable, with_others))
    assert one.keys() == other.keys() != set()
    assert all(np.array_equal(one[name].scale, other[name].scale) for name in one)

"""Bundles that can run in int8: what they hold, what a merge keeps of it, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from branches import INPUTS, Made, random_branch

from trunkline.bundle import Bundle, verify
from trunkline.bundle.manifest import Change, Quality, read_manifest
from trunkline.bundle.merge import merge
from trunkline.bundle.probes import INT8_TOLERANCE, deviation
from trunkline.bundle.quantized import quantize
from trunkline.engine.calibrate import branch_ranges, trunk_ranges
from trunkline.engine.choose import no_int8
from trunkline.engine.ranges import Range, Ranges
from trunkline.errors import BundleError, ProbeError
from trunkline.model.branch import Branch, load_branch, save_branch
from trunkline.serving.loading import prove, quality

pytest.importorskip("trunkline.engine.runtime", reason="OpenVINO is an extra", exc_type=ImportError)
pytestmark = pytest.mark.skipif(no_int8() is not None, reason=no_int8() or "")

TASKS = ("intent", "slots", "same")


def measured(bundle: Bundle) -> dict[str, Quality]:
    splits = {"valid": Change(floats=0.9, int8=0.89), "test": Change(floats=0.8, int8=0.81)}
    return {task: Quality(metric="accuracy", splits=splits) for task in bundle.tasks}


def ranges_of(made: Made, tasks: Mapping[str, Branch]) -> tuple[tuple[str, Ranges], dict[str, Ranges]]:
    trunk = trunk_ranges(made.trunk, [(branch.spec, INPUTS) for branch in tasks.values()])
    return ("float32", trunk), {task: branch_ranges(made.trunk, branch, INPUTS) for task, branch in tasks.items()}


def loaded(made: Made, *tasks: str) -> dict[str, Branch]:
    return {task: load_branch(made.files[task], made.trunk.encoder) for task in tasks}


@pytest.fixture(scope="module")
def pair(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle, and the same after it was quantized."""
    out = tmp_path_factory.mktemp("quantized")
    plain = merge(made.source, made.some(*TASKS), INPUTS, out, name="x")
    return plain, quantize(plain, *ranges_of(made, loaded(made, *TASKS)), measured, out)


def test_a_quantized_bundle_is_the_same_bundle_with_ranges_and_figures(pair: tuple[Path, Path]) -> None:
    before, after = (verify(folder) for folder in pair)
    assert after.model_copy(update={"int8": None}) == before
    assert "int8" not in (pair[0] / "manifest.json").read_text()
    assert after.int8 is not None
    assert {task: found.ranges is not None for task, found in after.int8.tasks.items()} == {
        "intent": False,  # a cheap form: no layer of it runs for every token
        "slots": True,
        "same": True,
    }
    assert str(after.int8.tasks["slots"].quality) == (
        "accuracy 0.800 -> 0.810 (test), 0.900 -> 0.890 (valid, calibrated on it)"
    )
    assert all((pair[0] / file).samefile(pair[1] / file) for file in before.files())
    one, other = (Bundle.load(folder).logits(INPUTS) for folder in pair)
    for task in TASKS:
        assert [getattr(found, "tolist", str)() for found in one[task]] == [
            getattr(found, "tolist", str)() for found in other[task]
        ]


def test_int8_answers_are_those_that_were_measured(pair: tuple[Path, Path]) -> None:
    bundle = Bundle.load(pair[1], dtype="int8")
    assert 1e-4 < max(bundle.deviations().values()) <= INT8_TOLERANCE  # it is no float arithmetic
    prove(bundle, bundle.tasks)
    assert [line.split(":")[0] for line in quality(bundle)] == [f"{task} in int8" for task in sorted(TASKS)]
    assert quality(Bundle.load(pair[1])) == []


def test_what_was_not_measured_does_not_run_in_int8(made: Made, pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"the bundle was never measured in int8: `trunkline quantize`"):
        Bundle.load(pair[0], dtype="int8")
    out = pair[0].parent
    more = merge(made.source, made.some(*TASKS, "tone"), INPUTS, out, pair[1], name="x")
    with pytest.raises(BundleError, match="tone was never measured in int8"):
        Bundle.load(more, dtype="int8")
    assert Bundle.load(more, dtype="int8", tasks=TASKS).tasks == tuple(sorted(TASKS))


def test_promise_2_later_releases_keep_ranges_and_int8_bits_of_what_did_not_change(
    made: Made, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    out = pair[0].parent
    other = tmp_path / "intent.safetensors"
    save_branch(random_branch(made.trunk, "intent", seed=9, fork=1, layers=2), other)
    files = {**made.some("slots", "same", "tone"), "intent": other}
    merged = merge(made.source, files, INPUTS, out, pair[1], name="x")
    before, between = read_manifest(pair[1]).int8, read_manifest(merged).int8
    assert before is not None
    assert between is not None
    assert between.trunk == before.trunk
    assert between.tasks == {task: before.tasks[task] for task in ("slots", "same")}

    new = {"intent": random_branch(made.trunk, "intent", seed=9, fork=1, layers=2), **loaded(made, "tone")}
    again = quantize(merged, None, ranges_of(made, new)[1], measured, out)
    after = read_manifest(again).int8
    assert after is not None
    assert after.trunk == before.trunk
    assert {task: after.tasks[task] for task in ("slots", "same")} == between.tasks
    assert set(after.tasks) == {"intent", "slots", "same", "tone"}
    was, now = (Bundle.load(folder, dtype="int8").logits(INPUTS) for folder in (pair[1], again))
    for task in ("slots", "same"):
        for one, two in zip(was[task], now[task], strict=True):
            assert one.tobytes() == two.tobytes() if isinstance(one, np.ndarray) else one == two


def test_a_loaded_engine_is_lent_to_the_next_bundle_unless_its_trunk_was_calibrated_anew(
    made: Made, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    first = Bundle.load(pair[1], dtype="int8")
    fewer = merge(made.source, made.some("slots", "intent"), INPUTS, pair[0].parent, pair[1], name="x")
    second = Bundle.load(fewer, previous=first)
    assert second.loader is first.loader
    assert second.engine.backend.parts["slots"] is first.engine.backend.parts["slots"]  # type: ignore[attr-defined]
    (dtype, trunk), own = ranges_of(made, loaded(made, "slots", "intent"))
    moved = {name: Range(found.low * 2, found.high * 2, found.scale) for name, found in trunk.items()}
    anew = quantize(fewer, (dtype, moved), own, measured, pair[0].parent)
    third = Bundle.load(anew, dtype="int8", previous=second)
    assert third.loader is not second.loader
    probes = third.probes()
    assert deviation(probes.logits_of("slots"), third.logits(INPUTS)["slots"]) > 0
    with pytest.raises(BundleError, match="never measured"):
        Bundle.load(pair[0], dtype="int8", previous=first)


def test_ranges_that_ruin_a_task_are_found_on_the_probes_and_nothing_remains(
    made: Made, pair: tuple[Path, Path]
) -> None:
    (dtype, trunk), own = ranges_of(made, loaded(made, *TASKS))
    tiny = {name: Range(found.low / 500, found.high / 500, found.scale) for name, found in trunk.items()}
    out = pair[0].parent
    there = sorted(out.iterdir())
    with pytest.raises(ProbeError, match="in int8 it is off by"):
        quantize(pair[0], (dtype, tiny), own, measured, out)
    assert sorted(out.iterdir()) == there


def test_damaged_ranges_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pair[1], tmp_path / "copy"))
    file = next((copy / "int8").glob("slots-*"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(BundleError, match="is damaged"):
        Bundle.load(copy, dtype="int8")
    file.unlink()
    with pytest.raises(BundleError, match="incomplete"):
        Bundle.load(copy)
    text = (copy / "manifest.json").read_text().replace('"int8/slots-', '"int8/../slots-')
    (copy / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="is not where the ranges of 'slots' belong"):
        verify(copy)
    manifest = json.loads((pair[1] / "manifest.json").read_text())
    del manifest["branches"]["slots"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="there is no branch of slots"):
        verify(copy)

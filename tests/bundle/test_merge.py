"""Merging: promises 1 and 2, and what happens when a proof fails."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from branches import ALL_SORTS, INPUTS, Made, branch_files, load_trunk, random_branch, tiny_source
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trunkline.atomic import exclusive, write_json
from trunkline.bundle import Bundle, verify
from trunkline.bundle.manifest import bundle_id, file_hash, read_manifest
from trunkline.bundle.merge import merge
from trunkline.bundle.probes import Probes
from trunkline.engine import Input, ItemError
from trunkline.errors import BundleError, ProbeError, StoreError, UsageError
from trunkline.model.branch import Branch, first_subwords, load_branch, save_branch
from trunkline.model.encoders import Encoder
from trunkline.model.source import FAMILIES, Source
from trunkline.model.trunk import Trunk
from trunkline.project.tasks import split_words


def whole_model(encoder: Encoder, branch: Branch, item: Input) -> np.ndarray | None:
    """A task's logits from its own whole model: an encoder with the branch's layers in place of its own, and a head.

    The oracle of promise 1: no fork, no engine, no batch. A separate reading and latents have no such model; the branch
    must do.
    """
    spec = branch.spec
    if spec.reading != "single" and item.text_pair is None:
        return None
    model = copy.deepcopy(encoder)
    for position, layer in enumerate(branch.layers):
        model.layers[spec.fork + position].load_state_dict(layer.state_dict())
    pairs = [item.text_pair or ""]
    with torch.no_grad():
        if spec.reading == "separate" or spec.latents:
            alone = [(item.text, None)] if spec.reading == "single" else [(item.text, None), (pairs[0], None)]
            texts = [(item.text, pairs)] if spec.reading == "joint" else alone
            rows = [encoder.tokenize([text], pair, spec.max_tokens)[0] for text, pair in texts]
            batches = [encoder.collate([row]) for row in rows]
            states = [encoder.hidden_states(batch)[spec.fork] for batch in batches]
            values = branch(encoder, states, [batch.mask for batch in batches])[0]
        else:
            rows = encoder.tokenize([item.text], pairs if spec.reading == "joint" else None, spec.max_tokens)
            batch = encoder.collate(rows)
            states = branch.norm(model.hidden_states(batch)[spec.fork + spec.layers])
            values = branch.head((states,), (batch.mask,))[0]
            if spec.kind == "regression":
                values = spec.mean + spec.std * values
    if spec.kind == "tagging":
        firsts = first_subwords(rows[0], split_words(item.text))
        values = torch.stack([values[first] for first in firsts if first is not None])
    return values.numpy()


def bits(results: Sequence[Any]) -> list[Any]:
    """Results in a form where equal means equal to the last bit."""
    return [(found.shape, found.tobytes()) if isinstance(found, np.ndarray) else found for found in results]


def said_alone(bundle: Bundle, task: str) -> list[Any]:
    """The bits of what a task says where it alone is asked, so that batches have its shape."""
    bundle.engine.forget()
    return bits(bundle.logits(INPUTS, [task])[task])


def branch_bytes(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (bundle / "branches").iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_promise_1_merged_equals_single_for_every_kind_and_reading(tmp_path: Path, family: str) -> None:
    source = tiny_source(tmp_path / "encoder", family)
    trunk = load_trunk(source)
    files = branch_files(tmp_path / "branches", trunk, ALL_SORTS)
    bundle = Bundle.load(merge(source, files, INPUTS, tmp_path / "bundles", name="all"))
    assert bundle.tasks == tuple(sorted(ALL_SORTS))
    merged = bundle.logits(INPUTS)
    for task, file in files.items():
        branch = load_branch(file, trunk.encoder)
        for item, found in zip(INPUTS, merged[task], strict=True):
            expected = whole_model(trunk.encoder, branch, item)
            if expected is None:
                assert isinstance(found, ItemError)
            else:
                assert isinstance(found, np.ndarray)
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))


def test_promise_2_add_replace_and_remove_touch_no_other_task(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "bundles"
    first = merge(made.source, made.some("intent", "slots", "same"), INPUTS, out, name="x")
    added = merge(made.source, made.some("intent", "slots", "same", "follows"), INPUTS, out, first, name="x")
    other = tmp_path / "intent.safetensors"
    save_branch(random_branch(made.trunk, "intent", seed=9, fork=1, layers=2), other)
    replaced = merge(
        made.source, {**made.some("slots", "same", "follows"), "intent": other}, INPUTS, out, added, name="x"
    )
    removed = merge(made.source, made.some("slots", "same", "follows"), INPUTS, out, replaced, name="x")

    assert branch_bytes(first).items() <= branch_bytes(added).items()
    assert len(branch_bytes(added).keys() - branch_bytes(first).keys()) == 1
    assert branch_bytes(removed).items() <= branch_bytes(added).items()
    assert branch_bytes(removed).items() <= branch_bytes(replaced).items()
    bundles = [Bundle.load(path) for path in (first, added, replaced, removed)]
    for task in ("slots", "same"):
        assert [said_alone(bundle, task) for bundle in bundles[1:]] == [said_alone(bundles[0], task)] * 3
    intents = [said_alone(bundle, "intent") for bundle in bundles[:3]]
    assert intents[1] == intents[0] != intents[2]
    assert "intent" not in bundles[3].tasks


tasks_of = st.sets(st.sampled_from(sorted(ALL_SORTS)), min_size=1)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=tasks_of, after=tasks_of, draw=st.randoms())
def test_promise_2_holds_from_any_set_of_tasks_to_any_other(
    made: Made, tmp_path_factory: pytest.TempPathFactory, before: set[str], after: set[str], draw: random.Random
) -> None:
    out = tmp_path_factory.mktemp("bundles")
    old = merge(made.source, made.some(*before), INPUTS, out, name="x")
    new = merge(made.source, made.some(*draw.sample(sorted(after), len(after))), INPUTS, out, old, name="x")
    was, now = Bundle.load(old), Bundle.load(new)
    for task in before & after:
        name = Path(was.manifest.branches[task].file).name
        assert branch_bytes(old)[name] == branch_bytes(new)[name]
        assert said_alone(was, task) == said_alone(now, task)


def test_a_bundle_is_the_same_whatever_it_was_made_after(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "bundles"
    fresh = merge(made.source, made.some("intent", "slots"), INPUTS, out, name="x")
    larger = merge(made.source, made.some("intent", "slots", "same"), INPUTS, out, fresh, name="x")
    assert merge(made.source, made.some("slots", "intent"), INPUTS, out, larger, name="x") == fresh
    assert merge(made.source, made.some("slots", "intent"), INPUTS, tmp_path / "other", name="x").name == fresh.name
    assert sorted(path.name for path in out.iterdir()) == sorted(["merge.lock", fresh.name, larger.name])


def test_logits_that_another_run_rounds_differently_make_no_other_bundle(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "bundles"
    first = merge(made.source, made.some("intent", "slots"), INPUTS, out, name="x")
    probes = Probes.read(first / "probes.json")
    nudged = {task: tuple(_nudged(found) for found in results) for task, results in probes.logits.items()}
    write_json(first / "probes.json", probes.model_copy(update={"logits": nudged}).model_dump(mode="json"))
    manifest = read_manifest(first)
    entry = manifest.probes.model_copy(update={"sha256": file_hash(first / "probes.json")})
    manifest.model_copy(update={"probes": entry}).write(first)
    other = first.rename(out / bundle_id(first))
    assert other.name != first.name
    assert merge(made.source, made.some("intent", "slots"), INPUTS, out, other, name="x") == other
    assert merge(made.source, made.some("intent", "slots"), INPUTS[:-1], out, other, name="x") != other


def _nudged(found: Any) -> Any:
    return [_nudged(value) for value in found] if isinstance(found, list) else found and found + 1e-9


def test_bundles_with_one_trunk_keep_it_once_and_own_what_the_user_may_change(made: Made, tmp_path: Path) -> None:
    first = merge(made.source, made.some("intent"), INPUTS, tmp_path / "bundles", name="x")
    second = merge(made.source, made.some("intent", "tone"), INPUTS, tmp_path / "bundles", first, name="x")
    weights = [folder / "trunk" / "model.safetensors" for folder in (first, second)]
    assert weights[0].samefile(weights[1])
    assert not weights[0].samefile(made.source.path / "model.safetensors")
    assert not next((first / "branches").iterdir()).samefile(made.files["intent"])


def test_the_probes_are_stored_with_every_logit_and_hold_again(made: Made) -> None:
    bundle = Bundle.load(made.bundle)
    assert bundle.probes().items() == INPUTS
    assert set(bundle.deviations()) == set(ALL_SORTS)
    assert all(value <= bundle.probes().tolerance for value in bundle.deviations().values())


def nothing_new(out: Path, *kept: Path) -> bool:
    return sorted(path.name for path in out.iterdir()) == sorted(["merge.lock", *(path.name for path in kept)])


def test_a_branch_that_fails_its_probe_is_named_and_nothing_remains(made: Made, tmp_path: Path) -> None:
    broken = random_branch(made.trunk, "tone", kind="multilabel")
    broken.head.output.weight.data.fill_(float("inf"))
    save_branch(broken, tmp_path / "tone.safetensors")
    old = merge(made.source, made.some("intent"), INPUTS, tmp_path / "bundles", name="x")
    with pytest.raises(ProbeError, match=r"task 'tone' failed its probe.*not a number") as caught:
        merge(
            made.source,
            {**made.some("intent"), "tone": tmp_path / "tone.safetensors"},
            INPUTS,
            tmp_path / "bundles",
            old,
            name="x",
        )
    assert caught.value.task == "tone"
    assert nothing_new(tmp_path / "bundles", old)


def test_promise_1_is_proved_against_the_branch_alone(made: Made, tmp_path: Path) -> None:
    """A branch so ill-conditioned that company changes its answers must not be merged."""
    branch = random_branch(made.trunk, "fragile", fork=4, layers=0, pooling="mean")
    with torch.no_grad():
        # The difference of two almost equal features, hugely enlarged: rounding decides.
        branch.head.pooler.weight[1] = branch.head.pooler.weight[0] * (1 + 1e-6)
        branch.head.pooler.bias[1] = branch.head.pooler.bias[0]
        branch.head.output.weight.zero_()
        branch.head.output.bias.zero_()
        branch.head.output.weight[:, 0], branch.head.output.weight[:, 1] = 1e6, -1e6
    save_branch(branch, tmp_path / "fragile.safetensors")
    with pytest.raises(ProbeError, match=r"task 'fragile' failed its probe: .* differ by .*promise 1") as caught:
        merge(made.source, {"fragile": tmp_path / "fragile.safetensors"}, INPUTS, tmp_path / "bundles", name="x")
    assert "The old release stays live" in str(caught.value)
    assert nothing_new(tmp_path / "bundles")


@pytest.mark.parametrize("probes", [[], [Input("only one text")], [Input("", "")]])
def test_a_task_that_no_probe_reaches_is_not_merged(made: Made, tmp_path: Path, probes: list[Input]) -> None:
    with pytest.raises(ProbeError, match="task 'same' failed its probe: it answers none of"):
        merge(made.source, made.some("same"), probes, tmp_path / "bundles", name="x")
    assert nothing_new(tmp_path / "bundles")


def test_files_that_do_not_fit_are_refused_and_nothing_remains(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "bundles"

    def attempt(files: dict[str, Path], message: str, source: Source = made.source) -> None:
        with pytest.raises(BundleError, match=message):
            merge(source, files, INPUTS, out, name="x")
        assert not out.exists() or nothing_new(out)

    attempt({}, "at least one branch")
    attempt({"intent": tmp_path / "absent"}, "branch file of task 'intent' is not there")
    attempt({"tone": made.files["intent"]}, "holds the branch of task 'intent', not of 'tone'")
    (tmp_path / "text").write_text("not safetensors")
    attempt({"intent": tmp_path / "text"}, "not a readable branch file")
    other = tiny_source(tmp_path / "other", seed=1)
    attempt(made.some("intent"), "was made for trunk", other)
    deeper = tiny_source(tmp_path / "deeper", layers=2)
    attempt(made.some("urgency"), "this trunk has 2 layers", deeper)
    changed = replace(made.source, fingerprint="0" * 64)
    attempt(made.some("intent"), "changed since its branches were trained", changed)


def test_a_damaged_twin_makes_way_for_the_whole_bundle(made: Made, tmp_path: Path) -> None:
    first = merge(made.source, made.some("intent"), INPUTS, tmp_path / "bundles", name="x")
    (first / "probes.json").write_text("{}")
    assert merge(made.source, made.some("intent"), INPUTS, tmp_path / "bundles", name="x") == first
    verify(first)
    assert nothing_new(tmp_path / "bundles", first)


def test_two_merges_in_one_place_do_not_mix(made: Made, tmp_path: Path) -> None:
    with exclusive(tmp_path / "bundles" / "merge.lock"), pytest.raises(StoreError, match="another process"):
        merge(made.source, made.some("intent"), INPUTS, tmp_path / "bundles", name="x", wait=0)


def test_a_bundle_answers_from_python(made: Made) -> None:
    bundle = Bundle.load(str(made.bundle))
    first, second = bundle.predict(["play some music", ("no", "yes")], tasks=["intent", "same"])
    assert set(first) == {"intent", "same"}
    assert isinstance(first["same"], ItemError)
    intent, same = second["intent"], second["same"]
    assert not isinstance(intent, ItemError)
    assert not isinstance(same, ItemError)
    assert intent.label in bundle.specs["intent"].labels
    assert same.score == same.scores["yes"]
    assert set(bundle.predict(["play"])[0]) == set(ALL_SORTS)
    with pytest.raises(UsageError, match="did you mean 'intent'"):
        bundle.predict(["play"], tasks=["intnt"])


def test_a_bundle_needs_nothing_outside_its_folder(made: Made, tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "encoder", seed=3)
    trunk: Trunk = load_trunk(source)
    files = branch_files(tmp_path / "branches", trunk, {"intent": ALL_SORTS["intent"]})
    path = merge(source, files, INPUTS, tmp_path / "bundles", name="x")
    expected = Bundle.load(path).logits(INPUTS)
    moved = path.rename(tmp_path / "elsewhere")
    for file in (*source.path.iterdir(), *files.values()):
        file.unlink()
    assert bits(Bundle.load(moved).logits(INPUTS)["intent"]) == bits(expected["intent"])

"""Several teachers: each mode against its plain form, and the heads that become one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from branches import random_branch
from torch import nn

from trunkline.model.branch import Reading, load_branch, save_branch
from trunkline.model.trunk import Trunk
from trunkline.project.teachers import Match, Mode
from trunkline.training.candidates import OverStates, schedule_of, train_student, train_tuned
from trunkline.training.losses import gold_loss, soften, teacher_loss
from trunkline.training.material import FIT, Logits, TaskMaterial
from trunkline.training.teaching import SeparateHeads, Teaching, distilled, merge_heads, separate_heads, together


def made_up(material: TaskMaterial, seed: int) -> Logits:
    """What a teacher of random opinions says of the train rows."""
    rng, width = np.random.default_rng(seed), max(len(material.data.labels), 1)
    targets = [material.data.fit.targets[row] for row in material.data.train]
    if material.kind == "tagging":
        return [rng.normal(size=(len(tags), width)).astype(np.float32) for tags in targets]
    return rng.normal(size=(len(targets), width)).astype(np.float32)


def whole_loss(material: TaskMaterial, trunk: Trunk, teaching: Teaching, soft: list[Logits]) -> tuple[float, Any]:
    """The loss of a random branch over all train rows of a task that is no tagging, and its logits and targets."""
    sort = {"kind": material.kind.value, "fork": 1, "layers": 1}
    branch = random_branch(trunk, "any", **sort)
    branch.spec = branch.spec.model_copy(update={"outputs": max(len(material.data.labels), 1), "labels": ()})
    rows = material.data.train
    logits = torch.from_numpy(np.asarray(made_up(material, 9)))
    targets = torch.from_numpy(np.asarray(material.examples(FIT, Reading.SINGLE).targets)[rows])
    loss = distilled(material, branch, soft, teaching)
    return float(loss(rows, logits, targets)), (logits, targets)


@pytest.mark.parametrize("task", ["intent", "tone", "urgency"])
@pytest.mark.parametrize("match", Match)
def test_the_modes_with_one_head_are_their_plain_forms(make: Any, trunk: Trunk, task: str, match: Match) -> None:
    material = make(task)
    soft = [made_up(material, seed) for seed in (1, 2)]
    weights = (1.0, 3.0)
    one, other = (torch.from_numpy(np.asarray(values)) for values in soft)
    for mode in (Mode.MEAN, Mode.MEAN_LOGITS, Mode.BEST):
        found, (logits, targets) = whole_loss(material, trunk, Teaching(2.0, 0.5, mode, match, weights), soft)
        kind = material.kind
        if mode is Mode.MEAN:
            aims = 0.25 * soften(kind, one, 2.0) + 0.75 * soften(kind, other, 2.0)
        elif mode is Mode.MEAN_LOGITS:
            aims = soften(kind, 0.25 * one + 0.75 * other, 2.0)
        else:
            rows = range(len(one))
            off = [[float(gold_loss(kind, t[[i]], targets[[i]])) for i in rows] for t in (one, other)]
            better = [a < b for a, b in zip(*off, strict=True)]
            assert 0 < sum(better) < len(better)
            chosen = torch.stack([one[i] if better[i] else other[i] for i in rows])
            aims = soften(kind, chosen, 2.0)
        keep = torch.ones(len(one))
        wanted = teacher_loss(kind, logits, aims, 2.0, keep=keep, match=match) + 0.5 * gold_loss(kind, logits, targets)
        assert found == pytest.approx(float(wanted), rel=1e-5)


def test_squared_distance_by_hand(make: Any, trunk: Trunk) -> None:
    logits = torch.tensor([[0.0, 0.0]])
    soft = torch.tensor([[0.75, 0.25]])
    found = teacher_loss(make("same").kind, logits, soft, 2.0, keep=torch.ones(1), match=Match.MSE)
    assert float(found) == pytest.approx(4 * 2 * 0.25**2)


@pytest.mark.parametrize("task", ["intent", "tone", "urgency", "slots"])
@pytest.mark.parametrize("gold_weight", [0.0, 1.0])
def test_heads_become_one_that_answers_as_their_mean(
    make: Any, tmp_path: Path, trunk: Trunk, task: str, gold_weight: float
) -> None:
    """Each head learns another teacher, so that they differ; the exported branch is one like any other."""
    material = make(task)
    schedule = schedule_of(material.settings.distill, 1e-2, seed=1, precision=torch.float32, device="cpu")
    tuned = train_tuned(material, Reading.SINGLE, 2, schedule, tmp_path / "tune.pt", lambda _: None)
    seen: list[tuple[SeparateHeads, np.ndarray | list[np.ndarray]]] = []
    rows = material.data.train

    def before(branch: Any) -> None:
        heads = branch.head.output
        logits = material.examples(FIT, Reading.SINGLE).predict(OverStates(material, branch, FIT).eval(), rows)
        seen.append((heads, logits))
        merge_heads(branch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trunkline.training.candidates.merge_heads", before)
        teaching = Teaching(2.0, gold_weight, Mode.HEADS, weights=(1.0, 2.0))
        soft = [made_up(material, seed) for seed in (1, 2)]
        student = train_student(
            material, tuned.branch, soft, 1, "teacher", schedule, tmp_path / "s.pt", lambda _: None, teaching=teaching
        ).branch
    [(heads, mean)] = seen
    weights = [head.get_parameter("weight") for head in heads.heads]
    assert len(weights) == 2 + (gold_weight > 0)
    assert not torch.equal(weights[-2], weights[-1])
    assert type(student.head.output) is nn.Linear
    save_branch(student, tmp_path / "branch.safetensors")
    loaded = load_branch(tmp_path / "branch.safetensors", trunk.encoder)
    exported = material.examples(FIT, Reading.SINGLE).predict(OverStates(material, loaded, FIT), rows)
    for one, other in zip(exported, mean, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_each_head_is_held_to_its_own_teacher(make: Any, trunk: Trunk) -> None:
    material = make("intent")
    soft = [made_up(material, seed) for seed in (1, 2)]
    rows = material.data.train
    branch = random_branch(trunk, "any", kind="classification", fork=1, layers=1)
    separate_heads(branch, 3)
    loss = distilled(material, branch, soft, Teaching(2.0, 0.5, Mode.HEADS, weights=(1.0, 3.0)))
    logits = torch.randn(len(rows), 9, generator=torch.Generator().manual_seed(0))
    targets = torch.from_numpy(np.asarray(material.examples(FIT, Reading.SINGLE).targets)[rows])
    kind, keep = material.kind, torch.ones(len(rows))
    gold_part, *parts = logits.split(3, dim=1)
    each = [
        float(teacher_loss(kind, part, soften(kind, torch.from_numpy(np.asarray(aim)), 2.0), 2.0, keep=keep))
        for part, aim in zip(parts, soft, strict=True)
    ]
    wanted = 0.5 * float(gold_loss(kind, gold_part, targets)) + 0.25 * each[0] + 0.75 * each[1]
    assert float(loss(rows, logits, targets)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("task", ["intent", "slots", "tone", "urgency"])
def test_teachers_together_say_what_their_student_is_held_to(make: Any, task: str) -> None:
    material = make(task)
    kind, soft, weights = material.kind, [made_up(material, seed) for seed in (1, 2)], (1.0, 3.0)
    pairs = [[torch.from_numpy(row) for row in rows] for rows in zip(*soft, strict=True)]
    mean = together(kind, soft, Teaching(2.0, 1.0, Mode.MEAN, weights=weights))
    for said, (one, other) in zip(mean, pairs, strict=True):
        wanted = 0.25 * soften(kind, one, 2.0) + 0.75 * soften(kind, other, 2.0)
        assert torch.allclose(soften(kind, torch.from_numpy(said), 1.0), wanted, atol=1e-5)
    for mode in (Mode.MEAN_LOGITS, Mode.HEADS):
        logits = together(kind, soft, Teaching(2.0, 1.0, mode, weights=weights))
        for said, (one, other) in zip(logits, pairs, strict=True):
            assert torch.allclose(torch.from_numpy(said), 0.25 * one + 0.75 * other, atol=1e-6)
    with pytest.raises(ValueError, match="by its label"):
        together(kind, soft, Teaching(2.0, 1.0, Mode.BEST))


@pytest.mark.parametrize("task", ["intent", "tone"])
def test_teachers_that_are_quite_sure_still_give_finite_logits(make: Any, task: str) -> None:
    sure = np.asarray([[200.0, -200.0, 0.0]], dtype=np.float32)
    assert np.isfinite(np.asarray(together(make(task).kind, [sure, sure], Teaching(1.0, 1.0)))).all()

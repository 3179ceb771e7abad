"""Candidates of every kind and reading: full fine-tuning, tuned layers, students."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from projects import SORTS
from torch import nn

from trunkline.model.branch import Branch, Reading
from trunkline.model.encoders import Encoder
from trunkline.model.trunk import Trunk
from trunkline.project.taking import Take
from trunkline.project.tasks import DEFAULT_METRIC
from trunkline.training.calibration import calibrate
from trunkline.training.candidates import (
    OverStates,
    Trained,
    logits_of,
    schedule_of,
    train_full,
    train_student,
    train_tuned,
)
from trunkline.training.loop import Progress, Schedule
from trunkline.training.losses import IGNORE
from trunkline.training.material import FIT, Logits, TaskMaterial
from trunkline.training.teaching import Teaching

READINGS = [(task, "single") for task in SORTS if task != "same"] + [("same", "joint"), ("same", "separate")]


def said(material: TaskMaterial, branch: Branch, encoder: Encoder | None = None) -> Logits:
    """A teacher's logits of the train rows."""
    return logits_of(material, branch, encoder, material.data.train)


def quick(rate: float = 1e-3, **changes: Any) -> Schedule:
    options = {"epochs": 0.1, "batch_size": 8, "min_steps": 4, "patience": 9, "warmup": 0.1, "weight_decay": 0.01}
    return Schedule(**{**options, "learning_rate": rate, "seed": 1, **changes})


def quiet(_: Progress) -> None: ...


def student_of(
    material: TaskMaterial,
    teacher: Branch,
    soft: Sequence[Logits],
    path: Path,
    *,
    init: str = "teacher",
    **changes: Any,
) -> Trained:
    schedule = quick(**changes)
    return train_student(material, teacher, soft, 1, init, schedule, path, quiet, teaching=Teaching(2.0, 1.0))


@pytest.mark.parametrize(("task", "reading"), READINGS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_kind_and_reading_trains(
    make: Any, tmp_path: Path, task: str, reading: str, precision: torch.dtype
) -> None:
    material = make(task)
    schedule = quick(precision=precision)
    full = train_full(material, Reading(reading), schedule, tmp_path / "full.pt", quiet)
    tuned = train_tuned(material, Reading(reading), 2, schedule, tmp_path / "tune.pt", quiet)
    soft = [said(material, tuned.branch), said(material, full.branch, full.encoder)]
    student = student_of(material, tuned.branch, soft, tmp_path / "distill.pt", precision=precision)
    shapes = [(t.branch.spec.fork, t.branch.spec.layers, t.encoder is None) for t in (full, tuned, student)]
    assert shapes == [(3, 0, False), (1, 2, True), (1, 1, True)]
    for trained in (full, tuned, student):
        assert set(trained.metrics) == {"valid", "test"}
        assert np.isfinite(trained.metrics["valid"][DEFAULT_METRIC[material.kind]])
        assert all(torch.isfinite(p).all() for p in trained.branch.parameters())
        assert all(entry["loss"] > 0 for entry in trained.outcome.history)
        assert not trained.branch.training


@pytest.mark.parametrize(("task", "least"), [("intent", 0.5), ("urgency", 0.6)])
def test_training_learns_what_the_data_says(make: Any, tmp_path: Path, task: str, least: float) -> None:
    """Otherwise targets and rows are out of step."""
    material = make(task, rows=200, tune={"pooling": "mean"})
    schedule = quick(3e-3, epochs=10, batch_size=16, min_steps=120, patience=20)
    tuned = train_tuned(material, Reading.SINGLE, 3, schedule, tmp_path / "tune.pt", quiet)
    assert tuned.metrics["test"][DEFAULT_METRIC[material.kind]] > least


def test_words_that_truncation_took_are_not_calibrated_on(make: Any, tmp_path: Path) -> None:
    material = make("slots", max_tokens=8)
    seen: dict[str, Any] = {}

    def heard(kind: Any, splits: dict[str, Any]) -> Any:
        seen.update(splits)
        return calibrate(kind, splits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trunkline.training.candidates.calibrate", heard)
        train_tuned(material, Reading.SINGLE, 1, quick(), tmp_path / "tune.pt", quiet)
    words = sum(len(tags) for tags in material.data.reported["test"].targets)
    logits, targets = seen["test"]
    assert [len(row) for row in logits] == [len(row) for row in targets]
    assert 0 < sum(map(len, targets)) < words
    assert all(abs(row).max() < 10 for row in logits if row.size)


def test_every_tag_stands_at_the_first_subword_of_its_word(make: Any, trunk: Trunk) -> None:
    material = make("slots")
    examples = material.examples(FIT, Reading.SINGLE)
    (batch,) = examples.token_batches([0, 1, 2], trunk.encoder)
    targets = examples.target_batch([0, 1, 2], batch.ids.shape[1])
    for row in range(3):
        words = examples.rows.texts[row].split()
        tags = iter(examples.rows.targets[row])
        for token, target in zip(batch.ids[row].tolist(), targets[row].tolist(), strict=True):
            piece = trunk.encoder.reader.tokenizer.id_to_token(token) or ""
            if target == IGNORE:
                assert piece.startswith(("##", "["))
            else:
                assert words.pop(0).startswith(piece)
                assert material.data.labels[target] == next(tags)
        assert not words


@pytest.mark.parametrize("reading", ["joint", "separate"])
def test_a_student_starts_from_the_bottom_layers_of_its_teacher(make: Any, tmp_path: Path, reading: str) -> None:
    material = make("same")
    teacher = train_tuned(material, Reading(reading), 2, quick(), tmp_path / "t.pt", quiet).branch
    trunk_top = material.trunk.encoder.layers[1].state_dict()
    soft = [said(material, teacher)]
    student = student_of(material, teacher, soft, tmp_path / "s.pt", rate=0.0).branch
    taught, learnt = teacher.state_dict(), student.state_dict()
    assert {name.split(".")[1] for name in learnt if name.startswith("layers.")} == {"0"}
    assert all(torch.equal(tensor, taught[name]) for name, tensor in learnt.items())
    assert any(not torch.equal(tensor, learnt[f"layers.0.{name}"]) for name, tensor in trunk_top.items())


@pytest.mark.parametrize(("take", "places"), [("bottom", [0, 1]), ("spread", [0, 2]), ("top", [1, 2])])
@pytest.mark.parametrize("init", ["teacher", "trunk"])
def test_a_student_starts_from_the_layers_that_it_takes(
    make: Any, tmp_path: Path, trunk: Trunk, init: str, take: str, places: list[int]
) -> None:
    material = make("intent")
    teacher = train_tuned(material, Reading.SINGLE, 3, quick(), tmp_path / "t.pt", quiet).branch
    still = quick(rate=0.0)
    options = {"teaching": Teaching(2.0, 1.0), "take": Take(take)}
    soft = [said(material, teacher)]
    student = train_student(material, teacher, soft, 2, init, still, tmp_path / "s.pt", quiet, **options).branch
    own = teacher.layers if init == "teacher" else trunk.encoder.layers
    assert (student.spec.fork, student.spec.layers) == (0, 2)
    for layer, place in zip(student.layers, places, strict=True):
        assert all(torch.equal(tensor, own[place].state_dict()[name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize(("task", "reading"), READINGS)
def test_a_loss_on_hidden_states_brings_a_student_s_layers_near_its_teacher_s(
    make: Any, tmp_path: Path, task: str, reading: str
) -> None:
    material = make(task)
    teacher = train_tuned(material, Reading(reading), 3, quick(), tmp_path / "t.pt", quiet).branch
    soft = [said(material, teacher)]
    states, masks = OverStates(material, teacher, FIT).read(material.data.train)
    last = torch.cat(masks, dim=1).bool()
    if task != "slots" and reading != "separate":
        last[:, 1:] = False  # the head reads [CLS] alone

    def apart(weight: float) -> list[float]:
        path, schedule = tmp_path / f"{weight}.pt", quick(1e-2, min_steps=40)
        taught = Teaching(2.0, 1.0, hidden=weight)
        student = train_student(material, teacher, soft, 2, "random", schedule, path, quiet, teaching=taught).branch
        with torch.no_grad():
            own, aims = (one.watched(material.trunk.encoder, states, masks)[1] for one in (student, teacher))
        pairs = zip(own, aims[1:], (torch.cat(masks, dim=1).bool(), last), strict=True)
        return [float((mine - aim)[counted].square().mean()) for mine, aim, counted in pairs]

    alone, held = apart(0.0), apart(10.0)
    assert held[0] < 0.3 * alone[0]
    assert held[1] < 0.3 * alone[1]


def test_a_student_can_start_from_the_trunk_or_from_nothing(make: Any, tmp_path: Path, trunk: Trunk) -> None:
    material = make("intent")
    teacher = train_tuned(material, Reading.SINGLE, 2, quick(), tmp_path / "t.pt", quiet).branch
    soft = [said(material, teacher)]
    starts = {
        init: student_of(material, teacher, soft, tmp_path / f"{init}.pt", init=init, rate=0.0).branch.layers[0]
        for init in ("trunk", "random")
    }
    own = trunk.encoder.layers[1].state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in starts["trunk"].state_dict().items())
    matrices = [name for name, tensor in own.items() if tensor.ndim > 1]
    assert not any(torch.equal(starts["random"].state_dict()[name], own[name]) for name in matrices)


@pytest.mark.parametrize(("task", "reading"), [one for one in READINGS if one[0] != "slots"])
def test_a_student_of_latents_starts_from_its_teacher_s_layers(
    make: Any, tmp_path: Path, task: str, reading: str
) -> None:
    material = make(task)
    tuned = train_tuned(material, Reading(reading), 2, quick(), tmp_path / "tune.pt", quiet)
    soft = [said(material, tuned.branch)]
    still = quick(rate=1e-12)
    options = {"teaching": Teaching(2.0, 1.0), "latents": 3, "crossing": 1}
    student = train_student(material, tuned.branch, soft, 2, "teacher", still, tmp_path / "s.pt", quiet, **options)
    spec, weights = student.branch.spec, tuned.branch.state_dict()
    assert (spec.fork, spec.layers, spec.latents, spec.pooling) == (1, 2, 3, "latents")
    found = student.branch.state_dict()
    same = [name for name in found if name.startswith("layers.") or name == "head.output.weight"]
    assert all(torch.allclose(found[name], weights[name], atol=1e-6) for name in same)
    assert found["latents"].shape == (3, material.trunk.width)
    assert np.isfinite(list(student.metrics["valid"].values())).all()


def test_teacher_and_trunk_are_in_eval_mode_while_distilling(make: Any, tmp_path: Path, trunk: Trunk) -> None:
    material = make("intent")
    full = train_full(material, Reading.SINGLE, quick(), tmp_path / "f.pt", quiet)
    tuned = train_tuned(material, Reading.SINGLE, 2, quick(), tmp_path / "t.pt", quiet)
    assert full.encoder is not None
    for branch, encoder in ((tuned.branch, None), (full.branch, full.encoder)):
        branch.train()
        full.encoder.train()
        first, second = (np.asarray(said(material, branch, encoder)) for _ in range(2))
        assert np.array_equal(first, second)
    seen: list[bool] = []
    parts = {id(module) for module in trunk.modules()}  # a branch's copies of its layers carry the hooks along

    def look(module: nn.Module, _: object) -> None:
        if id(module) in parts:
            seen.append(module.training)

    hooks = [module.register_forward_pre_hook(look) for module in trunk.modules()]
    try:
        live = make_live(material)
        student_of(live, tuned.branch, [said(material, tuned.branch)], tmp_path / "s.pt")
    finally:
        for hook in hooks:
            hook.remove()
    assert seen
    assert not any(seen)


def make_live(material: TaskMaterial) -> TaskMaterial:
    """The same material with no room for cached states, so that the trunk runs for every batch."""
    material.cache.max_bytes = 0
    for folder in material.cache.folder.iterdir():
        folder.rename(folder.with_name(f"old-{folder.name}"))
    return material


def test_the_trunk_is_never_trained(make: Any, tmp_path: Path, trunk: Trunk) -> None:
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    material = make("tone")
    full = train_full(material, Reading.SINGLE, quick(), tmp_path / "f.pt", quiet)
    train_tuned(material, Reading.SINGLE, 2, quick(), tmp_path / "t.pt", quiet)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())
    assert full.encoder is not None
    assert any(not torch.equal(tensor, before[f"encoder.{n}"]) for n, tensor in full.encoder.state_dict().items())


def test_a_teacher_s_logits_come_in_the_order_of_the_train_rows(make: Any, tmp_path: Path) -> None:
    material = make("intent")
    teacher = train_tuned(material, Reading.SINGLE, 1, quick(), tmp_path / "t.pt", quiet).branch
    logits = said(material, teacher)
    states = material.states("fit", Reading.SINGLE, 2)[0]
    for place, row in enumerate(material.data.train[:5]):
        values, mask = states.batch([int(row)])
        with torch.no_grad():
            alone = teacher(material.trunk.encoder, [values], [mask])[0].numpy()
        assert np.allclose(logits[place], alone, atol=1e-5)


def test_a_student_follows_its_teacher_and_not_only_gold(make: Any, tmp_path: Path) -> None:
    material = make("intent", rows=80)
    teacher = train_tuned(material, Reading.SINGLE, 2, quick(), tmp_path / "t.pt", quiet).branch
    odd = np.zeros((len(material.data.train), 3), dtype=np.float32)
    odd[:, 2] = 8.0  # a teacher that always says the third label
    student = train_student(
        material, teacher, [odd], 1, "teacher", quick(3e-3, epochs=5), tmp_path / "s.pt", quiet,
        teaching=Teaching(2.0, 0.0),
    )  # fmt: skip
    assert (np.asarray(said(material, student.branch)).argmax(-1) == 2).all()


def test_several_teachers_are_averaged_after_softening(make: Any, tmp_path: Path) -> None:
    material = make("intent", rows=80)
    teacher = train_tuned(material, Reading.SINGLE, 2, quick(), tmp_path / "t.pt", quiet).branch
    rows = len(material.data.train)
    sure, unsure = (np.tile(np.asarray([top, 0.0, 0.0], dtype=np.float32), (rows, 1)) for top in (9.0, 0.0))
    found = train_student(
        material, teacher, [sure, unsure], 1, "teacher", quick(1e-2, epochs=20), tmp_path / "s.pt", quiet,
        teaching=Teaching(1.0, 0.0),
    )  # fmt: skip
    # (2/3, 1/6, 1/6) on average, whose entropy no cross entropy is below; mean logits would allow 0.1.
    entropy = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 6))
    assert entropy - 1e-3 < found.outcome.history[-1]["loss"] < entropy + 0.1


def test_a_schedule_is_what_the_task_file_says(make: Any) -> None:
    settings = make("intent", tune={"epochs": 2.5, "patience": 7, "weight_decay": 0.2}).settings
    schedule = schedule_of(settings.tune, settings.tune.learning_rate, seed=5, precision=torch.float32, device="cpu")
    assert (schedule.epochs, schedule.patience, schedule.weight_decay, schedule.seed) == (2.5, 7, 0.2, 5)


def test_the_same_seed_gives_the_same_branch_and_another_one_does_not(make: Any, tmp_path: Path) -> None:
    material = make("intent")
    heads = [
        train_tuned(material, Reading.SINGLE, 1, quick(seed=seed), tmp_path / f"{n}.pt", quiet).branch.head
        for n, seed in enumerate([4, 4, 5])
    ]
    weights = [head.output.weight for head in heads]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])

"""Trunks of a project: adapted to its tasks, listed, and moved to with every task or not at all."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import SORTS, Heard, write_project, write_settings, write_task
from tiny import tiny_encoder

from trunkline.bundle.manifest import read_manifest
from trunkline.bundle.merge import merge
from trunkline.errors import BundleError, EncoderError, ProjectError, TrunklineError, UsageError
from trunkline.model.encoders import Encoder
from trunkline.model.source import resolve
from trunkline.pipeline.adapted import depth_of
from trunkline.pipeline.project import Change, Project
from trunkline.pipeline.teach import teacher_work
from trunkline.pipeline.trunks import with_encoder
from trunkline.training.adapt import apart
from trunkline.training.loop import Progress

ADAPT = {"epochs": 2.0, "min_steps": 20, "batch_size": 8, "learning_rate": 1e-3}


class Killed(Exception):
    pass


class KilledAt(Heard):
    """Stops the run at a step of the last stage, as a kill would."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def advance(self, position: object) -> None:
        assert isinstance(position, Progress)
        if position.step == self.step and self.stages[-1].startswith("adapt"):
            raise Killed


def with_adapt(root: Path, encoder: Path, **settings: object) -> Project:
    write_settings(root, encoder=str(encoder), adapt={**ADAPT, **settings})
    return Project.load(root)


def live_fingerprint(root: Path) -> str:
    project = Project.load(root)
    return read_manifest(project.releases.folder(project.released())).trunk.fingerprint


def test_an_adapted_trunk_is_an_encoder_that_any_project_can_name(fresh: Path, encoder: Path) -> None:
    project = with_adapt(fresh, encoder)
    heard = Heard()
    trunk = project.trunks.adapt("v2", show=heard)
    assert heard.stages == ["intent/prepare", "slots/prepare", "urgency/prepare", "adapt v2"]
    assert set(trunk.valid) == set(trunk.tasks) == {"intent", "slots", "urgency"}
    assert project.trunks.all() == [trunk]
    found = resolve("trunks/v2", None, fresh)
    assert all(len(name) > 20 for name in trunk.data.values())
    assert found.fingerprint == trunk.fingerprint != project.source.fingerprint == trunk.base_fingerprint
    before, after = Encoder.load(encoder).state_dict(), Encoder.load(found.path).state_dict()
    assert all(torch.isfinite(after[name]).all() for name in before)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("layer.0" in name for name in moved)
    assert resolve(str(encoder), None, fresh).fingerprint == trunk.base_fingerprint  # its files were left alone


def test_a_killed_adaptation_ends_with_the_very_trunk_of_one_that_was_not(fresh: Path, encoder: Path) -> None:
    project = with_adapt(fresh, encoder)
    whole = project.trunks.adapt("whole")
    other = with_adapt(fresh, encoder, learning_rate=2e-3)
    with pytest.raises(Killed):
        other.trunks.adapt("again", show=KilledAt(10))
    assert [trunk.name for trunk in other.trunks.all()] == ["whole"]
    again = other.trunks.adapt("again")
    (fresh / "trunks" / "whole" / "trunk.json").unlink()
    unkilled = with_adapt(fresh, encoder, learning_rate=2e-3, patience=4).trunks.adapt("unkilled")
    assert again.fingerprint == unkilled.fingerprint != whole.fingerprint


def test_what_was_trained_when_a_trunk_could_not_be_written_is_not_trained_again(
    fresh: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = with_adapt(fresh, encoder)

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trunkline.pipeline.trunks.publish_folder", full)
        with pytest.raises(OSError, match="No space"):
            project.trunks.adapt("v2")
    assert project.trunks.all() == []
    assert project.trunks.adapt("v2", show=KilledAt(10)).name == "v2"


def test_tasks_can_be_left_out_and_taught_and_read_at_several_depths(fresh: Path, encoder: Path) -> None:
    project = with_adapt(fresh, encoder, depths=[2, 3], teachers="full", sampling=2.0)
    heard = Heard()
    trunk = project.trunks.adapt("v2", without=["slots"], show=heard)
    assert trunk.tasks == ("intent", "urgency")
    assert heard.stages == [
        "slots/prepare",
        "intent/prepare",
        "intent/full/single/s13",
        "urgency/prepare",
        "urgency/full/single/s13",
        "adapt v2",
    ]
    assert trunk.settings["depths"] == [2, 3]


def test_moving_releases_every_task_on_the_new_trunk_or_none(done: Path, encoder: Path) -> None:
    project = with_adapt(done, encoder)
    project.run()
    trunk = project.trunks.adapt("v2")
    text, live = (done / "project.toml").read_text(), project.released()
    seen: list[Change] = []

    def refuse(changes: Sequence[Change]) -> bool:
        seen.extend(changes)
        return False

    assert Project.load(done).trunks.use("v2", refuse) is None
    assert [change.task for change in seen] == ["intent", "slots", "urgency"]
    assert all(change.before is not None for change in seen)
    assert (done / "project.toml").read_text() == text
    assert project.releases.live() == live

    heard = Heard()
    result = Project.load(done).trunks.use("v2", lambda _: True, show=heard)
    assert heard.stages == []  # all of it was trained before the question
    assert result is not None
    assert result.release is not None
    assert set(result.release.tasks) == {"intent", "slots", "urgency"}
    assert live_fingerprint(done) == trunk.fingerprint
    assert tomllib.loads((done / "project.toml").read_text()) == {**tomllib.loads(text), "encoder": "trunks/v2"}
    assert not Project.load(done).plan().merges


def test_a_light_trunk_starts_from_copies_of_the_layers_that_it_is_to_have(fresh: Path, encoder: Path) -> None:
    project = with_adapt(fresh, encoder, layers=[1, 3], teachers="full", learning_rate=1e-9)
    trunk = project.trunks.adapt("light")
    assert (trunk.settings["layers"], trunk.settings["depths"]) == ([1, 3], [2])
    light, whole = Encoder.load(fresh / "trunks" / "light"), Encoder.load(encoder)
    for ours, theirs in zip(light.layers, (whole.layers[0], whole.layers[2]), strict=True):
        for name, tensor in theirs.state_dict().items():
            assert torch.allclose(ours.state_dict()[name], tensor, atol=1e-5), name
    assert [(one.name, depth_of(fresh, one)) for one in project.trunks.all()] == [("light", 2)]


def test_a_project_moves_to_a_light_trunk_and_the_models_before_teach_on(done: Path, encoder: Path) -> None:
    project = with_adapt(done, encoder, layers=[1, 3], teachers="full")
    project.run()
    project.trunks.adapt("light")
    full = {stage.task: project.graph.keys[stage.id] for task in project.tasks for stage in project.graph.full(task)}
    result = Project.load(done).trunks.use("light", lambda _: True)
    assert result is not None
    assert result.report["encoder"]["depth"] == 2
    for task in project.tasks:
        write_task(done, task, **SORTS[task], distill={"teachers": ["self", f"full:{encoder}"]})
    moved = Project.load(done)
    heavy = [stage for stage in moved.graph.stages.values() if stage.trunk is not None]
    assert [stage.id for stage in heavy] == [f"{task}/full:{encoder.name}/single/s13" for task in moved.tasks]
    assert {stage.task: moved.graph.keys[stage.id] for stage in heavy} == full  # so none of them is trained again
    heard = Heard()
    report = moved.run(show=heard).report
    assert all("/distill/" in name for name in heard.stages)
    for task in moved.tasks:
        students = [one for one in report["tasks"][task]["candidates"] if one["stage"] == "distill"]
        assert {one["teacher"] for one in students} == {f"full:{encoder.name}+self"}
    assert Project.load(done).plan().steps == []


def test_a_model_of_another_trunk_that_is_not_there_is_trained(fresh: Path, encoder: Path, tmp_path: Path) -> None:
    """Whatever its tokenizer, width and depth: it only teaches."""
    tiny_encoder(tmp_path / "other", "electra", layers=2, width=16)
    write_task(fresh, "intent", **SORTS["intent"], distill={"teachers": ["full:../other", "full:light@14"]})
    shutil.copytree(encoder, fresh / "trunks" / "light")  # the very trunk of the project, by another name
    with pytest.raises(ProjectError, match="nothing is trained with this seed"):
        _ = Project.load(fresh).graph
    write_settings(fresh, encoder=str(encoder), search={"seeds": 2})
    project = Project.load(fresh)
    student = "intent/distill/single/L1-l1/teacher/full:light@14+full:other/s13"
    needs = ("intent/tune/single/L1/s13", "intent/full:other/single/s13", "intent/full/single/s14")
    assert set(project.graph.stages[student].needs) == set(needs)
    workshop = project.train([student])
    other = "intent/full:other/single/s13"
    assert workshop.taught(other).shape == workshop.taught("intent/full/single/s14").shape
    work = teacher_work(project, "intent", "full:other", threads=1, show=Heard())  # and it may label shards
    assert work.content == f"stage {project.graph.keys[other]}"
    assert work.model.fingerprint == resolve("../other", None, fresh).fingerprint


def test_a_trunk_that_is_not_there_teaches_nothing(fresh: Path) -> None:
    write_task(fresh, "intent", **SORTS["intent"], distill={"teachers": ["full:../none"]})
    with pytest.raises(
        ProjectError, match=r"tasks/intent\.toml: distill\.teachers: encoder '\.\./none': no such folder"
    ):
        Project.load(fresh).check()


def test_a_light_trunk_that_has_fewer_layers_than_are_tuned_is_not_moved_to(done: Path, encoder: Path) -> None:
    project = with_adapt(done, encoder, layers=[2])
    project.trunks.adapt("light")
    with pytest.raises(ProjectError, match=r"tune\.layers: more layers than the encoder has"):
        Project.load(done).trunks.use("light", lambda _: True)
    assert "light" not in (done / "project.toml").read_text()


@pytest.mark.parametrize(("layers", "said"), [([], "empty"), ([3, 1], "not in rising order"), ([0], "out of range")])
def test_layers_of_a_light_trunk_that_are_none_are_said(
    fresh: Path, encoder: Path, layers: list[int], said: str
) -> None:
    with pytest.raises(ProjectError, match=rf"adapt\.layers: {said}"):
        with_adapt(fresh, encoder, layers=layers)


@pytest.mark.parametrize(
    ("settings", "name", "without", "said"),
    [
        ({"tasks": ["intent", "intents"]}, "v2", [], "adapt.tasks"),
        ({"depths": [2, 9]}, "v2", [], "adapt.depths"),
        ({"layers": [1, 4]}, "v2", [], "adapt.layers: no such layer of the encoder"),
        ({"layers": [1, 3], "depths": 3}, "v2", [], "adapt.depths: deeper than the light trunk"),
        ({}, "v 2", [], "cannot name a trunk"),
        ({}, "minilm", [], "cannot name a trunk"),
        ({}, "v2", ["intents"], "intents"),
        ({}, "v2", ["intent", "slots", "urgency"], "no task is left"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(
    fresh: Path, encoder: Path, settings: dict[str, object], name: str, without: list[str], said: str
) -> None:
    project = with_adapt(fresh, encoder, **settings)
    with pytest.raises((ProjectError, UsageError), match=said):
        project.trunks.adapt(name, without=without)
    assert not (fresh / "trunks").exists()


def test_a_trunk_is_never_overwritten(fresh: Path, encoder: Path) -> None:
    project = with_adapt(fresh, encoder)
    first = project.trunks.adapt("v2")
    with pytest.raises(UsageError, match="exists already"):
        with_adapt(fresh, encoder, learning_rate=2e-3).trunks.adapt("v2")
    assert project.trunks.all() == [first]


def test_no_task_is_trained_on_texts_that_another_is_judged_on(fresh: Path, encoder: Path) -> None:
    """Two tasks over the same file cut it each in its own way."""
    write_task(fresh, "twin", **SORTS["intent"], data={"train": "data/intent.jsonl", "seed": 99})
    project = with_adapt(fresh, encoder, tasks=["intent", "twin"])
    heard = Heard()
    project.trunks.adapt("v2", show=heard)
    assert any(said.startswith("twin: ") and "left out" in said for said in heard.said)
    workshop = project.train(["intent/prepare", "twin/prepare"])
    data = {task: workshop.data(task) for task in ("intent", "twin")}
    judged = set(chain.from_iterable(one.fit.take(one.valid).keys() for one in data.values()))
    for task, rows in apart(data, list(data)).items():
        assert len(rows)
        assert not judged & set(data[task].fit.take(rows).keys())


def test_nor_on_texts_that_a_task_which_was_left_out_is_judged_on(fresh: Path, encoder: Path) -> None:
    write_task(fresh, "twin", **SORTS["intent"], data={"train": "data/intent.jsonl", "seed": 99})
    heard = Heard()
    with_adapt(fresh, encoder, tasks=["intent", "twin"]).trunks.adapt("v2", without=["twin"], show=heard)
    assert any(said.startswith("intent: ") and "left out" in said for said in heard.said)


def test_an_adaptation_may_predict_masked_words_of_texts_without_labels(fresh: Path, encoder: Path) -> None:
    (fresh / "texts.jsonl").write_text('{"text": "play the next song"}\n{"text": "will it rain tomorrow"}\n')
    plain = with_adapt(fresh, encoder).trunks.adapt("plain")
    masked = with_adapt(fresh, encoder, masked=0.5).trunks.adapt("masked")
    more = with_adapt(fresh, encoder, masked=0.5, unlabelled=["texts.jsonl"])
    with pytest.raises(Killed):
        more.trunks.adapt("more", show=KilledAt(10))
    trunk = more.trunks.adapt("more")
    other = with_adapt(fresh, encoder, masked=0.5, unlabelled=["texts.jsonl"], patience=4).trunks.adapt("again")
    assert trunk.fingerprint == other.fingerprint  # killed or not
    assert len({one.fingerprint for one in (plain, masked, trunk)}) == 3


def test_unlabelled_texts_that_a_task_is_judged_on_are_left_out(fresh: Path, encoder: Path) -> None:
    lines = (fresh / "data" / "intent-test.jsonl").read_text() + '{"text": "play the next song"}\n'
    (fresh / "texts.jsonl").write_text(lines)
    heard = Heard()
    project = with_adapt(fresh, encoder, masked=0.5, unlabelled=["texts.jsonl"])
    project.trunks.adapt("v2", show=heard)
    assert any("unlabelled texts left out" in said for said in heard.said)


@pytest.mark.parametrize("missing", [False, True])
def test_a_task_that_is_left_out_may_have_data_that_cannot_be_read(fresh: Path, encoder: Path, missing: bool) -> None:
    path = fresh / "data" / "slots.jsonl"
    if missing:
        path.unlink()
    else:
        path.write_text(path.read_text() + "broken\n")
    heard = Heard()
    trunk = with_adapt(fresh, encoder).trunks.adapt("v2", without=["slots"], show=heard)
    assert trunk.tasks == ("intent", "urgency")
    assert any(said.startswith("slots: its data cannot be read") for said in heard.said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"unlabelled": ["texts.jsonl"]}, "nothing reads adapt.unlabelled"),
        ({"masked": 0.1, "unlabelled": ["hub:a/b#train"]}, "not a file"),
    ],
)
def test_unlabelled_texts_that_nothing_reads_are_refused(
    fresh: Path, encoder: Path, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ProjectError, match=said):
        with_adapt(fresh, encoder, **settings).trunks.adapt("v2")


def test_texts_that_cannot_be_read_are_said_before_anything_is_trained(fresh: Path, encoder: Path) -> None:
    (fresh / "texts.jsonl").write_text('{"text": "play"}\n{"txt": "rain"}\n')
    project = with_adapt(fresh, encoder, masked=0.1, unlabelled=["texts.jsonl", "none.jsonl"])
    with pytest.raises(ProjectError) as caught:
        project.trunks.adapt("v2")
    said = str(caught.value)
    assert "texts.jsonl: line 2: no text" in said
    assert "project.toml: adapt.unlabelled: no such file" in said
    assert not (fresh / "trunks").exists()


def test_a_release_that_fails_leaves_the_project_as_it_was(
    done: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = with_adapt(done, encoder)
    project.run()
    project.trunks.adapt("v2")
    text, live = (done / "project.toml").read_bytes(), project.released()

    def broken(*_: object, **__: object) -> None:
        raise BundleError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("trunkline.bundle.merge.merge", broken)
        with pytest.raises(BundleError, match="no room"):
            Project.load(done).trunks.use("v2", lambda _: True)
    assert (done / "project.toml").read_bytes() == text
    assert project.releases.live() == live
    assert not Project.load(done).plan().merges


def test_project_toml_names_the_trunk_no_sooner_than_the_release_is_ready(
    done: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What kills a process for good leaves nobody to put project.toml back."""
    project = with_adapt(done, encoder)
    project.run()
    project.trunks.adapt("v2")
    text, seen = (done / "project.toml").read_bytes(), list[bytes]()

    def merged(*given: Any, **named: Any) -> Path:
        bundle = merge(*given, **named)
        seen.append((done / "project.toml").read_bytes())
        return bundle

    monkeypatch.setattr("trunkline.bundle.merge.merge", merged)
    assert Project.load(done).trunks.use("v2", lambda _: True) is not None
    assert seen == [text] != [(done / "project.toml").read_bytes()]


def test_a_move_that_stops_after_the_release_is_a_move(
    done: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = with_adapt(done, encoder)
    project.run()
    trunk = project.trunks.adapt("v2")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trunkline.pipeline.results.make_report", killed)
        with pytest.raises(KeyboardInterrupt):
            Project.load(done).trunks.use("v2", lambda _: True)
    assert live_fingerprint(done) == trunk.fingerprint == Project.load(done).source.fingerprint
    release = project.releases.live()
    assert Project.load(done).run().release == release  # the report alone was missing


def test_a_move_shows_a_task_that_would_leave_the_release(done: Path, encoder: Path) -> None:
    project = with_adapt(done, encoder)
    project.run()
    project.trunks.adapt("v2")
    (done / "tasks" / "slots.toml").unlink()
    seen: list[Change] = []
    Project.load(done).trunks.use("v2", lambda changes: bool(seen.extend(changes)))
    assert [change.task for change in seen] == ["intent", "urgency", "slots"]
    assert [change.after is None for change in seen] == [False, False, True]


def test_edits_made_while_tasks_were_trained_are_never_lost(done: Path, encoder: Path) -> None:
    project = with_adapt(done, encoder)
    project.run()
    project.trunks.adapt("v2")
    path = done / "project.toml"

    def edited(text: str) -> bool:
        path.write_text(path.read_text() + text)
        return True

    with pytest.raises(UsageError, match="changed while"):
        Project.load(done).trunks.use("v2", lambda _: edited("\n[budget]\nmax_cost = 0.9\n"))
    assert "max_cost" in path.read_text()
    assert Project.load(done).trunks.use("v2", lambda _: edited("\n# ours\n")) is not None
    assert "# ours" in path.read_text()
    assert 'encoder = "trunks/v2"' in path.read_text()


def test_a_project_finds_back_to_any_encoder(done: Path, encoder: Path) -> None:
    project = with_adapt(done, encoder)
    project.run()
    before = live_fingerprint(done)
    project.trunks.adapt("v2")
    Project.load(done).trunks.use("v2", lambda _: True)
    assert Project.load(done).trunks.use(str(encoder), lambda _: True) is not None
    assert live_fingerprint(done) == before


def test_a_trunk_whose_files_are_not_what_was_adapted_is_refused(done: Path, encoder: Path) -> None:
    project = with_adapt(done, encoder)
    project.trunks.adapt("v2")
    other = Encoder.load(done / "trunks" / "v2")
    next(iter(other.parameters())).data.add_(1)
    other.save(done / "trunks" / "v2")
    for name in ("v2", "trunks/v2", "./trunks/v2", str((done / "trunks" / "v2").resolve())):
        with pytest.raises(EncoderError, match="not what was adapted"):
            Project.load(done).trunks.use(name, lambda _: True)
    shutil.rmtree(done / "trunks")
    with pytest.raises(EncoderError, match="no such folder"):  # and the hub is not asked
        resolve("trunks/v2", None, done)


def test_gc_leaves_what_a_killed_adaptation_needs_to_go_on(done: Path, encoder: Path) -> None:
    project = with_adapt(done, encoder)
    with pytest.raises(Killed):
        project.trunks.adapt("v2", show=KilledAt(10))
    assert "checkpoint" not in {item.what for item in Project.load(done).gc()}
    project.trunks.adapt("v2")
    assert not project.store.work.exists() or not any(project.store.work.iterdir())


@pytest.mark.parametrize("name", ["type", "values", "half"])
def test_a_task_may_have_any_name(tmp_path: Path, encoder: Path, name: str) -> None:
    write_project(tmp_path / "p", {name: SORTS["intent"]}, encoder=encoder)
    assert set(with_adapt(tmp_path / "p", encoder).trunks.adapt("v2").valid) == {name}


def test_an_adaptation_that_diverges_says_what_to_lower(fresh: Path, encoder: Path) -> None:
    broken = Encoder.load(encoder)
    next(iter(broken.parameters())).data.fill_(float("nan"))
    broken.save(fresh / "broken")
    with pytest.raises(TrunklineError, match=r"lower adapt.learning_rate"):
        with_adapt(fresh, fresh / "broken").trunks.adapt("v2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('encoder = "minilm"  # ours\nseed = 1\n', 'encoder = "trunks/v2"  # ours\nseed = 1\n'),
        ("seed = 1\n[budget]\nmax_cost = 0.5\n", 'encoder = "trunks/v2"\nseed = 1\n[budget]\nmax_cost = 0.5\n'),
        ("encoder = 'a/b'\nrevision = 'main'\n", 'encoder = "trunks/v2"\n'),
        ("", 'encoder = "trunks/v2"\n'),
        ("\ufeff  encoder = 'x'\r\nseed = 1\r\n", '\ufeffencoder = "trunks/v2"\r\nseed = 1\r\n'),
        ("seed = 1\r\n[adapt]\r\n", 'encoder = "trunks/v2"\r\nseed = 1\r\n[adapt]\r\n'),
    ],
)
def test_the_rest_of_project_toml_stays_as_it_was_written(text: str, expected: str) -> None:
    assert with_encoder(text.encode(), "trunks/v2").decode() == expected


def test_an_encoder_of_the_hub_comes_with_its_revision() -> None:
    assert with_encoder(b'encoder = "trunks/v2"\n', "a/b", "main") == b'encoder = "a/b"\nrevision = "main"\n'


@pytest.mark.parametrize("text", ['"encoder" = "minilm"\n', 'name = """\nencoder = "x"\n"""\n'])
def test_a_file_that_is_hard_to_edit_is_left_to_its_owner(text: str) -> None:
    with pytest.raises(UsageError, match="encoder"):
        with_encoder(text.encode(), "trunks/v2")


def test_folders_that_are_no_adapted_trunks_are_left_out(fresh: Path, encoder: Path) -> None:
    (fresh / "trunks" / "notes").mkdir(parents=True)
    (fresh / "trunks" / "broken").mkdir()
    (fresh / "trunks" / "broken" / "trunk.json").write_text(json.dumps({"tasks": 3}))
    project = with_adapt(fresh, encoder)
    assert project.trunks.all() == []
    project.trunks.adapt("v2")
    shutil.copytree(fresh / "trunks" / "v2", fresh / "trunks" / ".staging-1-v2")  # what a kill leaves
    assert [trunk.name for trunk in project.trunks.all()] == ["v2"]

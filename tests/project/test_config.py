"""Project files: defaults, shorthands, and what reading them costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from project.hostile import CLASSIFICATION, good_project
from pydantic import ValidationError

from trunkline.project.config import ColumnSettings, DataSettings, ProjectSettings, TaskSettings, load_files
from trunkline.project.explain import describe
from trunkline.project.stage_settings import DistillSettings, ExitSettings, Settings
from trunkline.project.tasks import DEFAULT_METRIC, METRICS, Kind


def task(**keys: object) -> TaskSettings:
    return TaskSettings.model_validate({"kind": "classification", "data": {"train": "rows.jsonl"}, **keys})


def test_a_project_is_named_after_its_folder(tmp_path: Path) -> None:
    good_project(tmp_path / "shop")
    (tmp_path / "shop" / "project.toml").write_text("", encoding="utf-8")
    assert load_files(tmp_path / "shop").settings.name == "shop"


def test_defaults_are_those_of_the_design(tmp_path: Path) -> None:
    good_project(tmp_path)
    files = load_files(tmp_path)
    settings, tone = files.settings, files.tasks["tone"]
    assert (settings.encoder, settings.seed, settings.device, settings.precision) == ("minilm", 13, "auto", "auto")
    assert (settings.budget.min_relative_quality, settings.budget.max_cost) == (0.996, None)
    assert (tone.tune.layers, tone.distill.layers) == ([2, 3], [1, 2])
    assert (tone.distill.teachers, tone.distill.init, tone.distill.temperature) == (["self"], ["teacher"], [2.0])
    assert tone.tune.min_steps == 300
    assert (tone.exits.enabled, tone.exits.forms, tone.exits.depths) == (False, ["attention", "linear"], [])
    assert tone.exits.learning_rate == 10 * tone.tune.learning_rate  # as FastBERT's
    assert tone.pair is None


def test_tasks_come_sorted_by_name_and_other_files_are_left_alone(tmp_path: Path) -> None:
    good_project(tmp_path)
    for name in ("a2.toml", "z_1.toml", ".hidden.toml", "README.md", "tone.toml~"):
        (tmp_path / "tasks" / name).write_text(CLASSIFICATION, encoding="utf-8")
    assert list(load_files(tmp_path).tasks) == ["a2", "other", "tone", "z_1"]


def test_files_with_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    good_project(tmp_path)
    text = CLASSIFICATION + "tune.layers = [1]\n"
    (tmp_path / "tasks" / "tone.toml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_files(tmp_path).tasks["tone"].tune.layers == [1]


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_a_metric_by_default(kind: Kind) -> None:
    assert task(kind=kind.value).primary_metric == DEFAULT_METRIC[kind]
    assert task(kind=kind.value, metric=METRICS[kind][-1]).primary_metric == METRICS[kind][-1]


def test_what_is_searched_may_be_given_as_one_value() -> None:
    given = task(pair="separate", tune={"layers": 2}, distill={"layers": 1, "teachers": "full", "init": "trunk"})
    assert given.pair == ["separate"]
    assert given.tune.layers == [2]
    assert (given.distill.layers, given.distill.teachers, given.distill.init) == ([1], ["full"], ["trunk"])
    exits = task(exits={"forms": "linear", "depths": 2, "rule": "patience"}).exits
    assert (exits.forms, exits.depths, exits.rule.value) == (["linear"], [2], "patience")


def test_an_empty_list_of_student_layers_means_no_students() -> None:
    assert DistillSettings.model_validate({"layers": []}).layers == []


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        task().max_tokens = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    "model", [ProjectSettings, TaskSettings, DataSettings, ColumnSettings, DistillSettings, ExitSettings]
)
def test_every_key_says_what_it_is_for_and_what_it_accepts(model: type[Settings]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, name
        assert "typing" not in describe(field), name
        assert "<class" not in describe(field), name


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys, trunkline.project, trunkline.project.data, trunkline.project.metrics, trunkline.project.tasks\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'seqeval', 'pyarrow', 'pandas', 'datasets'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Broken projects: one clear message for one fault, and all messages for many."""

from __future__ import annotations

from pathlib import Path

import pytest
from project.hostile import CLASSIFICATION, HOSTILE, good_project, good_rows, write_jsonl
from projects import read_project

from trunkline.errors import ProjectError
from trunkline.project.config import load_files


def problems_of(root: Path) -> ProjectError:
    with pytest.raises(ProjectError) as caught:
        read_project(root)
    return caught.value


def test_the_project_that_all_cases_start_from_is_right(tmp_path: Path) -> None:
    good_project(tmp_path)
    files, data = read_project(tmp_path)
    assert list(files.tasks) == list(data) == ["other", "tone"]


@pytest.mark.parametrize("name", HOSTILE)
def test_each_fault_gives_one_message_that_names_place_finding_and_what_is_allowed(name: str, tmp_path: Path) -> None:
    case = HOSTILE[name]
    case.write(tmp_path)
    error = problems_of(tmp_path)
    assert len(error.problems) == 1, str(error)
    assert error.exit_code == 2
    problem = error.problems[0]
    assert problem.file
    assert problem.found
    assert problem.allowed
    for said in case.says:
        assert said in str(error)
    assert str(tmp_path) not in problem.file


@pytest.mark.parametrize("name", [name for name, case in HOSTILE.items() if not case.in_data])
def test_faults_of_project_files_are_found_without_reading_data(name: str, tmp_path: Path) -> None:
    HOSTILE[name].write(tmp_path)
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    with pytest.raises(ProjectError) as caught:
        load_files(tmp_path)
    assert len(caught.value.problems) == 1


def test_all_problems_of_all_files_are_reported_together(tmp_path: Path) -> None:
    good_project(tmp_path)
    (tmp_path / "project.toml").write_text('seed = "x"\nencodr = "minilm"\nbudget.max_cost = 7\n', encoding="utf-8")
    tasks = tmp_path / "tasks"
    (tasks / "a.toml").write_text('kind = "sentiment"\ntune.layers = [0]\ntune.lr = 1\n', encoding="utf-8")
    (tasks / "b.toml").write_text("kind =\n", encoding="utf-8")
    (tasks / "C.toml").write_text(CLASSIFICATION, encoding="utf-8")
    (tasks / "d.toml").write_text(CLASSIFICATION.replace("rows", "gone"), encoding="utf-8")
    rows = good_rows()
    rows[2]["text"], rows[5]["label"], rows[7]["text"] = "", [], " "
    write_jsonl(tmp_path / "data" / "rows.jsonl", rows)
    found = {(problem.file, problem.where) for problem in problems_of(tmp_path).problems}
    assert found == {
        ("project.toml", "seed"),
        ("project.toml", "encodr"),
        ("project.toml", "budget.max_cost"),
        ("tasks/a.toml", "kind"),
        ("tasks/a.toml", "data.train"),
        ("tasks/a.toml", "tune.layers"),
        ("tasks/a.toml", "tune.lr"),
        ("tasks/b.toml", "line 1, column 7"),
        ("tasks/C.toml", "file name"),
        ("tasks/d.toml", "data.train"),
        ("data/rows.jsonl", "lines 3, 8"),
        ("data/rows.jsonl", "line 6"),
    }


def test_a_wrong_key_hides_neither_the_rules_between_other_keys_nor_the_data(tmp_path: Path) -> None:
    task = CLASSIFICATION + "max_tokens = -1\ntune.layers = [2]\ndistill.layers = [3]\n"
    good_project(tmp_path, task, [*good_rows(), {"text": "", "label": "good"}])
    found = [(problem.file, problem.where) for problem in problems_of(tmp_path).problems]
    assert found == [
        ("tasks/tone.toml", "max_tokens"),
        ("tasks/tone.toml", "distill.layers"),
        ("data/rows.jsonl", "line 41"),
    ]


def test_a_rule_stays_silent_where_one_of_its_keys_is_wrong_itself(tmp_path: Path) -> None:
    good_project(tmp_path, CLASSIFICATION + "tune.layers = [0]\ndistill.layers = [5]\n")
    assert [problem.where for problem in problems_of(tmp_path).problems] == ["tune.layers"]


def test_all_splits_of_a_task_are_checked_at_once(tmp_path: Path) -> None:
    good_project(tmp_path, CLASSIFICATION + 'data.valid = "data/v.jsonl"\ndata.test = "data/t.jsonl"\n')
    write_jsonl(tmp_path / "data" / "v.jsonl", [{"text": "x", "label": "odd"}, {"text": "y", "label": "good"}])
    (tmp_path / "data" / "t.jsonl").write_text("{\n", encoding="utf-8")
    found = {(problem.file, problem.where) for problem in problems_of(tmp_path).problems}
    assert found == {("data/v.jsonl", "line 1"), ("data/t.jsonl", "line 1")}


def test_a_broken_file_that_two_tasks_share_is_reported_once(tmp_path: Path) -> None:
    good_project(tmp_path)
    (tmp_path / "tasks" / "twin.toml").write_text(CLASSIFICATION, encoding="utf-8")
    (tmp_path / "data" / "rows.jsonl").write_text("nothing\n", encoding="utf-8")
    assert len(problems_of(tmp_path).problems) == 1

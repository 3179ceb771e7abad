"""The report in the terminal, read back as plain text."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from trunkline.report import print_report


def printed(report: dict[str, Any], width: int = 120) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_terminal_states_headline_budget_and_measurement(make_report: Any) -> None:
    text = " ".join(printed(make_report(5)).split())
    assert "5 tasks in one pass: " in text
    assert "Budget met: " in text
    assert "batch 32 × 32 tokens, torch, float32; Intel Xeon Platinum 8481C, 2 cores, torch 2.9.1; seeds 13" in text


def test_every_task_is_a_row_with_quality_branch_and_time(make_report: Any) -> None:
    report = make_report(40, depth=12)
    lines = printed(report).splitlines()
    for name, data in report["tasks"].items():
        (row,) = [line for line in lines if line.strip().startswith(f"{name} ")]
        chosen = data["chosen"]
        assert f"{chosen['fork']} + {chosen['layers']}" in row
        assert f"{chosen['metrics'][data['metric']]:.3f}" in row
        assert f"{data['baseline']['metrics'][data['metric']]:.3f}" in row
        assert chosen["reading"] in row


def test_a_narrow_terminal_cuts_words_before_figures(make_report: Any) -> None:
    report = make_report(5, depth=12)
    wide, narrow = ([line.split() for line in printed(report, width).splitlines()] for width in (120, 66))
    for name in report["tasks"]:
        (whole,) = [row for row in wide if row and row[0] == name]
        (row,) = [row for row in narrow if row and row[0] == name[:8]]
        figures = [[*one[2:-2], one[-1]] for one in (whole, row)]  # but for the metric and the reading
        assert figures[0] == figures[1]


def test_selection_shows_each_depth_and_the_papers_rule(make_report: Any) -> None:
    report = make_report(5)
    text = printed(report)
    assert text.count("chosen") == 1
    assert "paper's rule" in text
    (row,) = [line for line in text.splitlines() if "chosen" in line]
    assert row.split()[0] == str(report["merged"]["trunk_depth"])


def test_layers_and_time_stand_against_separate_models(make_report: Any) -> None:
    report = make_report(5)
    merged = report["merged"]
    (row,) = [line for line in printed(report).splitlines() if line.strip().startswith("layers ")]
    assert row.split()[:3] == ["layers", str(merged["layers_separate"]), str(merged["layers_in_graph"])]


def test_a_task_that_flags_texts_says_how_often_it_flags_what_is_in_scope(make_report: Any) -> None:
    assert "4.8\u00a0% of valid and 6.1\u00a0% of test are." in printed(make_report(1), 200)


def test_a_task_with_exits_shows_what_each_speed_keeps(make_report: Any) -> None:
    report = make_report(3)
    text = printed(report)
    assert "intent: Exits after layer 2 (linear), 4 (attention): a row leaves at the first" in text
    for found in report["tasks"]["intent"]["exits"]["speeds"][1:]:
        (row,) = [line for line in text.splitlines() if line.strip().startswith(f"{100 * found['keep']:.1f}\u00a0%")]
        assert f"{found['speed']:.4f}" in row
        assert f"{found['reported']:.3f}" in row
        assert f"{100 * found['time']:.1f}\u00a0%" in row
    assert "slots: No exit saves enough time, so there is none." in text
    assert "tone: " not in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(make_report: Any, width: int) -> None:
    assert all(len(line) <= width for line in printed(make_report(5), width).splitlines())


def test_markup_and_control_codes_in_names_and_notes_stay_text(make_report: Any) -> None:
    report = make_report(2, names=["[red]a[/red]", "b\x1b[2J"])
    report["tasks"]["[red]a[/red]"]["notes"] = ["[/nothing] [link=x]y[/link]\x07"]
    text = printed(report)
    assert "[red]a[/red]" in text
    assert "[/nothing] [link=x]y[/link]" in text
    assert "\x1b" not in text
    assert "\x07" not in text


@pytest.mark.parametrize("part", ["merged", "depths", "paper_rule", "machine", "cost", "encoder"])
def test_a_missing_part_is_left_out_without_harm(make_report: Any, part: str) -> None:
    report = make_report(3)
    del report[part]
    text = printed(report)
    assert all(name in text for name in report["tasks"])
    assert "None" not in text


def test_an_untrained_project_says_so() -> None:
    assert printed({}).strip().startswith("0 tasks trained; nothing is merged yet.")

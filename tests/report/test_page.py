"""The HTML report, read back with a parser as a browser would see it."""

from __future__ import annotations

import copy
import itertools
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from trunkline.report import render

VOID = {"meta", "br", "hr", "img", "link", "input"}
SVG_SHAPES = {"path", "circle", "rect", "line"}


class Element:
    """One element with its attributes, children and text."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Element | str] = []

    def all(self, tag: str, css: str = "") -> list[Element]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if child.tag == tag and (not css or css in (child.attributes.get("class") or "").split()):
                    found.append(child)
                found += child.all(tag, css)
        return found

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Reader(HTMLParser):
    """Builds the tree and fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(page: str) -> Element:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert [element.tag for element in reader.open] == ["root"], "every element is closed"
    return reader.root


def elements(root: Element) -> list[Element]:
    found = []
    for child in root.children:
        if isinstance(child, Element):
            found += [child, *elements(child)]
    return found


def cells(table: Element) -> list[list[str]]:
    return [[cell.text for cell in elements(row) if cell.tag in ("th", "td")] for row in table.all("tr")]


def table(root: Element, css: str) -> Element:
    (found,) = root.all("table", css)
    return found


def article(root: Element, name: str) -> Element:
    return next(one for one in root.all("article") if one.all("h3")[0].text == name)


def test_headline_states_quality_time_and_layers_against_separate_models(make_report: Any) -> None:
    report = make_report(5)
    report["merged"] |= {
        "relative_quality": 0.9961,
        "relative_time": 0.343,
        "layers_in_graph": 33,
        "layers_separate": 96,
    }
    (headline,) = parse(render(report)).all("h1")
    assert headline.text == (
        "5 tasks in one pass: 99.6\u00a0% of the quality and 34.3\u00a0% of the measured time of 5 separate full "
        "models, with 33 layers instead of 96."
    )


def test_one_task_reads_as_one_task(make_report: Any) -> None:
    page = parse(render(make_report(1)))
    assert page.all("h1")[0].text.startswith("1 task in one pass: ")
    assert "1 separate" not in page.text
    assert "1 layers" not in page.text


@pytest.mark.parametrize(
    ("budget", "met", "verdict", "stated"),
    [
        ({"min_relative_quality": 0.996}, True, "met", "Budget met: at least 99.60\u00a0% of full quality"),
        ({"min_relative_quality": 0.996}, False, "missed", "Budget missed: at least 99.60\u00a0% of full quality"),
        ({"max_cost": 0.5}, True, "met", "Budget met: at most 50.00\u00a0% of the separate models' time"),
        ({}, None, "none", "No budget was given."),
    ],
)
def test_budget_and_its_outcome_are_stated(
    make_report: Any, budget: dict[str, float], met: bool | None, verdict: str, stated: str
) -> None:
    report = make_report(3)
    report["merged"] |= {"budget": budget, "met": met}
    (sentence,) = parse(render(report)).all("p", "budget")
    assert stated in sentence.text
    assert verdict in (sentence.attributes["class"] or "")


def test_a_budget_missed_by_a_hair_does_not_read_as_met(make_report: Any) -> None:
    report = make_report(3)
    report["merged"] |= {"budget": {"min_relative_quality": 0.996}, "met": False}
    chosen = next(row for row in report["depths"] if row["depth"] == report["merged"]["trunk_depth"])
    chosen["relative_quality_valid"] = 0.99579
    (sentence,) = parse(render(report)).all("p", "budget")
    assert "99.58\u00a0%" in sentence.text


@pytest.mark.parametrize(("tasks", "depth"), [(1, 6), (5, 6), (40, 12), (64, 24)])
def test_every_task_has_its_row_its_section_and_its_branch(make_report: Any, tasks: int, depth: int) -> None:
    report = make_report(tasks, depth=depth)
    page = parse(render(report))
    names = list(report["tasks"])
    assert [link.text for link in table(page, "overview").all("a")] == names
    assert [one.all("h3")[0].text for one in page.all("article")] == names
    for form in ("wide", "narrow"):
        (drawing,) = page.all("svg", form)
        assert sorted(text.text for text in drawing.all("text", "task")) == sorted(names)


def test_links_of_the_overview_lead_to_the_tasks_sections(make_report: Any) -> None:
    page = parse(render(make_report(7)))
    sections = {f"#{one.attributes['id']}": one.all("h3")[0].text for one in page.all("article")}
    assert {link.attributes["href"]: link.text for link in page.all("a")} == sections


def test_ids_are_unique_and_every_reference_resolves(make_report: Any) -> None:
    found = elements(parse(render(make_report(12))))
    ids = [element.attributes["id"] for element in found if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for element in found:
        assert set((element.attributes.get("aria-labelledby") or "").split()) <= set(ids)


def test_latents_and_a_head_alone_are_told_from_layers_over_tokens(make_report: Any) -> None:
    report = make_report(3)
    name, data = next(iter(report["tasks"].items()))
    one, other = data["candidates"][:2]
    one |= {"latents": 4, "layers": 2, "fork": 1}
    other |= {"layers": 0, "fork": 3}
    data["chosen"] |= {"latents": 1}
    section = article(parse(render(report)), name)
    assert "fork 1 + 2 layers of 4 latents" in section.text
    assert "fork 3, a head alone" in section.text
    assert "of 1 latent" in section.text


def test_the_chosen_point_is_marked_in_chart_and_table(make_report: Any) -> None:
    report = make_report(5)
    page = parse(render(report))
    for name, data in report["tasks"].items():
        section = article(page, name)
        (mark,) = [one for shape in SVG_SHAPES for one in section.all(shape, "chosen")]
        chosen = data["chosen"]
        assert f"fork {chosen['fork']} + {chosen['layers']} layer" in mark.text
        assert mark.text.endswith("(chosen)")
        assert len(section.all("circle", "ring")) == 1
        (row,) = table(section, "candidates").all("tr", "chosen")
        assert "chosen" in row.text
        assert f"{chosen['valid']:.3f}" in row.text


def test_the_chart_shows_every_candidate_with_stage_by_shape_and_colour(make_report: Any) -> None:
    report = make_report(1)
    (data,) = report["tasks"].values()
    chart = parse(render(report)).all("article")[0].all("svg", "scatter")[0]
    stages = [one["stage"] for one in data["candidates"]]
    assert len(chart.all("circle", "tune")) == stages.count("tune")
    assert len(chart.all("path", "distill")) == stages.count("distill")
    assert len(chart.all("line", "full")) == 1
    assert f"{data['baseline']['valid']:.3f}" in chart.text


def test_candidates_can_be_folded_away_and_show_layers_beside_time(make_report: Any) -> None:
    report = make_report(2)
    for section, data in zip(parse(render(report)).all("article"), report["tasks"].values(), strict=True):
        (details,) = section.all("details")
        assert details.all("summary")[0].text == f"{len(data['candidates'])} candidates"
        head, *rows = cells(table(details, "candidates"))
        assert {"Fork", "Own layers", "Layers, alone", "Branch time", "Seed"} <= set(head)
        assert len(rows) == len(data["candidates"])


def test_reported_metrics_stand_beside_the_full_models(make_report: Any) -> None:
    report = make_report(5)
    page = parse(render(report))
    for name, data in report["tasks"].items():
        head, *rows = cells(table(article(page, name), "metrics"))
        assert head == ["Metric", "Full", "Merged", "Change"]
        assert rows[0][0] == data["metric"]
        shown = {row[0].removesuffix(" lower is better"): row[1:3] for row in rows}
        for metric, value in data["chosen"]["metrics"].items():
            assert shown[metric] == [f"{data['baseline']['metrics'][metric]:.3f}", f"{value:.3f}"]
        calibrated = "they miss its accuracy by 0.013 on average" if data["kind"] != "regression" else "Chosen: "
        assert calibrated in article(page, name).text
        trained = "fine-tuned at 0.0001" + (", pair read jointly" if data["kind"] == "relevance" else "")
        assert f"Full: {trained}." in table(article(page, name), "metrics").text


def test_exits_are_named_with_what_each_speed_comes_to(make_report: Any) -> None:
    report = make_report(3)
    page = parse(render(report))
    intent, slots, tone = (article(page, name) for name in report["tasks"])
    assert "Exits after layer 2 (linear), 4 (attention): a row leaves at the first that is sure of it." in intent.text
    head, *rows = cells(table(intent, "speeds"))
    columns = ["Speed", "On valid", "On test", "Calibration error", "Layers", "Time"]
    assert head == ["Kept on valid", *columns, "Answered after"]
    for row, found in zip(rows, report["tasks"]["intent"]["exits"]["speeds"], strict=True):
        kept = "all" if found["keep"] is None else f"{100 * found['keep']:.1f}\u00a0%"
        shares = [f"{100 * found[key]:.1f}\u00a0%" for key in ("layers", "time")]
        *figures, left = row
        said = [f"{found[key]:.3f}" for key in ("valid", "reported", "calibration")]
        assert figures == [kept, f"{found['speed']:.4f}", *said, *shares]
        places = zip(("2", "4", "head"), found["left"], strict=True)
        assert left == ", ".join(f"{place}: {100 * part:.0f}\u00a0%" for place, part in places if part)
    bars = [
        [float(part.attributes["width"]) / 120 for part in bar.all("rect", "part")]
        for bar in intent.all("svg", "shares")
    ]
    for bar, found in zip(bars, report["tasks"]["intent"]["exits"]["speeds"], strict=True):
        assert bar == pytest.approx(found["left"], abs=0.001)
    marks = [point.text for point in intent.all("circle", "point") if point.text.startswith("speed ")]
    assert sum("on test in" in mark for mark in marks) == len(rows)
    candidates = report["tasks"]["intent"]["candidates"]
    chosen = next(one["ms_alone"] for one in candidates if one["chosen"])
    beside = [
        point.text for tag in ("circle", "path") for point in intent.all(tag, "point") if "no exits" in point.text
    ]
    assert len(beside) == sum(one["ms_alone"] < chosen for one in candidates) > 0
    assert "No exit saves enough time" in slots.text
    assert not slots.all("table", "speeds")
    assert "exit" not in tone.text


def taught() -> dict[str, Any]:
    """Three teachers, one of which nobody measured, and students of all, of all but each, and of none."""

    def students(*by: str, change: float | None) -> dict[str, Any]:
        moved = None if change is None else {"mean": change, "spread": 0.002, "settings": 2}
        figures = {"valid": 0.9 + (change or 0.0), "reported": 0.89, "ms": 10.0}
        return {
            "teachers": list(by),
            "fork": 4,
            "layers": 1,
            "latents": 0,
            "reading": "single",
            **figures,
            "change": moved,
        }

    names = ("<full>", "path:big", "self")
    return {
        "all": list(names),
        "teachers": [
            {"teacher": name, "valid": 0.91, "reported": None if name == "path:big" else 0.9, "ms": ms}
            for name, ms in zip(names, (24.0, None, 16.0), strict=True)
        ],
        "ensemble": {"valid": 0.925, "reported": 0.915},
        "students": [
            students(*names, change=None),
            students("<full>", "self", change=-0.03),
            students("path:big", "self", change=0.001),
            students("self", change=-0.04),
            students(change=-0.05),
        ],
    }


def test_teachers_stand_beside_their_students_with_what_it_costs_to_leave_one_out(make_report: Any) -> None:
    report = make_report(2)
    report["tasks"]["intent"]["teaching"] = taught()
    page = parse(render(report))
    intent, other = (article(page, name) for name in report["tasks"])
    assert (
        "What it changes on valid to leave a teacher out (mean and standard deviation over seeds): "
        "path:big −0.030 ± 0.002, <full> +0.001 ± 0.002."
    ) in intent.text
    rows = {row[0]: row[1:] for row in cells(table(intent, "teachers"))[1:]}
    assert rows["<full>"] == ["", "0.910", "0.900", "24.0\u00a0ms", "1,333", ""]
    assert rows["path:big"] == ["", "0.910", "–", "–", "–", ""]
    assert rows["all teachers together"][1] == "0.925"
    assert rows["student of all"] == ["4 + 1", "0.900", "0.890", "10.0\u00a0ms", "3,200", ""]
    assert rows["student of all but path:big"][-1] == "−0.030 ± 0.002"
    assert {"student of self alone", "student of labels alone", "student of all but <full>"} <= rows.keys()
    (chart,) = [
        one for one in intent.all("svg", "scatter") if one.attributes["aria-labelledby"].startswith("teachers-")
    ]
    marks = [mark for tag in SVG_SHAPES for mark in chart.all(tag, "point")]
    assert len(marks) == 2 + 5  # a teacher that nobody measured is a line
    assert {"path:big", "together"} <= {note.text for note in chart.all("text", "note")}
    assert not other.all("table", "teachers")


def test_teachers_that_are_all_measured_take_together_what_they_take_one_by_one(make_report: Any) -> None:
    report = make_report(1)
    report["tasks"]["intent"]["teaching"] = teaching = taught()
    teaching["teachers"][1]["ms"] = 40.0
    page = parse(render(report))
    rows = {row[0]: row[1:] for row in cells(table(article(page, "intent"), "teachers"))[1:]}
    assert rows["all teachers together"] == ["", "0.925", "0.915", "80.0\u00a0ms", "400", ""]


def test_teachers_of_which_little_is_known_do_no_harm(make_report: Any) -> None:
    report = make_report(1)
    report["tasks"]["intent"]["teaching"] = {"teachers": [{"teacher": "file:x"}, {}], "students": [{}], "all": None}
    page = parse(render(report))
    assert len(cells(table(page, "teachers"))) == 1 + 2 + 1 + 1


def test_a_task_that_flags_texts_says_how_often_it_flags_what_is_in_scope(make_report: Any) -> None:
    report = make_report(3)
    page = parse(render(report))
    intent, *others = (article(page, name) for name in report["tasks"])
    said = "5.0\u00a0% of those in scope may be: 4.8\u00a0% of valid and 6.1\u00a0% of test are."
    assert said in intent.text
    assert not any("out of scope" in other.text for other in others)


def test_each_branch_leaves_the_trunk_at_its_fork_with_its_own_layers(make_report: Any) -> None:
    report = make_report(8, depth=12)
    (drawing,) = parse(render(report)).all("svg", "wide")
    assert len(drawing.all("rect", "trunk")) == report["merged"]["trunk_depth"]
    assert len(drawing.all("rect", "ghost")) == 12 - report["merged"]["trunk_depth"]
    columns = [
        float(rect.attributes["x"] or "") for css in ("embed", "trunk", "ghost") for rect in drawing.all("rect", css)
    ]
    limbs = {limb.all("text", "task")[0].text: limb for limb in drawing.all("g", "limb")}
    for name, data in report["tasks"].items():
        own = [float(rect.attributes["x"] or "") for rect in limbs[name].all("rect", "own")]
        first = data["chosen"]["fork"] + 1
        assert own == pytest.approx(columns[first : first + data["chosen"]["layers"]])
        assert len(limbs[name].all("circle", "head")) == 1


def test_no_branch_crosses_another_ones_line(make_report: Any) -> None:
    report = make_report(20, depth=12)
    (drawing,) = parse(render(report)).all("svg", "wide")
    order = [limb.all("text", "task")[0].text for limb in drawing.all("g", "limb")]
    forks = [report["tasks"][name]["chosen"]["fork"] for name in order]
    assert forks == sorted(forks, reverse=True)


def test_the_drawing_says_how_a_pair_is_read(make_report: Any) -> None:
    report = make_report(3)
    for reading, data in zip(("single", "joint", "separate"), report["tasks"].values(), strict=True):
        data["chosen"]["reading"] = reading
    (drawing,) = parse(render(report)).all("svg", "wide")
    shown = {limb.all("text", "task")[0].text: limb.all("text", "words")[0].text for limb in drawing.all("g", "limb")}
    assert [shown[name] for name in report["tasks"]] == ["single text", "pair, joint", "pair, separate"]


def test_the_selection_shows_every_depth_and_the_papers_rule_with_layers_and_time(make_report: Any) -> None:
    report = make_report(5)
    report["depths"][0] |= {"feasible": False}
    head, *rows = cells(table(parse(render(report)), "depths"))
    assert head == ["Depth", "Quality", "Time", "Layers", "Budget"]
    assert [row[0] for row in rows] == [str(row["depth"]) for row in report["depths"]] + ["Paper’s rule"]
    for shown, row in zip(rows, report["depths"], strict=False):
        own = 0
        for name, identity in row["choice"].items():
            own += next(one["layers"] for one in report["tasks"][name]["candidates"] if one["id"] == identity)
        layers = (row["depth"] + own) / report["merged"]["layers_separate"]
        assert shown[1:4] == [
            f"{100 * value:.1f}\u00a0%" for value in (row["relative_quality_valid"], row["relative_time"], layers)
        ]
    states = [row[4] for row in rows]
    assert states.count("chosen") == 1
    assert rows[states.index("chosen")][0] == str(report["merged"]["trunk_depth"])


def test_measurement_is_stated(make_report: Any) -> None:
    page = parse(render(make_report(2)))
    facts = {row.all("dt")[0].text: row.all("dd")[0].text for row in page.all("dl", "facts")[0].all("div")}
    assert facts["Timed request"] == "batch 32 × 32 tokens, torch, float32"
    assert facts["Machine"] == "Intel Xeon Platinum 8481C, 2 cores, torch 2.9.1"
    assert facts["Seeds"] == "13"
    assert facts["Encoder"] == "minilm (6 layers, 384 wide)"
    assert facts["Release"] == "r3"


def test_notes_stand_with_their_task(make_report: Any) -> None:
    report = make_report(3)
    name = next(iter(report["tasks"]))
    page = parse(render(report))
    assert [note.text for note in article(page, name).all("li")] == report["tasks"][name]["notes"]


def test_the_page_fetches_nothing_and_runs_nothing(make_report: Any) -> None:
    page = render(make_report(5))
    found = elements(parse(page))
    assert {element.tag for element in found}.isdisjoint({"script", "link", "img", "iframe", "object", "base", "form"})
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    for element in found:
        assert not [name for name in element.attributes if name.startswith("on") or name in ("src", "srcset")]
        assert (element.attributes.get("href") or "#").startswith("#")
    policies = [one.attributes.get("content") or "" for one in found if "http-equiv" in one.attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_drawings_and_tables_speak_to_a_screen_reader(make_report: Any) -> None:
    page = parse(render(make_report(4)))
    for drawing in page.all("svg"):
        if drawing.attributes.get("aria-hidden") == "true":
            continue
        assert drawing.attributes["role"] == "img"
        assert drawing.all("title")[0].text
        assert drawing.all("desc")[0].text
    for one in page.all("table"):
        assert one.all("caption")[0].text
        assert one.all("th")
    levels = [int(element.tag[1]) for element in elements(page) if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></svg><h1>owned</h1>",
    "a' onmouseover='alert(1)",
    "&lt;b&gt; & co",
    "x" * 300,
    "zero\x00width\x1b[31m",
    "名前 🚀 עברית",
]


def test_hostile_strings_stay_text_everywhere(make_report: Any) -> None:
    report = make_report(len(HOSTILE), names=HOSTILE)
    evil = HOSTILE[0] + HOSTILE[1]
    report["project"] = evil
    report["created"] = evil
    report["encoder"] |= {"name": evil, "fingerprint": evil}
    report["machine"] = {"cpu": evil, evil: evil}
    report["cost"] = dict.fromkeys(("batch", "tokens", "engine", "dtype"), evil)
    report["release"] = {"id": evil, "bundle": evil}
    for data in report["tasks"].values():
        data |= {"kind": evil, "metric": evil, "notes": [evil], "rows": {evil: 3}, "reported": evil}
        data["baseline"]["metrics"] = {evil: 0.9}
        data["chosen"]["metrics"] = {evil: 0.8}
        data["chosen"]["reading"] = evil
        if data["exits"]:
            data["exits"] |= {"rule": evil, "kept": [{"depth": 1, "form": evil}]}
        for one in data["candidates"]:
            one |= {"stage": evil, "reading": evil, "init": evil, "teacher": evil}
    page = render(report)
    root = parse(page)
    found = elements(root)
    assert {element.tag for element in found}.isdisjoint({"script", "img"})
    assert not [name for element in found for name in element.attributes if name.startswith("on")]
    assert len(root.all("h1")) == 1
    assert not [c for c in page if not c.isprintable() and c not in "\n\u00a0"]
    assert [one.all("h3")[0].text for one in root.all("article")] == [
        "".join(c for c in name if c.isprintable()) for name in HOSTILE
    ]


def absent(report: dict[str, Any], path: tuple[str, ...]) -> list[dict[str, Any]]:
    """The report without a part, and with None in its place; `*` stands for every task."""
    made = []
    for empty in (False, True):
        one = copy.deepcopy(report)
        parents = [one]
        for key in path[:-1]:
            parents = [child for parent in parents for child in (parent.values() if key == "*" else [parent[key]])]
        for parent in parents:
            if empty:
                parent[path[-1]] = None
            else:
                del parent[path[-1]]
        made.append(one)
    return made


@pytest.mark.parametrize(
    "path",
    [
        ("created",),
        ("encoder",),
        ("machine",),
        ("cost",),
        ("merged",),
        ("depths",),
        ("paper_rule",),
        ("release",),
        ("merged", "budget"),
        ("merged", "met"),
        ("merged", "relative_quality"),
        ("merged", "relative_time"),
        ("merged", "layers_in_graph"),
        ("tasks", "*", "baseline"),
        ("tasks", "*", "chosen"),
        ("tasks", "*", "candidates"),
        ("tasks", "*", "scope"),
        ("tasks", "*", "exits"),
        ("tasks", "*", "notes"),
        ("tasks", "*", "rows"),
        ("tasks", "*", "chosen", "metrics"),
        ("tasks", "*", "chosen", "ms"),
        ("tasks", "*", "baseline", "valid"),
    ],
    ids=".".join,
)
def test_a_missing_part_is_left_out_without_harm(make_report: Any, path: tuple[str, ...]) -> None:
    for report in absent(make_report(4), path):
        page = parse(render(report))
        assert [one.all("h3")[0].text for one in page.all("article")] == list(report["tasks"])
        assert not re.search(r"\b(None|nan|inf)\b", page.text)


def test_an_empty_report_is_a_page_that_says_so() -> None:
    page = parse(render({}))
    assert page.all("h1")[0].text == "0 tasks trained; nothing is merged yet."


def test_numbers_that_are_no_numbers_read_as_missing(make_report: Any) -> None:
    report = make_report(3)
    first = next(iter(report["tasks"].values()))
    first["chosen"]["metrics"] = dict.fromkeys(first["chosen"]["metrics"], float("nan"))
    for one in (*first["candidates"], *first["exits"]["curve"]):
        one |= {"valid": float("nan"), "reported": float("nan")}
    page = parse(render(report))
    assert "nan" not in page.text
    assert "–" in cells(table(page, "overview"))[1]
    assert not page.all("article")[0].all("svg", "scatter")


def test_candidates_that_are_all_alike_still_make_a_chart(make_report: Any) -> None:
    report = make_report(1)
    (data,) = report["tasks"].values()
    data["baseline"]["valid"] = 0.0
    for one in data["candidates"]:
        one |= {"valid": 0.0, "ms": 0.0}
    chart = parse(render(report)).all("article")[0].all("svg", "scatter")[0]
    assert "NaN" not in chart.text
    assert len(chart.all("circle", "tune")) == 4


def test_a_full_model_at_zero_gives_no_ratio(make_report: Any) -> None:
    report = make_report(2)
    first = next(iter(report["tasks"].values()))
    first["baseline"]["metrics"][first["metric"]] = 0.0
    assert cells(table(parse(render(report)), "overview"))[1][5] == "–"


def test_splits_are_named_by_task_where_they_differ(make_report: Any) -> None:
    report = make_report(3)
    next(iter(report["tasks"].values()))["reported"] = "dev"
    rows = cells(table(parse(render(report)), "overview"))[1:]
    assert [row[2].split()[-1] for row in rows] == ["dev", "test", "test"]


def test_the_same_report_gives_the_same_page(make_report: Any) -> None:
    assert render(make_report(5)) == render(make_report(5))

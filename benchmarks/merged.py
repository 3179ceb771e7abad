"""One merged model against separate full models on real data: `python benchmarks/merged.py DATA_FOLDER --work FOLDER`.

Writes the project of examples/glue into FOLDER and runs it: the whole grid on the first seed, where the selection is
made; then what was selected, and full fine-tuning, once more for every other seed. Choices are made on `valid`; figures
are those of the reported split (`dev` of GLUE, `test` of utterances). A killed run goes on where it was. `--more` adds
seeds to a result file, on another day if need be; a seed that it has is measured again.

`--set` names the tasks and the aim. Those that adapt the trunk first hold the merged model against the stronger full
model of each task, of those trained from the published and from the adapted trunk, by `valid` on the first seed; for
each of the two its learning rate and reading are searched (full_models.py). What full models came to is kept beside
the result, in full_models.json, so that `--published-only` can train those of the published trunk, all or some of the
tasks, on days of their own.
Result: benchmarks/results/, and a page in docs/.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cells import adapted, over
from data_projects import with_values, write_project
from full_models import ROWS, Full, Ledger, Way, by, strongest, trained
from merged_page import page, sides
from pages import DOCS, RESULTS, page_writer
from rich.console import Console

from trunkline.atomic import write_json
from trunkline.machine import machine
from trunkline.pipeline.progress import Show, Terminal
from trunkline.pipeline.project import Project
from trunkline.project.config import BudgetSettings

TRUNK = "joint"
"""Name of the adapted trunk."""


@dataclass(frozen=True)
class Set:
    """Tasks that are merged, how they are searched (options of examples/glue/prepare.py), and where figures go.

    `max_cost` is the budget; by its parts, a merged model costs more than it takes as a whole. `epochs` are those of
    adapting the trunk first, 0: it stays as published. `large` tasks have the first seed alone.
    """

    name: str
    tasks: tuple[str, ...]
    grid: tuple[str, ...]
    max_cost: float
    epochs: float = 0.0
    large: tuple[str, ...] = ()

    @property
    def result(self) -> Path:
        return RESULTS / f"{self.name}.json"

    @property
    def page(self) -> Path:
        return DOCS / f"{self.name.replace('_', '-')}.md"


_SNIPS = ("snips_intent", "snips_slots")
_PAIRS = ("mrpc", "rte", "stsb", "qnli", "qqp", "mnli")
_CHEAP = ("--tune", "1", "2", "--distill", "1", "--teachers", "full", "--latents", "0", "8")
SETS = {
    # Half of the time is the goal: 0.48 by the parts came to 0.43.
    "mixed": Set("merged", ("cola", "mrpc", "rte", "stsb", "sst2", *_SNIPS), ("--engine", "torch"), 0.54),
    "glue": Set(
        "merged_cheap",
        ("cola", "mrpc", "rte", "stsb", "sst2", "qnli", "qqp", "mnli"),
        ("--rows", "0", "--pair", "joint", "--apart", *_PAIRS, *_CHEAP),
        0.2,
        2.0,
        ("sst2", "qnli", "qqp", "mnli"),
    ),
    "utterances": Set(
        "merged_cheap_utterances",
        (*_SNIPS, "atis_intent", "atis_slots", "clinc150", "goemotions"),
        ("--rows", "0", *_CHEAP),
        0.25,
        5.0,
        ("clinc150", "goemotions"),
    ),
}


def main() -> None:
    """Run all seeds and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds glue/ and utterance/")
    parser.add_argument("--work", type=Path, required=True, help="folder of the project, kept between runs")
    parser.add_argument("--set", choices=list(SETS), default="mixed", help="tasks and aim")
    parser.add_argument("--seeds", type=int, nargs="+", default=[13, 14, 15])
    parser.add_argument("--more", action="store_true", help="add the seeds to the result file that is there")
    parser.add_argument(
        "--published-only",
        nargs="*",
        metavar="TASK",
        help="train full models from the published trunk, of all tasks or of these, and stop",
    )
    parser.add_argument("--out", type=Path, help="result file, instead of the set's own")
    parser.add_argument("--page", type=Path, help="page, instead of the set's own")
    parser.add_argument("--grid", nargs=argparse.REMAINDER, default=[], help="passed on to examples/glue/prepare.py")
    options = parser.parse_args()
    chosen = SETS[options.set]
    out = options.out or chosen.result
    write_page = page_writer(chosen.result, chosen.page, lambda found, _: page(found, out.name))
    prepare(options, chosen)
    ledger = Ledger(out.parent / "full_models.json")
    if options.published_only is not None:
        published_only(options, chosen, ledger)
        return
    found: dict[str, Any] = json.loads(out.read_text()) if options.more else {}
    if found and not (all("id" in task for task in found["tasks"].values()) and "search_rows" in found):
        parser.error(f"{out} is of before --more: measure it anew")
    for seed in options.seeds:
        project = with_seed(Project.load(options.work), seed)
        if found:
            tasks = {name: task for name, task in found["tasks"].items() if name not in chosen.large}
            project = narrowed(project, tasks)
        with Terminal(Console(stderr=True)) as show:
            report = run(project, chosen, show, ledger, found.get("tasks"), again=seed in found.get("seeds", ()))
        found = extended(found or first(report, options), report, seed)
        write_json(out, found)
        print(out, write_page(out, options.page))


def prepare(options: argparse.Namespace, chosen: Set) -> None:
    """Write the project's files; its store stays."""
    write_project(
        options.data, options.work, chosen.tasks, "--max-cost", str(chosen.max_cost), *chosen.grid, *options.grid
    )
    if chosen.epochs:
        with (options.work / "project.toml").open("a") as file:
            file.write(f"\n[adapt]\nepochs = {chosen.epochs}\nsampling = 2.0\npatience = 9\n")


def with_seed(project: Project, seed: int) -> Project:
    """The project with another seed."""
    return project.over(replace(project.files, settings=with_values(project.files.settings, seed=seed)))


def published_only(options: argparse.Namespace, chosen: Set, ledger: Ledger) -> None:
    """The full models from the published trunk of the tasks that were asked for, all seeds of a task before the next:
    searched at the first, where large tasks end.
    """
    first, *others = options.seeds
    project = Project.load(options.work)
    for task in options.published_only or chosen.tasks:
        alone = project.over(replace(project.files, tasks={task: project.task(task)}))
        with Terminal(Console(stderr=True)) as show:
            way = strongest(with_seed(alone, first), chosen.large, show, ledger)[task].way
            for seed in others if task not in chosen.large else []:
                trained(with_seed(alone, seed), task, project.task(task), way, show, ledger)
    print(ledger.path)


def run(
    project: Project, chosen: Set, show: Show, ledger: Ledger, known: dict[str, Any] | None, *, again: bool
) -> dict[str, Any]:
    """The report of the merged model; `again` measures its times anew, all else is in the store. `known` has the tasks
    of the result file, whose full models are trained in the ways found at the first seed.
    """
    if not chosen.epochs:
        return project.run(show=show, reselect=True, remeasure=again).report
    published = full_models(project, chosen, show, ledger, known, "published")
    if known is None:  # later seeds stand over the trunk of the first, which saw the large tasks, too
        adapted(with_ways(project, published), TRUNK, [], show)
    moved = over(project, TRUNK)
    full = full_models(moved, chosen, show, ledger, known, "baseline")
    report = with_ways(moved, full).run(show=show, reselect=True, remeasure=again).report
    for name, task in report["tasks"].items():
        metrics = published[name].metrics
        task["published"] = {"valid": metrics["valid"][task["metric"]], "metrics": metrics[task["reported"]]}
        for side, found in (("published", published[name]), ("baseline", full[name])):
            task[side] |= {"way": asdict(found.way), "tried": found.tried}
    return report


def full_models(
    project: Project, chosen: Set, show: Show, ledger: Ledger, known: dict[str, Any] | None, side: str
) -> dict[str, Full]:
    """The full model of each task from the project's encoder, searched unless its way is known."""
    if known is None:
        return strongest(project, chosen.large, show, ledger)
    found = {}
    for task in project.tasks:
        way = Way(**known[task]["ways"][side])
        found[task] = Full(way, trained(project, task, project.task(task), way, show, ledger), [])
    return found


def with_ways(project: Project, models: dict[str, Full]) -> Project:
    """The project with the full model of each task as it was found to be trained."""
    tasks = {name: by(settings, models[name].way) for name, settings in project.files.tasks.items()}
    return project.over(replace(project.files, tasks=tasks))


def narrowed(project: Project, tasks: dict[str, Any]) -> Project:
    """The project with these tasks, and of each one's grid only what was selected and what it starts from."""
    files = {}
    for name, task in tasks.items():
        settings = project.task(name)
        student = {"layers": [task["layers"]] if task["stage"] == "distill" else [], "latents": [task["latents"]]}
        files[name] = with_values(
            settings,
            tune=with_values(settings.tune, layers=[task["tuned"]]),
            distill=with_values(settings.distill, **student),
            pair=[task["pair"]] if task["pair"] else settings.pair,
        )
    budget = BudgetSettings(min_relative_quality=0.01)
    return project.over(
        replace(project.files, settings=with_values(project.files.settings, budget=budget), tasks=files)
    )


def first(report: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The result file's object after the grid of the first seed, its figures still empty."""
    tasks = {}
    for name, task in report["tasks"].items():
        _, stage, reading, size, *_ = task["chosen"]["id"].split("/")
        tasks[name] = {
            "id": task["chosen"]["id"],
            "metric": task["metric"],
            "split": task["reported"],
            "rows": task["rows"],
            "full": [],
            "merged": [],
            "fork": task["chosen"]["fork"],
            "layers": task["chosen"]["layers"],
            "pair": None if reading == "single" else reading,
            "stage": stage,
            "tuned": int(size.partition("-")[0].removeprefix("L")),
            "latents": int(size.partition("-m")[2] or 0),
            # Full fine-tuning that counts: from the trunk as it is, or as published where that is stronger on valid.
            "full_from": max(sides(task), key=lambda side: task[side]["valid"]),
            "ways": {side: task[side]["way"] for side in sides(task) if "way" in task[side]},
            "tried": {side: task[side]["tried"] for side in sides(task) if "tried" in task[side]},
            **{side: [] for side in sides(task)},
            # First seed only: every candidate, with the reported split as well, which no choice has seen.
            "candidates": [
                {key: c[key] for key in ("id", "fork", "layers", "reading", "valid", "reported", "ms")}
                for c in task["candidates"]
            ],
        }
    asked = ["--set", options.set] if options.set != "mixed" else []
    asked += ["--grid", *options.grid] if options.grid else []
    return {
        "command": " ".join(["python benchmarks/merged.py DATA_FOLDER --work FOLDER", *asked]),
        "machine": machine(),
        "seeds": [],
        "search_rows": ROWS,
        "cost": report["cost"],
        "tasks": tasks,
        "paper_rule": report["paper_rule"],
        "summary": {
            "full": [],
            "merged": [],
            "relative_times": [],
            "relative_layers": report["merged"]["relative_layers"],
        },
    }


def merged_figure(parts: dict[str, Any], task: dict[str, Any]) -> float:
    """Of one more seed, the metric of the branch that was selected at the first one, whichever this seed would take."""
    if parts["chosen"]["id"] == task["id"]:
        return float(parts["chosen"]["metrics"][task["metric"]])
    return next(float(one["reported"]) for one in parts["candidates"] if one["id"].rsplit("/", 1)[0] == task["id"])


def extended(found: dict[str, Any], report: dict[str, Any], seed: int) -> dict[str, Any]:
    """The object with the figures of one more seed, or with new ones of a seed that it has."""
    seeds, summary = found["seeds"], found["summary"]
    place = seeds.index(seed) if seed in seeds else len(seeds)

    def put(figures: list[Any], figure: Any) -> None:
        figures[place : place + 1] = [figure]

    put(seeds, seed)
    for name, task in found["tasks"].items():
        parts, metric = report["tasks"].get(name), task["metric"]
        if parts is None:  # it has the first seed alone, which stands for all
            for figures in ("full", "merged", *sides(task)):
                put(task[figures], task[figures][0])
            continue
        put(task["full"], parts[task["full_from"]]["metrics"][metric])
        put(task["merged"], merged_figure(parts, task))
        for side in sides(parts):
            put(task[side], parts[side]["metrics"][metric])
    for side in ("full", "merged"):
        put(summary[side], statistics.mean(task[side][place] for task in found["tasks"].values()))
    if report["tasks"].keys() == found["tasks"].keys():
        put(summary["relative_times"], report["merged"]["relative_time"])
    summary["relative_quality"] = statistics.mean(summary["merged"]) / statistics.mean(summary["full"])
    summary["relative_time"] = statistics.median(summary["relative_times"])
    return found


if __name__ == "__main__":
    main()

"""The docs page of `merged.py`: the merged model beside separate full models, and every candidate."""

from __future__ import annotations

import statistics
from typing import Any

from command_line import words_of


def sides(task: dict[str, Any]) -> list[str]:
    """Where the report of a task has full models."""
    return [side for side in ("baseline", "published") if side in task]


def page(found: dict[str, Any], result: str) -> str:
    """The docs page of a result, which is the file of this name."""
    summary, seeds = found["summary"], found["seeds"]
    cost = found["cost"]
    lines = [
        "# One merged model against separate full models",
        "",
        f"Written by `{found['command']}` from real public data; the figures are in `benchmarks/results/{result}`.",
        f"Machine: {words_of(found['machine'])}.",
        f"Time: median, batch {cost['batch']} x {cost['tokens']} tokens a text, {cost['engine']}, {cost['dtype']};",
        f"both sides in one run, in turn. Seeds: {', '.join(map(str, seeds))}.",
        "",
        f"The merged model has **{summary['relative_quality']:.1%}** of the full models' average quality at",
        f"**{summary['relative_time']:.1%}** of their time, with {summary['relative_layers']:.1%} of their layers.",
        "",
        "## Merged",
        "",
        "Mean over seeds, lowest to highest behind it; chosen on `valid` at the first seed, scored on the named split.",
        "",
    ]
    both = any("published" in task for task in found["tasks"].values())
    if both:
        lines += [
            f"The trunk was adapted to the tasks first, once, with seed {seeds[0]}: the spread is that of what was",
            "trained over it. Full fine-tuning starts from it or from the published one; both stand in the table,",
            "and the one that was stronger on `valid` at the first seed counts (*). Tasks without a spread were",
            "trained with the first seed alone. The time is that of the first seed.",
            "",
        ]
    full = ["full, adapted trunk", "full, published trunk"] if both else ["full fine-tuning"]
    columns = ["task", "train rows", "metric (split)", *full, "merged", "relative", "branch", "reading"]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, task in found["tasks"].items():
        relative = statistics.mean(task["merged"]) / statistics.mean(task["full"])
        mark = {side: " *" if both and side == task["full_from"] else "" for side in sides(task)}
        latents = f", {task['latents']} latents" if task["latents"] else ""
        cells = [
            name,
            f"{task['rows']['train']:,}",
            f"{task['metric']} ({task['split']})",
            *(_spread(task[side]) + mark[side] for side in sides(task)),
            _spread(task["merged"]),
            f"{relative:.1%}",
            f"fork {task['fork']} + {task['layers']}{latents}, {task['stage']}",
            task["pair"] or "single",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if both:
        lines += [
            "",
            "## How full fine-tuning was searched",
            "",
            f"Seed {seeds[0]}. Learning rates by factors of two from 1e-4 while `valid` rises, then the other reading",
            f"at the best rate; large tasks search on {found['search_rows']:,} of their rows, and are trained once on",
            "all.",
            "",
            "| task | from | learning rate (reading): valid | chosen |",
            "|---|---|---|---|",
        ]
        for name, task in found["tasks"].items():
            for side in sides(task):
                tried = ", ".join(f"{_way(one)}: {one['valid']:.3f}" for one in task["tried"][side])
                origin = {"baseline": "adapted", "published": "published"}[side]
                lines.append(f"| {name} | {origin} | {tried} | {_way(task['ways'][side])} |")
    lines += [
        "",
        "## Every candidate",
        "",
        f"Seed {seeds[0]}. `valid` is what the choice among candidates saw; the reported split took no part in it.",
        "",
        "| task | candidate | fork | own layers | reading | branch ms | valid | reported |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, task in found["tasks"].items():
        lines.append(f"| {name} | full fine-tuning | | | | | | {task['full'][0]:.3f} |")
        for c in task["candidates"]:
            recipe = c["id"].split("/", 1)[1].rsplit("/", 1)[0]
            lines.append(
                f"| {name} | {recipe} | {c['fork']} | {c['layers']} | {c['reading']} | {c['ms']:.0f} | "
                f"{c['valid']:.3f} | {c['reported']:.3f} |"
            )
    return "\n".join(lines) + "\n"


def _way(way: dict[str, Any]) -> str:
    return f"{way['learning_rate']:g}" + (f" ({way['reading']})" if way["reading"] else "")


def _spread(values: list[float]) -> str:
    text = f"{statistics.mean(values):.3f}"
    return text if len(set(values)) == 1 else f"{text} ({min(values):.3f} to {max(values):.3f})"

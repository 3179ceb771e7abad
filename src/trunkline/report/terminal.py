"""The report as tables for the terminal.

This module knows nothing about HTML; its words and numbers are the page's own. User strings are never read as markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trunkline.report import wording
from trunkline.report.content import Content, Exits, read
from trunkline.tables import titled


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the headline, the tasks with scope and exits, the model against N separate ones, selection and notes."""
    content = read(report)
    verdict, sentence = wording.budget(content)
    console.print(Text(wording.headline(content), style="bold"))
    console.print(Text(sentence, style={"met": "green", "missed": "red"}.get(verdict, "")))
    if content.tasks:
        console.print(_tasks(content))
    for task in content.tasks:
        if task.scope:
            console.print(Text.assemble((f"{task.name}: ", "bold"), wording.scope(task.scope, task.reported)))
        if task.exits:
            console.print(Text.assemble((f"{task.name}: ", "bold"), wording.exits(task.exits)))
            if task.exits.speeds:
                console.print(_speeds(task.exits, task.reported))
        if task.teaching and (said := wording.helped(task.teaching)):
            console.print(Text.assemble((f"{task.name}: ", "bold"), said))
    if content.merged:
        console.print(_against(content))
    if content.depths or content.paper:
        console.print(_selection(content))
    for task in content.tasks:
        if task.notes:
            console.print(Text.assemble((f"{task.name}: ", "bold"), "; ".join(task.notes)))
    origin = [wording.request(content), wording.machine(content)]
    if content.seeds:
        origin.append(f"seeds {', '.join(str(seed) for seed in content.seeds)}")
    measured = "; ".join(part for part in origin if part)
    if measured:
        console.print(Text(f"Measured with {measured}", style="dim"))


def _tasks(content: Content) -> Table:
    splits = sorted({task.reported for task in content.tasks})
    table = titled(f"Tasks on {splits[0] if len(splits) == 1 else 'their reported splits'}; branch: fork + own layers")
    table.add_column("task", overflow="fold", min_width=8)
    table.add_column("metric", overflow="fold")
    for name in ("full", "merged", "relative", "branch"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reading", overflow="ellipsis")
    table.add_column("ms", justify="right", no_wrap=True)
    for task in content.tasks:
        one = task.chosen
        table.add_row(
            Text(task.name),
            Text(task.metric if len(splits) == 1 else f"{task.metric} ({task.reported})"),
            wording.number(task.full),
            wording.number(task.merged),
            wording.percent(task.relative),
            f"{one.fork} + {one.layers}" if one else wording.MISSING,
            Text(one.reading if one else wording.MISSING),
            wording.milliseconds(one.ms if one else None, unit=False),
        )
    return table


def _speeds(exits: Exits, reported: str) -> Table:
    table = titled(f"By speed; layers and time on {reported}, relative to speed 0")
    table.add_column("kept on valid")
    for name in ("speed", "valid", reported, "layers", "time"):
        table.add_column(Text(name), justify="right")
    for row in exits.speeds:
        quality = (wording.number(row.valid), wording.number(row.reported))
        shares = (wording.percent(row.layers), wording.percent(row.time))
        table.add_row(wording.kept(row), wording.number(row.speed, 4), *quality, *shares)
    return table


def _against(content: Content) -> Table:
    merged, n = content.merged, len(content.tasks)
    table = titled("The merged model")
    table.add_column("")
    for name in (wording.count(n, "separate full model"), "merged", "relative"):
        table.add_column(name, justify="right")
    if merged is None:
        return table
    number, time, whole = wording.number, wording.milliseconds, wording.whole
    rows = [
        ("quality, mean", number(merged.quality_full), number(merged.quality), merged.relative_quality),
        ("time", time(merged.ms_separate), time(merged.ms_merged), merged.relative_time),
        ("layers", whole(merged.layers_separate), whole(merged.layers_in_graph), merged.relative_layers),
    ]
    for name, full, ours, relative in rows:
        table.add_row(name, full, ours, wording.percent(relative))
    return table


def _selection(content: Content) -> Table:
    table = titled("Selection by trunk depth, relative to full models")
    table.add_column("depth")
    for name in ("quality (valid)", "time", "layers"):
        table.add_column(name, justify="right")
    table.add_column("budget")
    for row in [*content.depths, *([content.paper] if content.paper else [])]:
        chosen, paper = row is content.selected, row is content.paper
        state = "chosen" if chosen else "" if paper else "fits" if row.feasible else "misses"
        table.add_row(
            "paper's rule" if paper else str(row.depth),
            *(wording.percent(value) for value in (row.quality, row.time, row.layers)),
            state,
            style="bold" if chosen else "dim" if not (row.feasible or paper) else "",
        )
    return table

"""Measurements as tables for the terminal. Knows rows and words; user strings are never read as markup."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trunkline.bench.server import failed, loop_of, refused
from trunkline.tables import titled

if TYPE_CHECKING:
    from trunkline.project.speed import DialValue

_BUSY = 0.9
"""Cores that the load generator may take until it, and not the server, is what was measured."""
_LOOSE = 0.25
"""Share of a time that the middle half may be wide."""


def print_costs(found: Mapping[str, Any], console: Console) -> None:
    """One table for each batch and length: the tasks in one pass against separate models."""
    machine = found["machine"]
    origin = f"{found['engine']}; {machine['cpu']}, {machine['cores']} cores; tasks: {', '.join(found['tasks'])}"
    for (batch, tokens), rows in itertools.groupby(found["rows"], lambda row: (row["batch"], row["tokens"])):
        title = f"{_count(batch, 'text')} of {tokens:g} tokens at a time"
        dial = " and ".join(_dial(name, found[name]) for name in ("speed", "keep") if name in found)
        dial = dial and f"at {dial}, ms"
        columns = ["tasks", "one pass\nof all, ms", "middle half", "of one\nmodel"]
        columns += [dial, "of full\ndepth"] if dial else []
        table = _table(title, *columns, "separate\nmodels, ms", "times\nfaster")
        for count, alike in itertools.groupby(rows, lambda row: row["tasks"]):
            of = {row["system"]: row for row in alike}
            merged, separate, left = of["trunkline"], of["separate"], of.get("exits")
            table.add_row(
                str(count),
                _ms(merged["ms"]),
                f"{_ms(merged['low'])} to {_ms(merged['high'])}",
                f"{merged['ratio_to_one_pass']:.2f}",
                *([_ms(left["ms"]), f"{left['ms'] / merged['ms']:.2f}"] if left else ["-", "-"] if dial else []),
                _ms(separate["ms"]),
                f"{separate['ms'] / merged['ms']:.1f}",
            )
        console.print(table)
    if any(row["high"] - row["low"] > _LOOSE * row["ms"] for row in found["rows"]):
        console.print(Text("Times vary much: is the machine busy? More --seconds give more rounds.", style="yellow"))
    console.print(Text(f"Medians; {origin}", style="dim"), soft_wrap=True)


def _dial(name: str, value: DialValue) -> str:
    return f"{name}s\nby task" if isinstance(value, Mapping) else f"{name}\n{value:g}"


def print_loads(found: Mapping[str, Any], console: Console) -> None:
    """One row for each load on a server."""
    model, results = found["server"], found["loads"]
    rows = results[0]["rows"]
    table = _table(
        f"{_count(rows, 'text')} a request, {_count(len(found['tasks']), 'task')} each",
        *("load", "requests/s", "texts/s", "p50 ms", "p90", "p99", "most", "refused", "failed", "its CPU"),
    )
    for result in results:
        latency = result["latency_ms"]
        table.add_row(
            loop_of(result),
            f"{result['requests_per_second']:,.1f}",
            f"{result['texts_per_second']:,.1f}",
            *(_ms(latency[name]) if latency else "-" for name in ("p50", "p90", "p99", "p100")),
            f"{refused(result):,}",
            f"{failed(result):,}",
            f"{result['generator']['cpu_share']:.2f}",
        )
    console.print(table)
    for result in results:
        if result["generator"]["cpu_share"] > _BUSY:
            console.print(Text(f"{loop_of(result)}: the load generator was busy all the time; the server may do more"))
        for outcome, example in result["examples"].items():
            console.print(Text(f"{loop_of(result)}: {outcome}: {example}"))
    told = f"{model['name']}, bundle {model['bundle']}; {model['engine']}, {model['dtype']}, {model['device']}"
    console.print(Text(f"{told}; {results[0]['seconds']:g} s of each load", style="dim"), soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = titled(title)
    for column in columns:
        table.add_column(column, justify="left" if column == "load" else "right", no_wrap=column == "load")
    return table


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _ms(value: float) -> str:
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}"

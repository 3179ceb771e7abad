"""docs/server-benchmark.md and its plot from what `server.py` and `soak.py` found: `python benchmarks/server_page.py`.

Knows how figures read, and nothing of how they are measured. The plot needs matplotlib.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from command_line import words_of
from pages import DOCS, page_writer, table
from served import RESULT
from shapes import SHAPES

from trunkline.bench import plot

PHASES = {
    "saturation_many": "saturation, 32 texts a request",
    "saturation_one": "saturation, one text a request",
    "half_many": "half load, 32 texts a request",
    "half_one": "half load, one text a request",
    "infinity_at-once": "Infinity, saturation, asked at once",
    "infinity_in-turn": "Infinity, saturation, asked in turn",
}
UNIT = "texts a second with all 8 answers (median, least and most)"
RATES = (
    ("engine alone, batches of the server's size", "engine_server"),
    ("server, 32 texts a request", "saturation_many"),
    ("server, one text a request", "saturation_one"),
    ("Infinity, 32 texts a request, at once", "infinity_at-once"),
    ("Infinity, 32 texts a request, in turn", "infinity_in-turn"),
)
HEADLINES = (
    ("saturation_ratio", "server over engine alone, texts a second at saturation", "at least 0.85", "{:.3f}"),
    ("p99_over_single_at_half_load", "p99 at half load over the time of a single request", "at most 3", "{:.2f}"),
    ("infinity_ratio_base", "Trunkline over Infinity, BERT-base shape", "at least 6", "{:.1f}"),
    ("infinity_ratio_minilm", "Trunkline over Infinity, packaged trunk's shape", "at least 20", "{:.1f}"),
)
LIMITS = """
## What limits it

- **The engine.** At saturation it never waits: while it works on a batch, the next one is there already. So throughput
  is the engine's on batches of the server's size, less what takes CPU time from it: HTTP and JSON in the front, answers
  made of logits in the worker, and the load generator where it shares the cores.
- **Few cores.** The engine uses every core that it can get. On two cores, each tenth of a core that front and load
  generator take is a twentieth that it lacks; the tables of CPU time say how much that was. What the load generator
  takes is no cost of the server, and yet counts as one in its ratio to the engine alone.
- **One text a request** costs the front some tenths of a millisecond of Python for each text. On a small trunk that is
  a good part of what the engine needs for it: clients that have many texts should send them together.
- **Latency at half load** is the rest of the batch under way and then one's own, shared with all that came meanwhile:
  the engine works on one batch at a time and does not interrupt it.
- **Infinity** runs a whole model for every answer: eight times the trunk, and eight times the tokenising. Each model
  forms batches by itself, and all of them compete for the cores and for one interpreter. While others are measured it
  is stopped. Its texts a second are the larger of those counted and of clients over mean latency, as only a few of its
  requests end in the measured time.
"""


def made(found: dict[str, Any], drawn: Path) -> str:
    """Draw the plot, and make the page."""
    measured = {shape: of for shape, of in found.get("shapes", {}).items() if of["rounds"]}
    if measured:
        plot.bars({SHAPES[shape]: bars(of["summary"]) for shape, of in measured.items()}, drawn, UNIT)
    return text(found, drawn.name if measured else None)


def bars(summary: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """Texts a second of one shape: words, median, least and most."""
    found = ((words, summary.get(key)) for words, key in RATES)
    return [(words, of["median"], of["least"], of["most"]) for words, of in found if of]


def text(found: dict[str, Any], drawn: str | None) -> str:
    """The page."""
    lines = [
        "# The server under load",
        "",
        "Written by `benchmarks/server.py` and `benchmarks/soak.py`; all figures are in",
        "`benchmarks/results/server.json`. Eight tasks, each with one layer of its own, answer every text; where speed",
        "is measured, it has 32 tokens. Weights are random: speed does not depend on them. Figures are medians over",
        "rounds, with the least and the most behind them; in a round, all that is compared takes its turn.",
        "",
        *table(("figure", "aim", "found"), headlines(found)),
        *(["", f"![Texts a second]({drawn})"] if drawn else []),
    ]
    for shape, title in SHAPES.items():
        measured = found.get("shapes", {}).get(shape)
        if measured and measured["rounds"]:
            lines += ["", f"## {title}", "", *speed(measured)]
    lines += LIMITS.rstrip().splitlines()
    if "soak" in found:
        lines += ["", "## Soak", "", *soak(found["soak"])]
    return "\n".join(lines) + "\n"


def headlines(found: dict[str, Any]) -> Iterable[Sequence[str]]:
    """What was promised against what was found."""
    for key, words, aim, form in HEADLINES:
        value = found.get(key)
        yield words, aim, "not measured" if value is None else form.format(value)


def speed(shape: dict[str, Any]) -> list[str]:
    """One shape: throughput, latency, CPU time, and what was tried of Infinity."""
    summary, infinity = shape["summary"], shape["infinity"]
    lines = [
        f"`{shape['command']}`",
        "",
        f"Machine: {words_of(shape['machine'])}; {shape['cores']}. Engine: {shape['engine']}.",
        "",
    ]
    rows = [
        (f"engine alone, batches of {round(shape['batch_rows'])} texts, as the server makes them", "engine_server"),
        ("engine alone, batches of 32", "engine_32"),
        ("engine alone, batches of 64", "engine_64"),
        ("server, 32 texts a request, 8 clients", "saturation_many"),
        ("server, one text a request, 128 clients", "saturation_one"),
        ("Infinity, 32 texts a request, 8 clients, its models asked at once", "infinity_at-once"),
        ("Infinity, the same, its models asked in turn", "infinity_in-turn"),
    ]
    lines += table(
        ("", "texts a second with all 8 answers", "of the engine alone"),
        ((words, spread(summary[key], "{:.1f}"), share(summary, key)) for words, key in rows if summary.get(key)),
    )
    lines += [
        "",
        "What the server keeps of the engine is the median over rounds of the share in each; other shares are those of",
        "medians.",
        "",
        "Milliseconds of a request, one at a time on an idle server, and at random instants with half the load",
    ]
    lines += ["that saturates it:", ""]
    lines += table(
        ("request", "one at a time", "half load, median", "half load, p99", "p99 over one at a time"),
        [
            (words, *(spread(summary[key.format(kind)], form) for key, form in LATENCIES))
            for kind, words in (("one", "one text"), ("many", "32 texts"))
        ],
    )
    if single := spread(summary.get("infinity_single_ms"), "{:.1f}"):
        lines += ["", f"Infinity, one text at a time, its eight models asked at once: {single} ms."]
    lines += ["", "CPU time, in cores:", "", *table(("", "front", "worker", "load generator"), cpu(shape["rounds"]))]
    if "missing" in infinity:
        return [*lines, "", f"Infinity was not measured: {infinity['missing']}."]
    lines += ["", f"Infinity ({infinity['version']}) was tried with these settings, and measured with the fastest,"]
    lines += [f"{infinity['settings']}:", ""]
    tried = infinity["tried"].items()
    return lines + table(("settings", "at once, texts a second", "in turn"), (attempt(*one) for one in tried))


LATENCIES = (
    ("single_{}_ms", "{:.1f}"),
    ("half_{}_p50_ms", "{:.1f}"),
    ("half_{}_p99_ms", "{:.1f}"),
    ("p99_over_single_{}", "{:.2f}"),
)


def attempt(name: str, tried: dict[str, Any]) -> Sequence[str]:
    """A row of what one setting of Infinity gave."""
    if "failed" in tried:
        return name, "did not work", ""
    return name, *(f"{tried[way]:.1f}" for way in ("at-once", "in-turn"))


def cpu(rounds: Sequence[dict[str, Any]]) -> Iterable[Sequence[str]]:
    """CPU time of each phase by process."""
    for phase, words in PHASES.items():
        found = [one[phase]["cpu"] for one in rounds if phase in one]
        if found:
            medians = {name: statistics.median(one[name] for one in found) for name in found[0]}
            yield words, *(f"{medians[name]:.2f}" if name in medians else "" for name in ("front", "worker", "load"))


def soak(found: dict[str, Any]) -> list[str]:
    """What the soak came to."""
    lines = [f"`{found['command']}` on {found['machine']['cpu']}, {found['machine']['cores']} cores.", ""]
    lines += ["Every answer is compared with what the bundle that the reply names gives for this text by itself."]
    if "minutes" in found:
        memory = {name: " to ".join(f"{one[at]:.0f}" for at in ENDS) for name, one in found["rss_mb"].items()}
        title = (
            f"Saturated for {found['minutes']:g} minutes, with another bundle every {found['swap_every']:g} seconds:"
        )
        rows = [
            ("requests, each of 1 to 32 texts with 8 answers", f"{found['requests']:,}"),
            ("failed", f"{found['failed']:,}"),
            ("with an answer that is not of the bundle named", f"{found['mixed']:,}"),
            ("swaps", f"{found['swaps']:,}"),
            ("swaps that failed", f"{len(found['swaps_failed']):,}"),
            ("a swap, median and longest, s", middle(found["swap_seconds"], "{:.2f}")),
            ("memory of the front after warm-up and at the end, MB", memory["front"]),
            ("memory of the worker after warm-up and at the end, MB", memory["worker"]),
            ("growth of both, MB", f"{found['rss_growth_mb']:.1f}"),
        ]
        lines += ["", title, "", *table(("", ""), rows)]
    if unloads := found.get("unloads"):
        rows = [
            ("memory of both processes before and after, MB", f"{unloads['before_mb']:.0f}, {unloads['after_mb']:.0f}"),
            ("a cycle, ms", f"{unloads['cycle_ms']:.0f}"),
        ]
        lines += ["", f"A task unloaded and loaded again, {unloads['cycles']:,} times:", "", *table(("", ""), rows)]
    if kills := found.get("kills"):
        rows = [
            ("requests", f"{kills['requests']:,}"),
            ("answered", f"{kills['answered']:,}"),
            ("refused with 503 and Retry-After", f"{kills['refused']:,}"),
            ("neither", f"{kills['failed']:,}"),
            ("not ready any more after, median and longest, ms", middle(kills["blind_ms"], "{:.0f}")),
            ("ready again after, median and longest, s", middle(kills["away_s"], "{:.1f}")),
            ("refused while it said that it was ready", f"{kills['refused_while_ready']:,}"),
        ]
        lines += ["", f"The worker killed {kills['kills']} times under half of the load that saturates:", ""]
        lines += table(("", ""), rows)
    return lines


ENDS = ("after_warmup", "end")


def spread(found: dict[str, float] | None, form: str) -> str:
    """A median with the least and the most."""
    if found is None:
        return ""
    return f"{form.format(found['median'])} ({form.format(found['least'])} to {form.format(found['most'])})"


def middle(found: dict[str, float] | None, form: str) -> str:
    """A median and the most."""
    return "" if found is None else f"{form.format(found['median'])}, {form.format(found['most'])}"


def share(summary: dict[str, Any], key: str) -> str:
    """Of the engine alone: as it was in each round, where that is known, else by medians."""
    by_round = summary.get(key.replace("saturation", "saturation_ratio"))
    if key.startswith("saturation") and by_round:
        return spread(by_round, "{:.1%}")
    return f"{summary[key]['median'] / summary['engine_server']['median']:.1%}"


write_page = page_writer(RESULT, DOCS / "server-benchmark.md", made)

if __name__ == "__main__":
    write_page(RESULT)

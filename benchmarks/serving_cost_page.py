"""docs/serving-cost.md and its plot from the figures of `serving_cost.py`: `python benchmarks/serving_cost_page.py`.

Knows how figures read, and nothing of how they are measured. The plot needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from command_line import words_of
from pages import DOCS, RESULTS, page_writer, table
from shapes import SHAPES

from trunkline.bench import plot

RESULT = RESULTS / "serving_cost.json"
TITLES = {shape: title.partition(" (")[0] for shape, title in SHAPES.items()}
AIMS = (("base", 8, 1.15), ("base", 64, 1.5), ("minilm", 8, 1.25), ("minilm", 64, 1.9))
"""Shape, tasks, and how many passes of one model they may take at most, for 32 texts of 32 tokens."""
AIMED = (32, 32)
OTHERS = {
    "separate": "separate models, same engine and dtype",
    "transformers": "separate models, transformers eager, float32",
    "adapters": "adapters, `Parallel`, eager, float32",
}
Rows = Sequence[dict[str, Any]]


def made(found: dict[str, Any], drawn: Path) -> str:
    """Draw the plot, and make the page."""
    plot.costs(found["rows"], drawn, TITLES)
    return text(found, drawn.name)


def text(found: dict[str, Any], drawn: str) -> str:
    """The page."""
    rows, engines = found["rows"], found["engines"]
    lines = [
        "# What N tasks cost",
        "",
        f"Written by `{found['command']}`; all figures are in",
        "`benchmarks/results/serving_cost.json`. Trunkline answers N tasks by one pass through the trunk and a branch",
        "of one layer for each, which reads [CLS] at the last fork. A *pass* is that of one full model on the same",
        "engine in the same arithmetic, whose last layer is computed for every token, as others do; the column of one",
        "task is that model in Trunkline's form, whose last layer is computed for [CLS] alone. Tokenising counts",
        "everywhere. Times are medians of rounds in which all that is compared takes its turn; the middle half of each",
        "is in the results file.",
        "",
        f"Machine: {words_of(found['machine'])}.",
        *(f"{TITLES[shape]}: {of['engine']}, {of['dtype']} ({of['why']})." for shape, of in engines.items()),
        "",
        *table(("32 texts of 32 tokens", "aim, passes", "found"), aims(rows)),
        "",
        f"![Time against the number of tasks]({drawn})",
        "",
        *PLOT,
    ]
    for shape, title in SHAPES.items():
        mine = [row for row in rows if row["shape"] == shape]
        if mine:
            lines += ["", f"## {title}", "", *of_shape(mine)]
            lines += [
                f"\nMemory of one more task: {one['mb_per_task']:.1f} MB, as {one['tasks']} of them grow the process."
                for one in found["memory"]
                if one["shape"] == shape
            ]
    return "\n".join([*lines, "", *MEASURED]) + "\n"


PLOT = (
    "Both axes are logarithmic. The line at 1 is one pass of one model. A hollow marker is a figure that was scaled",
    "from fewer tasks.",
)
MEASURED = (
    "## What was measured, and what was scaled",
    "",
    "Trunkline is measured with every number of tasks in the table. N separate models take N passes: a pass of each of",
    "at most four models with weights of their own is measured, in turn, or of one model where its pass in",
    "transformers takes a second or more; their mean counts N times. The adapters library (`seq_bn`, its default) is",
    "measured with as many tasks as it should answer in about a second, and more tasks are counted in proportion to",
    "the most measured. In the results file, `measured_tasks` of a row says how many were measured.",
)


def aims(rows: Rows) -> Iterable[Sequence[str]]:
    """What was promised against what was found."""
    for shape, tasks, most in AIMS:
        of = {(row["shape"], row["tasks"], row["batch"], row["tokens"]): row for row in _of(rows, "trunkline")}
        row = of.get((shape, tasks, *AIMED))
        shown = "not measured" if row is None else f"{row['ratio_to_one_pass']:.2f}"
        yield f"{TITLES[shape]}, {tasks} tasks", f"at most {most:g}", shown


def of_shape(rows: Rows) -> list[str]:
    """The tables of one shape: Trunkline in passes, then the others in times of Trunkline."""
    counts = sorted({row["tasks"] for row in rows})
    merged = {(row["batch"], row["tokens"], row["tasks"]): row for row in _of(rows, "trunkline")}
    cells = sorted({(batch, tokens) for batch, tokens, _ in merged})
    one_pass = {cell: merged[*cell, counts[0]] for cell in cells}
    lines = ["Trunkline's time in passes of one model, by tasks:", ""]
    lines += table(
        ("texts x tokens", "one pass, ms", *map(str, counts)),
        (
            (
                f"{batch} x {tokens}",
                _ms(one_pass[batch, tokens]["ms"] / one_pass[batch, tokens]["ratio_to_one_pass"]),
                *(f"{merged[batch, tokens, count]['ratio_to_one_pass']:.2f}" for count in counts),
            )
            for batch, tokens in cells
        ),
    )
    for system, words in OTHERS.items():
        theirs = {(row["batch"], row["tokens"], row["tasks"]): row for row in _of(rows, system)}
        lines += ["", f"Time over Trunkline's: {words}; * scaled from fewer tasks:", ""]
        if not theirs:
            lines[-2:] = [f"Not measured here: {words}."]
            continue
        lines += table(
            ("texts x tokens", *map(str, counts)),
            (
                (
                    f"{batch} x {tokens}",
                    *(_times(theirs[batch, tokens, count], merged[batch, tokens, count]) for count in counts),
                )
                for batch, tokens in cells
            ),
        )
    return lines


def _of(rows: Rows, system: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["system"] == system]


def _times(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    return f"{theirs['ms'] / ours['ms']:.1f}" + "*" * (theirs["measured_tasks"] < theirs["tasks"])


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


write_page = page_writer(RESULT, DOCS / "serving-cost.md", made)

if __name__ == "__main__":
    write_page(RESULT)

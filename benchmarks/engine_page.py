"""docs/engine-benchmark.md and its plot from the figures of `engine.py`: `python benchmarks/engine_page.py`.

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

RESULT = RESULTS / "engine.json"
SETS = {"snips": "SNIPS utterances", "qnli": "QNLI, both texts in one"}


def made(found: dict[str, Any], drawn: Path) -> str:
    """Draw the plot, and make the page."""
    plot.bars({SHAPES[row["shape"]]: list(speeds(row)) for row in found["rows"]}, drawn, "tokens a millisecond")
    return text(found, drawn.name)


def text(found: dict[str, Any], drawn: str) -> str:
    """The page."""
    lines = [
        "# The engine against its bare trunk",
        "",
        f"Written by `{found['command']}`; all figures are in `benchmarks/results/engine.json`.",
        "The *static model* is the whole trunk as one compiled OpenVINO model of one shape, the fastest form of it",
        "that we know. The *chain* is how the engine runs it: one model for each layer, so that a branch can read any",
        "fork. *Real texts* go through the whole engine, one branch included: tokenised, sorted by length, padded, and",
        "every real token counted. Times are medians of rounds in which all of them take turns.",
        "",
        f"Machine: {words_of(found['machine'])}.",
        "",
        *table(
            ("", "aim", *(SHAPES[row["shape"]].partition(" (")[0] for row in found["rows"])), figures(found["rows"])
        ),
        "",
        f"![Tokens a millisecond]({drawn})",
        "",
        "Bars are medians, whiskers the middle half.",
    ]
    return "\n".join(lines) + "\n"


def figures(rows: Sequence[dict[str, Any]]) -> Iterable[Sequence[str]]:
    """What was promised against what was found, a column for each shape."""
    first = rows[0]
    size = f"{first['batch']} x {first['tokens']} tokens"
    yield "arithmetic, threads", "", *(f"{row['dtype']}, {row['threads']}" for row in rows)
    yield f"static model, {size}, ms", "", *(f"{row['static_ms']:.1f}" for row in rows)
    yield f"chain, {size}, ms", "", *(f"{row['chain_ms']:.1f}" for row in rows)
    shares = (f"{row['chain_over_static_throughput']:.1%}" for row in rows)
    yield "throughput of the chain, of the static model's", "at least 95 %", *shares
    for name, words in SETS.items():
        if all(name in row["real"] for row in rows):
            real = [row["real"][name] for row in rows]
            yield f"{words}: padding", "below 10 %", *(f"{one['padding']:.1%}" for one in real)
            per_token = (f"{one['over_static_per_real_token']:.1%}" for one in real)
            yield f"{words}: throughput per real token, of the static model's", "at least 80 %", *per_token


def speeds(row: dict[str, Any]) -> Iterable[tuple[str, float, float, float]]:
    """Bars of one shape: words, median, least and most."""
    tokens = row["batch"] * row["tokens"]
    yield _speed("static model", tokens, row, "static_ms")
    yield _speed("chain of layers", tokens, row, "chain_ms")
    for name, words in SETS.items():
        if name in row["real"]:
            yield _speed(f"engine, {words}", row["real"][name]["tokens"], row["real"][name], "ms")


def _speed(words: str, tokens: int, found: dict[str, float], name: str) -> tuple[str, float, float, float]:
    return words, tokens / found[name], tokens / found[f"{name}_high"], tokens / found[f"{name}_low"]


write_page = page_writer(RESULT, DOCS / "engine-benchmark.md", made)

if __name__ == "__main__":
    write_page(RESULT)

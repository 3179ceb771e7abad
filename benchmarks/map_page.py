"""docs/map.md and its heat maps from the figures of `map.py`: `python benchmarks/map_page.py`. Needs matplotlib."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line import words_of
from pages import DOCS, RESULTS, page_writer, run_time

RESULT = RESULTS / "map.json"
_BRIGHT = 0.7
"""Where a colour is so bright that figures on it are black, of the way from worst to best."""
Rows = Sequence[dict[str, Any]]


def made(found: dict[str, Any], drawn: Path) -> str:
    """Draw the heat maps, and make the page."""
    draw(found["cells"], drawn)
    return text(found, drawn.name)


def text(found: dict[str, Any], drawn: str) -> str:
    """The page."""
    every, times = found["cells"], found["times"]
    cells = _first_seed(every)
    lines = [
        "# The map: what a branch is worth by where it forks",
        "",
        f"Written by `{found['command']}`; every cell is in `benchmarks/results/map.json`.",
        f"Machine: {words_of(found['machine'])}. At most",
        f"{found['train_rows']:,} train rows and few epochs a task, so figures compare within this page only. Trunk as",
        "published, branches trained on the labels alone. One seed, the same everywhere, but where several are named.",
        "`valid` is what choices are made by; figures of the reported split are in the file.",
        *run_time([cell.get("seconds") for cell in every]),
        "",
        f"![Quality on valid by fork and own layers, one map for each task and reading]({drawn})",
        "",
    ]
    if times:
        lines += [
            f"Times: {times['engine']}, {times['dtype']}, {times['batch']} rows of {times['tokens']} tokens a text.",
            "",
        ]
    lines += [
        "## The best branch of each number of own layers",
        "",
        "Per task and reading, over all forks: quality on `valid` (fork), full fine-tuning on the same rows beside it.",
        "",
        "| task | reading | full | head alone | 1 layer | 2 layers | 3 layers |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, reading in _keys(cells):
        mine = [cell for cell in cells if (cell["task"], cell["pair"]) == (task, reading)]
        shown = [_best([cell for cell in mine if cell["init"] == "full"], where=False)]
        plain = [cell for cell in mine if (cell["init"], cell["pooling"]) == ("trunk", "cls")]
        shown += [_best([cell for cell in plain if cell["layers"] == n]) for n in range(4)]
        lines.append(f"| {task} | {reading or 'single'} | {' | '.join(shown)} |")
    lines += ["", "## Several seeds", "", *_spread(every)]
    lines += ["", "## Poolings and starts", "", *_variants(cells)]
    return "\n".join(lines) + "\n"


def _keys(cells: Rows) -> list[tuple[str, str | None]]:
    return list(dict.fromkeys((cell["task"], cell["pair"]) for cell in cells))


def _first_seed(cells: Rows) -> Rows:
    """Of each task those of its first seed, which all have: the best of a mean and of single seeds would be luck's."""
    first = {task: min(cell["seed"] for cell in cells if cell["task"] == task) for task, _ in _keys(cells)}
    return [cell for cell in cells if cell["seed"] == first[cell["task"]]]


def _best(cells: Rows, *, where: bool = True) -> str:
    if not cells:
        return "-"
    best = max(cells, key=lambda cell: float(cell["valid"]))
    return f"{best['valid']:.3f}" + (f" (fork {best['fork']})" if where else "")


def _spread(cells: Rows) -> list[str]:
    """A row for everything that has several seeds: its mean on `valid`, the lowest and the highest."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for cell in cells:
        if (cell["init"], cell["pooling"]) in (("trunk", "cls"), ("full", "cls")):
            made = "full" if cell["init"] == "full" else f"{cell['layers']} over fork {cell['fork']}"
            found.setdefault((cell["task"], cell["pair"] or "single", made), []).append(cell["valid"])
    lines = ["| task | reading | own layers | seeds | mean (lowest to highest) |", "|---|---|---|---|---|"]
    for (task, reading, made), values in found.items():
        if len(values) > 1:
            told = f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            lines.append(f"| {task} | {reading} | {made} | {len(values)} | {told} |")
    return lines


def _variants(cells: Rows) -> list[str]:
    """Mean change on `valid` against [CLS] and a start from the trunk's own layers, same task, fork, layers, seed."""
    plain = {_place(cell): cell["valid"] for cell in cells if (cell["init"], cell["pooling"]) == ("trunk", "cls")}
    lines = ["| what | cells | better | mean change on `valid` |", "|---|---|---|---|"]
    for what, layers, init, pooling in (
        ("mean, head alone", 0, "trunk", "mean"),
        ("concat, head alone", 0, "trunk", "concat"),
        ("mean, one layer", 1, "trunk", "mean"),
        ("concat, one layer", 1, "trunk", "concat"),
        ("random start, one layer", 1, "random", "cls"),
    ):
        changes = [
            cell["valid"] - plain[_place(cell)]
            for cell in cells
            if (cell["layers"], cell["init"], cell["pooling"]) == (layers, init, pooling) and _place(cell) in plain
        ]
        if changes:
            better = sum(change > 0 for change in changes)
            lines.append(f"| {what} | {len(changes)} | {better} | {statistics.mean(changes):+.3f} |")
    return lines


def _place(cell: dict[str, Any]) -> tuple[Any, ...]:
    return cell["task"], cell["pair"], cell["fork"], cell["layers"], cell["seed"]


def draw(cells: Rows, path: Path) -> None:
    """A heat map for each task and reading: forks across, own layers down, colours from worst to full fine-tuning."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    cells = _first_seed(cells)
    keys = _keys(cells)
    columns = min(4, len(keys))
    rows = -(-len(keys) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.4 * columns, 2.2 * rows), squeeze=False)
    for axis in axes.flat[len(keys) :]:
        axis.set_visible(False)
    for axis, (task, reading) in zip(axes.flat, keys, strict=False):
        mine = [cell for cell in cells if (cell["task"], cell["pair"]) == (task, reading)]
        full = [cell["valid"] for cell in mine if cell["init"] == "full"]
        values = {
            (cell["layers"], cell["fork"]): cell["valid"]
            for cell in mine
            if (cell["init"], cell["pooling"]) == ("trunk", "cls")
        }
        forks = sorted({fork for _, fork in values})
        grid = [[values.get((layers, fork), float("nan")) for fork in forks] for layers in range(4)]
        top = statistics.mean(full) if full else None
        vmax = max([*values.values(), *([top] if top else [])])
        image = axis.imshow(grid, aspect="auto", cmap="viridis", vmax=vmax)
        for (layers, fork), value in values.items():
            axis.text(
                forks.index(fork),
                layers,
                f"{value:.2f}".lstrip("0"),
                ha="center",
                va="center",
                fontsize=7,
                color="black" if image.norm(value) > _BRIGHT else "white",
            )
        axis.set_xticks(range(len(forks)), [str(fork) for fork in forks], fontsize=7)
        axis.set_yticks(range(4), [str(layers) for layers in range(4)], fontsize=7)
        name = f"{task}, {reading}" if reading else task
        axis.set_title(name + (f" (full {top:.3f})" if top is not None else ""), fontsize=8)
    figure.supxlabel("fork", fontsize=9)
    figure.supylabel("own layers", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


write_page = page_writer(RESULT, DOCS / "map.md", made)

if __name__ == "__main__":
    write_page(RESULT)

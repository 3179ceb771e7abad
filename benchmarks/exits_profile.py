"""Where the time goes that exits do not save: `python benchmarks/exits_profile.py DATA_FOLDER --work FOLDER`.

The models of adaptive.py, of which FOLDER is, each task asked alone: the same requests in turn at speed 0 and at keep
0.99, and how much of their time goes into layers and heads, into exits, into moving the rows that go on, and into all
else, such as tokenising. Layers are told from the rows of these very requests, so that layers which take more than
their share of the time show what smaller batches cost. First seed; `--tasks` puts its rows in the place of what the
result has of them.

Result: benchmarks/results/exits_profile.json, docs/exits-profile.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from adaptive import BATCHES, MERGED, SEEDS, SINGLE, TIMED, Ready, prepared, trained
from asked import FULL, engine_of, jobs, requests
from command_line import words_of
from kept import with_rows
from numpy.typing import NDArray
from pages import DOCS, RESULTS, page_writer, table

from trunkline.atomic import write_json
from trunkline.engine.backend import Backend, Call, Mask, States
from trunkline.engine.base import Logits, Output
from trunkline.engine.cache import Cache
from trunkline.engine.choose import Choice, choose
from trunkline.engine.planned import PlannedEngine
from trunkline.machine import machine
from trunkline.model.branch import BranchSpec
from trunkline.project.speed import Dial

RESULT = RESULTS / "exits_profile.json"
KEEP = Dial(keep=0.99)
ROUNDS = 6
PARTS = ("layers", "exits", "moves")
COMMAND = "python benchmarks/exits_profile.py DATA_FOLDER --work FOLDER"


def main() -> None:
    """Train what is not there yet, measure, and write result and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds fastbert/, glue/ and utterance/, with ../vocab/")
    parser.add_argument("--work", type=Path, required=True, help="folder of adaptive.py")
    parser.add_argument("--setting", choices=("single", "merged"), required=True)
    parser.add_argument("--tasks", nargs="+", help="some of the tasks, instead of all of the setting's")
    parser.add_argument("--train-rows", type=int, default=0, help="most rows of a task that are trained on (0: all)")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    options = parser.parse_args()
    choice: Choice | None = None
    for name in options.tasks or (SINGLE if options.setting == "single" else MERGED):
        project = prepared(options, options.setting, [name], references=False)
        task = trained(project, name, options.setting, seeds=1)
        choice = choice or choose(task.trunk(), "openvino", "auto", "cpu")
        rows = [{"setting": options.setting, **profile(choice, task, batch)} for batch in BATCHES]
        write(rows, options.out)


def write(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Put these rows in the place of those of the same task, and write result and page."""
    rows = with_rows(out, rows, "setting", "task")
    write_json(out, {"command": COMMAND, "machine": machine(), "rounds": ROUNDS, "rows": rows})
    print(out, write_page(out))


class Metered:
    """A backend that counts the seconds in each sort of its work."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.seconds: Counter[str] = Counter()

    @property
    def specs(self) -> Mapping[str, BranchSpec]:
        return self._backend.specs

    @contextmanager
    def _in(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started

    def embed(self, ids: NDArray[np.int64], types: NDArray[np.int64], mask: Mask) -> States:
        with self._in("layers"):
            return self._backend.embed(ids, types, mask)

    def layer(self, index: int, states: States, mask: Mask) -> States:
        with self._in("layers"):
            return self._backend.layer(index, states, mask)

    def own_layer(self, task: str, index: int, states: States, mask: Mask) -> States:
        with self._in("layers"):
            return self._backend.own_layer(task, index, states, mask)

    def branches(self, calls: Sequence[Call]) -> list[Logits]:
        ends = all(call.part is None or call.part == self.specs[call.task].depth for call in calls)
        with self._in("layers" if ends else "exits"):  # one task is asked: all of these are alike
            return self._backend.branches(calls)

    def gather(self, taken: Sequence[tuple[States, NDArray[np.int64]]], rows: int, tokens: int) -> States:
        with self._in("moves"):
            return self._backend.gather(taken, rows, tokens)

    def keep(self, states: States, row: int, length: int) -> States:
        with self._in("moves"):
            return self._backend.keep(states, row, length)

    def join(self, kept: Sequence[States], rows: int, tokens: int) -> States:
        with self._in("moves"):
            return self._backend.join(kept, rows, tokens)


def profile(choice: Choice, task: Ready, batch: int) -> dict[str, Any]:
    """Of one task in requests of `batch`: milliseconds of each part of a request, at speed 0 and at the keep, and the
    share of the layers that its rows need at the keep.
    """
    plain: Any = engine_of(task.trunk(), choice, {task.name: task.branches[SEEDS[0]]})
    meter = Metered(plain.backend)
    engine = PlannedEngine(plain.reader, meter, cache=Cache(0))
    depth = engine.specs[task.name].depth
    drawn = requests(task.inputs, batch, TIMED[batch])
    spent: dict[Dial, list[Counter[str]]] = {FULL: [], KEEP: []}
    needed: list[int] = []
    for number in range(ROUNDS + 1):
        sums = {dial: Counter[str]() for dial in spent}
        for one in drawn:
            for dial in (FULL, KEEP) if number % 2 else (KEEP, FULL):
                asked = jobs(engine, one, [task.name], dial)
                meter.seconds.clear()
                started = time.perf_counter()
                found, _ = engine.run(asked)
                sums[dial] += meter.seconds + Counter({"all": time.perf_counter() - started})
                if dial is KEEP and not number:
                    said = [results[task.name] for results in found]
                    needed += [output.depth for output in said if isinstance(output, Output)]
        if number:  # the first round builds kernels for new shapes
            for dial, counted in sums.items():
                spent[dial].append(counted)

    def milliseconds(dial: Dial) -> dict[str, float]:
        """Medians over rounds."""
        return {
            part: 1000 * statistics.median(counted[part] for counted in spent[dial]) / len(drawn)
            for part in (*PARTS, "all")
        }

    return {
        "task": task.name,
        "backend": f"openvino {choice.dtype}",
        "batch": batch,
        "layers": statistics.mean(needed) / depth,
        "full": milliseconds(FULL),
        "keep": milliseconds(KEEP),
        "machine": machine(),
    }


def page(found: dict[str, Any], _: Path) -> str:
    """The page of a result."""
    rows = found["rows"]
    lines = [
        "# Where the time goes that exits do not save",
        "",
        f"Written by `{found['command']}`, in either setting;",
        "every figure is in `benchmarks/results/exits_profile.json`.",
        f"Machine: {words_of(found['machine'])}. Medians of {found['rounds']} rounds, at speed 0 and the keep in turn.",
        "",
        "The models of [exits: quality against time](adaptive.md), each task asked alone, at keep 0.99. *Layers* is",
        "the share of all layers that the rows of these requests need there; all else is a fraction of the time at",
        "speed 0. What *layers and heads* take beyond the share of the layers is the price of smaller batches, and of",
        "layers that run one by one. What is *else* at speed 0 no exit can save: tokenising, planning, answers.",
    ]
    head = ("setting", "task", "layers", "layers and heads at speed 0", "else", "at the keep: layers and heads")
    head = (*head, "exits", "moving rows", "else", "all")
    for batch in BATCHES:
        mine = [row for row in rows if row["batch"] == batch]
        lines += ["", f"## {mine[0]['backend']}, batch {batch}", "", *table(head, map(_shares, mine))]
    return "\n".join(lines) + "\n"


def _shares(row: dict[str, Any]) -> list[str]:
    whole = row["full"]["all"]

    def share(side: str, *parts: str) -> str:
        return f"{sum(row[side][part] for part in parts) / whole:.2f}"

    def rest(side: str) -> str:
        return f"{(row[side]['all'] - sum(row[side][part] for part in PARTS)) / whole:.2f}"

    keep = (share("keep", "layers"), share("keep", "exits"), share("keep", "moves"), rest("keep"), share("keep", "all"))
    return [row["setting"], row["task"], f"{row['layers']:.2f}", share("full", "layers"), rest("full"), *keep]


write_page = page_writer(RESULT, DOCS / "exits-profile.md", page)

if __name__ == "__main__":
    main()

"""Write a Trunkline project for the GLUE tasks of a data folder: `python prepare.py DATA_FOLDER --out glue`.

The data stays where it is: the task files only point to it. Knows the names, labels and metrics of the eight tasks (and
of some sets of utterances), and nothing about training. README.md says how the data folder has to look. It needs the
standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Task:
    """One task: the folder of its files below `group`, and the lines of its task file that are its own."""

    name: str
    kind: str
    metric: str
    pair: bool = False
    positive: str | None = None
    epochs: int = 3
    # What is searched by default: tuned layers, a student's layers, readings of a pair.
    tune: tuple[int, ...] = (2, 3, 4)
    distill: tuple[int, ...] = (1, 2, 3)
    readings: tuple[str, ...] = ("joint", "separate")
    teachers: tuple[str, ...] = ("self",)
    latents: tuple[int, ...] = (0,)
    # Learning rates of the full model: the best on valid is the baseline.
    rates: tuple[float, ...] = (1e-4,)
    # Whether the full model is also tried reading the texts of a pair apart.
    apart: bool = False
    group: str = "glue"
    folder: str = ""
    # GLUE keeps the labels of test to itself, so dev is what is reported and valid comes from train.
    files: tuple[tuple[str, str], ...] = (("train", "train"), ("valid", "valid"), ("dev", "dev"))
    # The key of labels that stand in later splits and not in train: all of them are listed in the task's file.
    unseen: str | None = None

    def path(self, split: str) -> Path:
        """The file of a split, below the data folder."""
        return Path(self.group, self.folder or self.name, f"{split}.jsonl")


OWN_VALID = (("train", "train"), ("valid", "dev"), ("test", "test"))
TRAIN_AND_DEV = (("train", "train"), ("dev", "dev"))
GLUE = (
    Task("cola", "classification", "matthews", epochs=5, tune=(2, 3, 4, 6)),
    Task("mrpc", "classification", "accuracy", True, "equivalent", 5, (3, 4), (2,), ("separate",)),
    Task("rte", "classification", "accuracy", True, None, 5, (3, 4), (2,)),
    Task("stsb", "regression", "pearson_spearman", True, None, 5, (3, 4), (2,), ("separate",)),
    Task("sst2", "classification", "accuracy"),
    Task("qnli", "classification", "accuracy", pair=True),
    Task("qqp", "classification", "accuracy", pair=True, positive="duplicate"),
    Task("mnli", "classification", "accuracy", pair=True),
)
SNIPS = (
    Task("snips_intent", "classification", "accuracy", group="utterance", folder="snips", files=OWN_VALID),
    Task("snips_slots", "tagging", "entity_f1", group="utterance", folder="snips", files=OWN_VALID),
)
OTHERS = (
    Task(
        "atis_intent", "classification", "accuracy", group="utterance", folder="atis", files=OWN_VALID, unseen="label"
    ),
    Task("atis_slots", "tagging", "entity_f1", group="utterance", folder="atis", files=OWN_VALID, unseen="tags"),
    Task("clinc150", "classification", "accuracy", epochs=8, group="utterance", files=OWN_VALID),
    Task("goemotions", "multilabel", "micro_f1", group="utterance", files=OWN_VALID),
    Task("agnews", "classification", "accuracy", group="fastbert", files=(("train", "train"), ("test", "test"))),
    Task("dbpedia", "classification", "accuracy", group="fastbert", files=(("train", "train"), ("test", "test"))),
    Task("yelp_polarity", "classification", "accuracy", group="fastbert", files=(("train", "train"), ("test", "test"))),
    Task("zh_book_review", "classification", "accuracy", group="fastbert", files=OWN_VALID),
    Task("wikiqa", "relevance", "map", True, "relevant", group="qa", files=OWN_VALID),
    Task("trecqa", "relevance", "map", True, "relevant", group="qa", files=OWN_VALID),
    Task("boolq", "classification", "accuracy", True, epochs=5, group="qa", files=TRAIN_AND_DEV),
    Task("snli", "classification", "accuracy", True, group="qa", files=TRAIN_AND_DEV),
)
ALL = (*GLUE, *SNIPS, *OTHERS)
OPTIONAL = ("valid",)  # cut from train where the file is absent


def project_file(encoder: str, seed: int, max_cost: float | None, engine: str) -> str:
    """Text of project.toml."""
    return f"""\
# Written by examples/glue/prepare.py.
encoder = {json.dumps(encoder)}
seed = {seed}

[budget]
{"min_relative_quality = 0.99" if max_cost is None else f"max_cost = {max_cost}"}

[cost]
engine = "{engine}"
"""


def labels_of(task: Task, data: Path) -> list[str]:
    """Every label of every split."""
    found: set[str] = set()
    for _, stem in task.files:
        for line in (data / task.path(stem)).read_text(encoding="utf-8").splitlines():
            value = json.loads(line)[task.unseen]
            found |= set(value) if isinstance(value, list) else {value}
    return sorted(found)


def task_file(task: Task, files: dict[str, str], rows: int, labels: list[str]) -> str:
    """Text of tasks/NAME.toml; `files` holds the path of each split, `rows` the most that are trained on (0: all), and
    `labels` all labels, where train does not have them.
    """
    lines = [
        "# Written by examples/glue/prepare.py.",
        f'kind = "{task.kind}"',
        f'metric = "{task.metric}"',
        "max_tokens = 128",
    ]
    lines += [f'positive = "{task.positive}"'] if task.positive else []
    lines += [f"labels = {json.dumps(labels)}"] if labels else []
    lines += [f"pair = {json.dumps(task.readings)}"] if task.pair else []
    lines += ["", "[data]", *(f"{split} = {json.dumps(path)}" for split, path in files.items())]
    lines += [f"max_train_rows = {rows}"] if rows else []
    student = [f"layers = {list(task.distill)}", f"teachers = {json.dumps(task.teachers)}"]
    student += [f"latents = {list(task.latents)}"] if any(task.latents) else []
    for stage, head, rate in (
        ("tune", [f"layers = {list(task.tune)}"], "2e-4"),
        ("distill", student, "2e-4"),
        ("full", ['pair = ["joint", "separate"]'] if task.pair and task.apart else [], str(list(task.rates))),
    ):
        lines += ["", f"[{stage}]", *head, f"epochs = {task.epochs}", f"learning_rate = {rate}"]
    return "\n".join(lines) + "\n"


def find_data(given: Path) -> Path:
    """The folder that holds glue/, from that folder or from glue/ itself."""
    return given.parent if not (given / "glue").is_dir() and given.resolve().name == "glue" else given


def split_files(task: Task, data: Path, out: Path) -> tuple[dict[str, str], list[str]]:
    """Split -> path as it stands in the task file (relative where `data` is), and what is missing."""
    files, missing = {}, []
    for split, stem in task.files:
        path = data / task.path(stem)
        if path.is_file():
            files[split] = str(path if data.is_absolute() else Path(os.path.relpath(path, out)))
        elif split not in OPTIONAL:
            missing.append(f"{task.name}: no file {path}")
    return files, missing


def prepare(data: Path, out: Path, tasks: list[Task], *, rows: int, project: str) -> list[str]:
    """Write the project folder; with anything missing, write nothing and return what is."""
    texts, problems = {}, []
    for task in tasks:
        files, missing = split_files(task, data, out)
        problems += missing
        labels = labels_of(task, data) if task.unseen and not missing else []
        texts[f"{task.name}.toml"] = task_file(task, files, rows, labels)
    if problems:
        return problems
    (out / "tasks").mkdir(parents=True, exist_ok=True)
    for task in ALL:  # a task that was chosen last time is not a task of this project any more
        (out / "tasks" / f"{task.name}.toml").unlink(missing_ok=True)
    (out / "project.toml").write_text(project, encoding="utf-8")
    for name, text in texts.items():
        (out / "tasks" / name).write_text(text, encoding="utf-8")
    return []


def choose(names: str | None, snips: bool) -> tuple[list[Task], list[str]]:
    """The tasks that were asked for, and names that are none."""
    known = {task.name: task for task in ALL}
    asked = [task.name for task in GLUE] if names is None else [name.strip() for name in names.split(",")]
    asked += [task.name for task in SNIPS if snips and task.name not in asked]
    return [known[name] for name in asked if name in known], [name for name in asked if name not in known]


def main() -> int:
    """Read the arguments and write the project; 2 where the arguments or the data folder are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_FOLDER", help="the folder that holds glue/")
    parser.add_argument("--out", type=Path, default=Path("glue"), metavar="FOLDER", help="project folder (glue)")
    parser.add_argument(
        "--tasks", metavar="A,B,…", help=f"some of {', '.join(task.name for task in ALL)} (all of GLUE)"
    )
    parser.add_argument("--snips", action="store_true", help="intent and slots of utterance/snips as well")
    parser.add_argument("--rows", type=int, default=10_000, help="most training rows of a task, 0 for all (10000)")
    parser.add_argument("--encoder", default="minilm", help="the trunk (minilm)")
    parser.add_argument("--seed", type=int, default=13, help="seed of training (13)")
    parser.add_argument("--tune", type=int, nargs="+", help="tuned layers L, searched (by task)")
    parser.add_argument("--distill", type=int, nargs="*", help="a student's layers l, searched (by task)")
    parser.add_argument("--pair", nargs="+", choices=["joint", "separate"], help="readings, searched (by task)")
    parser.add_argument("--teachers", nargs="+", choices=["self", "full"], help="of students (self)")
    parser.add_argument("--latents", type=int, nargs="+", help="of students, searched; 0 for none (0)")
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates of the full models, searched (1e-4)")
    parser.add_argument(
        "--apart", nargs="+", default=[], help="tasks whose full model is tried in both readings (none)"
    )
    parser.add_argument("--max-cost", type=float, help="budget: most time, as a share of separate full models'")
    parser.add_argument("--engine", default="auto", choices=["auto", "openvino", "torch"], help="measures costs (auto)")
    parser.add_argument("--replace", action="store_true", help="write over a project that is there")
    options = parser.parse_args()
    tasks, unknown = choose(options.tasks, options.snips)
    if unknown:
        parser.error(f"unknown tasks: {', '.join(unknown)} (tasks: {', '.join(task.name for task in ALL)})")
    if options.rows < 0 or 0 < options.rows < 10:
        parser.error(f"--rows {options.rows}: 0 for all, or at least 10")
    if (options.out / "project.toml").exists() and not options.replace:
        parser.error(f"{options.out} is a project already; --replace writes over it")
    data = find_data(options.data)
    given = {"tune": "tune", "distill": "distill", "readings": "pair"} | {
        field: field for field in ("teachers", "latents", "rates")
    }
    asked = {field: getattr(options, option) for field, option in given.items()}
    asked = {field: tuple(values) for field, values in asked.items() if values is not None}
    tasks = [replace(task, apart=task.name in options.apart, **asked) for task in tasks]
    project = project_file(options.encoder, options.seed, options.max_cost, options.engine)
    problems = prepare(data, options.out, tasks, rows=options.rows, project=project)
    if problems:
        print(
            "\n".join(["these files are missing (README.md says how the folder has to look):", *problems]),
            file=sys.stderr,
        )
        return 2
    print(f"{options.out}: {len(tasks)} tasks: {', '.join(sorted(task.name for task in tasks))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

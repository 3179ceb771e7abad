"""Small projects on disk: made-up data of every kind over a tiny encoder, so that a whole run takes a second or two."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tiny import tiny_encoder

from trunkline.errors import ProjectError
from trunkline.project.config import ProjectFiles
from trunkline.project.data import TaskData, read_all
from trunkline.project.files import parse_files

Table = Mapping[str, Any]

_TOPICS = {
    "alarm": ["alarm", "remind", "tomorrow", "night"],
    "music": ["music", "song", "play", "list"],
    "weather": ["weather", "rain", "cheap", "city"],
}
_FILLER = """
a all and at buy can day do for good have here i in is it let me my now of on please the to we will you
"""
_SCHEDULE = {"epochs": 1.0, "min_steps": 6, "batch_size": 8, "learning_rate": 1e-3}
SORTS: dict[str, dict[str, Any]] = {
    "intent": {"kind": "classification"},
    "tone": {"kind": "multilabel"},
    "urgency": {"kind": "regression"},
    "slots": {"kind": "tagging"},
    "same": {"kind": "relevance", "pair": ["joint", "separate"]},
}
"""One task of every kind."""


def read_project(root: Path) -> tuple[ProjectFiles, dict[str, TaskData]]:
    """The files and the data of a project. Raises ProjectError with all problems of both."""
    files, problems = parse_files(root)
    data, wrong = read_all(files)
    if problems or wrong:
        raise ProjectError([*problems, *wrong])
    return files, data


def write_project(root: Path, tasks: Mapping[str, Table], *, encoder: Path | None = None, **settings: Any) -> Path:
    """Write a project with these tasks (keys of a task file each, over small defaults) and return its folder."""
    (root / "data").mkdir(parents=True)
    (root / "tasks").mkdir()
    write_settings(root, encoder=str(encoder or tiny_encoder(root / "encoder", layers=3)), **settings)
    for name, keys in tasks.items():
        write_task(root, name, **keys)
    return root


def write_settings(root: Path, **settings: Any) -> None:
    """Write project.toml; `settings` over a small and exact reference request."""
    cost = {"batch": 2, "tokens": 8, "repeats": 2, "engine": "torch"}  # a fast engine takes seconds to build
    (root / "project.toml").write_text(as_toml({"name": "small", "precision": "float32", "cost": cost, **settings}))


def write_task(root: Path, name: str, *, rows: int = 48, seed: int = 0, **keys: Any) -> None:
    """Write tasks/NAME.toml and its data; `keys` over defaults, tables merged."""
    table: dict[str, Any] = {
        "max_tokens": 16,
        "data": {"train": f"data/{name}.jsonl", "test": f"data/{name}-test.jsonl", "valid_fraction": 0.25},
        "tune": {**_SCHEDULE, "layers": [1, 2]},
        "full": _SCHEDULE,
        "distill": {**_SCHEDULE, "layers": [1]},
    }
    for key, value in keys.items():
        table[key] = {**table[key], **value} if isinstance(table.get(key), dict) else value
    for split, count, shift in (("", rows, 0), ("-test", 16, 1000)):
        rng = np.random.default_rng([seed + shift, *name.encode()])
        lines = [json.dumps(_row(keys["kind"], "pair" in keys, rng)) for _ in range(count)]
        (root / "data" / f"{name}{split}.jsonl").write_text("\n".join(lines) + "\n")
    (root / "tasks" / f"{name}.toml").write_text(as_toml(table))


def _row(kind: str, pair: bool, rng: np.random.Generator) -> dict[str, Any]:
    topic = str(rng.choice(list(_TOPICS)))
    words = [str(word) for word in rng.choice(_FILLER.split(), rng.integers(3, 8))]
    at = int(rng.integers(len(words)))
    words[at] = str(rng.choice(_TOPICS[topic]))
    row: dict[str, Any] = {"text": " ".join(words)}
    if pair:
        row["text_pair"] = f"{rng.choice(_TOPICS[topic])} {' '.join(rng.choice(_FILLER.split(), rng.integers(1, 5)))}"
    match kind:
        case "classification":
            row["label"] = topic
        case "relevance":
            row |= {"label": "yes" if topic == "music" else "no", "group": f"g{rng.integers(12)}"}
        case "multilabel":
            row["labels"] = [topic, "long"] if len(words) > 5 else [topic]
        case "regression":
            row["score"] = round(float(len(words) + rng.normal()), 3)
        case "tagging":
            row["tokens"] = words
            row["tags"] = [f"B-{topic}" if place == at else "O" for place in range(len(words))]
    return row


def as_toml(table: Table, path: str = "") -> str:
    """Plain values first, then tables; strings, numbers and lists are written in JSON, which TOML reads alike."""
    names = {key: key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key) for key in table}
    plain = [f"{names[key]} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    tables = [
        f"\n[{path}{names[key]}]\n{as_toml(value, f'{path}{names[key]}.')}"
        for key, value in table.items()
        if isinstance(value, Mapping)
    ]
    return "\n".join([*plain, *tables]) + "\n"


class Heard:
    """Writes down which stages begin."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def begin(self, name: str, number: int, total: int, why: str) -> None:
        self.stages.append(name)

    def advance(self, position: object) -> None: ...
    def done(self, name: str, summary: str, seconds: float) -> None: ...

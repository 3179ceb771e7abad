"""Where a task's rows come from, and what of its settings decides how they are prepared.

Enough for planning: reads no rows but the first one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trunkline.errors import Problem, ProjectError
from trunkline.project.config import REPORTED, SPLITS, TaskSettings
from trunkline.project.hub import HubError, HubSet, at_commit, columns_of
from trunkline.project.readers import peek_columns
from trunkline.project.tasks import TARGET, Kind

HUB = "hub:"

Commits = dict[HubSet, str]
"""Sets of the hub, apart from their splits, with the commits found for them."""


def sources(root: Path, settings: TaskSettings) -> dict[str, Path]:
    """Split -> local file, for the splits that name one; sets of the hub are left out."""
    return {split: Path(root) / name for split, name in _named(settings).items() if not name.startswith(HUB)}


def hub_sets(name: str, settings: TaskSettings, commits: Commits) -> dict[str, str]:
    """Split -> set of the hub at its commit, for the splits that name one.

    Every set is looked up once: `commits` holds those known already and takes up the others, so that all splits and
    tasks read the same. Raises ProjectError for sets that cannot be had, MissingExtra where only the cache could know.
    """
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for split, source in _named(settings).items():
        if not source.startswith(HUB):
            continue
        wanted = HubSet.parse(source)
        whole = replace(wanted, split="")
        try:
            if whole not in commits:
                commits[whole] = str(at_commit(wanted).revision)
            found[split] = str(replace(wanted, revision=commits[whole]))
        except HubError as error:
            problems.append(error.problem((f"tasks/{name}.toml", f"data.{split}"), source))
    if problems:
        raise ProjectError(problems)
    return found


def pinned(settings: TaskSettings, named: Mapping[str, str]) -> TaskSettings:
    """The same settings, with sets of the hub read as `named` has them: split -> source, others ignored."""
    changed = {split: name for split, name in named.items() if name.startswith(HUB)}
    return settings.model_copy(update={"data": settings.data.model_copy(update=changed)}) if changed else settings


def _named(settings: TaskSettings) -> dict[str, str]:
    return {split: name for split in SPLITS if (name := getattr(settings.data, split)) is not None}


def data_fields(settings: TaskSettings) -> dict[str, Any]:
    """Exactly the settings that decide what `read_task` gives for the same file contents.

    A fraction counts only where that cut is made, a separator only for a file that it is used on, and a path only by
    its name (which row ids are made of): moving a file changes nothing. A set of the hub has no contents beside its
    name, so give it here at its commit (`hub_sets`).
    """
    data, named = settings.data, _named(settings)
    suffixes = {Path(name).suffix.lower() for name in named.values() if not name.startswith(HUB)}
    columns = data.columns
    roles = ["text", TARGET[settings.kind], "id", "group", "tokens" if settings.kind is Kind.TAGGING else "text_pair"]
    fields: dict[str, Any] = {
        "kind": settings.kind.value,
        "labels": settings.labels,
        "positive": settings.positive,
        "pair": settings.pair is not None or columns.names("text_pair"),
        "sources": {split: name if name.startswith(HUB) else Path(name).name for split, name in named.items()},
        "columns": {role: columns.name_of(role) for role in roles},
        "grouped": columns.names("group"),
        "max_train_rows": data.max_train_rows,
    }
    if settings.kind is Kind.MULTILABEL and suffixes & {".csv", ".tsv"}:
        fields["label_separator"] = data.label_separator
    if ".csv" in suffixes:
        fields["separator"] = data.separator
    cuts_test = not any(split in named for split in REPORTED)
    if "valid" not in named:
        fields["valid_fraction"] = data.valid_fraction
    if cuts_test:
        fields["test_fraction"] = data.test_fraction
    if cuts_test or "valid" not in named or data.max_train_rows is not None:
        fields["seed"] = data.seed
    return fields


def reads_pairs(root: Path, settings: TaskSettings) -> bool:
    """Whether the task reads pairs: it says so, or its train file has a `text_pair` column.

    Looks at the first row only. A file that cannot be read has no pairs; a set of the hub raises HubError, or
    MissingExtra without `datasets`.
    """
    data = settings.data
    if settings.kind is Kind.TAGGING:
        return False
    if settings.kind is Kind.RELEVANCE or settings.pair is not None or data.columns.names("text_pair"):
        return True
    hub = data.train.startswith(HUB)
    columns = columns_of(HubSet.parse(data.train)) if hub else peek_columns(root, data.train, data.separator)
    return data.columns.name_of("text_pair") in columns

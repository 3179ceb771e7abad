"""Where a task's rows come from, and what of its settings decides how they are prepared.

Enough for planning: reads no rows but the first one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trunkline.project.config import REPORTED, SPLITS, TaskSettings
from trunkline.project.readers import peek_columns, read_table
from trunkline.project.tasks import TARGET, Kind


def sources(root: Path, settings: TaskSettings) -> dict[str, Path]:
    """Split -> local file, for the splits that name one; sets of the hub are left out."""
    named = {split: getattr(settings.data, split) for split in SPLITS}
    return {split: Path(root) / name for split, name in named.items() if name and not name.startswith("hub:")}


def data_fields(settings: TaskSettings) -> dict[str, Any]:
    """Exactly the settings that decide what `read_task` gives for the same file contents.

    A fraction counts only where that cut is made, a separator only for a file that it is used on, and a path only by
    its name (which row ids are made of): moving a file changes nothing.
    """
    data = settings.data
    named = {split: name for split in SPLITS if (name := getattr(data, split)) is not None}
    suffixes = {Path(name).suffix.lower() for name in named.values() if not name.startswith("hub:")}
    columns = data.columns
    roles = ["text", TARGET[settings.kind], "id", "group", "tokens" if settings.kind is Kind.TAGGING else "text_pair"]
    fields: dict[str, Any] = {
        "kind": settings.kind.value,
        "labels": settings.labels,
        "positive": settings.positive,
        "pair": settings.pair is not None or columns.names("text_pair"),
        "sources": {split: name if name.startswith("hub:") else Path(name).name for split, name in named.items()},
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

    Looks at the file's first row only (for a set of the hub, at the whole). A file that cannot be read has no pairs.
    """
    data = settings.data
    if settings.kind is Kind.TAGGING:
        return False
    if settings.kind is Kind.RELEVANCE or settings.pair is not None or data.columns.names("text_pair"):
        return True
    if data.train.startswith("hub:"):
        table = read_table(root, data.train, ("", ""), data.separator)
        return not isinstance(table, list) and data.columns.name_of("text_pair") in table.columns
    return data.columns.name_of("text_pair") in peek_columns(root, data.train, data.separator)

"""Sets of the Hugging Face hub: the commit that a name stands for, its columns, its rows.

A set may change under its name, so it is always read at one commit: the one that its name says, else the one that the
hub gives now, else, where the hub cannot be reached, the one in the local cache. Knows names, and the libraries that
fetch (`datasets` comes with the extra `[hub]`); nothing of tasks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from trunkline.errors import MissingExtra, Problem
from trunkline.project.explain import show
from trunkline.project.values import HUB_NAME

# 16 digits: what the library calls the version of a folder that it takes for a set.
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{16}")
_PATIENCE = 20.0
"""Seconds that the hub has to name a commit."""


@dataclass(frozen=True)
class HubSet:
    """One split of a set, as "hub:owner/name[:config][@revision]#split" names it; `str` gives the name back."""

    name: str
    config: str | None
    revision: str | None
    split: str

    @classmethod
    def parse(cls, source: str) -> HubSet:
        """What `source` names; project files hold no other names that start with "hub:"."""
        found = HUB_NAME.fullmatch(source)
        if found is None:
            raise AssertionError(f"not a hub name: {source}")
        return cls(**found.groupdict())

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hub:{self.name}{config}{revision}#{self.split}"

    @property
    def pinned(self) -> bool:
        """Whether the name holds a commit, and so always means the same rows."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


class HubError(Exception):
    """A set that cannot be had, with the reason in one line."""

    def problem(self, where: tuple[str, str], source: str) -> Problem:
        """The problem of the (file, key) that names the set."""
        return Problem(*where, "cannot be loaded from the hub", f"{show(source)}: {self}", "a public or cached set")


def at_commit(wanted: HubSet) -> HubSet:
    """The set at the commit that it stands at now.

    Raises HubError where neither the hub nor the cache knows it, MissingExtra for the cache without `datasets`.
    """
    if wanted.pinned:
        return wanted
    from huggingface_hub import HfApi

    try:
        found = HfApi().dataset_info(wanted.name, revision=wanted.revision, timeout=_PATIENCE, expand=["sha"])
    except Exception as error:  # whatever the hub client raises, the hub has given no commit
        if wanted.revision is not None:  # the cache knows commits, not what branches and tags stood for
            raise HubError(f"{_said(error)} (without the hub, only a commit of 40 digits can be looked up)") from error
        return replace(wanted, revision=str(_builder(wanted).hash))
    return replace(wanted, revision=str(found.sha))


def columns_of(wanted: HubSet) -> tuple[str, ...]:
    """Columns of a set, by its description or else by its first row; the set is not loaded.

    Raises HubError, MissingExtra.
    """
    builder = _builder(at_commit(wanted))
    if builder.info.features:
        return tuple(builder.info.features)
    first = re.match(r"[\w.]*", wanted.split)  # streams know no slices such as train[:10%]
    try:
        return tuple(next(iter(builder.as_streaming_dataset(split=first and first[0])), {}))
    except Exception as error:  # the library raises anything from its own and from pandas, pyarrow and fsspec
        raise HubError(_said(error)) from error


def read_set(wanted: HubSet) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Columns and rows of a set, with the names of its labels for their numbers. Raises HubError, MissingExtra."""
    builder = _builder(at_commit(wanted))
    try:
        builder.download_and_prepare()
        loaded = builder.as_dataset(split=wanted.split)
    except Exception as error:
        raise HubError(_said(error)) from error
    names = {column: named for column, kind in loaded.features.items() if (named := _class_names(kind)) is not None}
    rows = [{column: _named(cell, names.get(column)) for column, cell in row.items()} for row in loaded]
    return tuple(loaded.column_names), rows


def _builder(wanted: HubSet) -> Any:
    """What the library knows of the set without its rows."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra("hub", f"reading {wanted}") from None
    try:
        builder = datasets.load_dataset_builder(wanted.name, wanted.config, revision=wanted.revision)
    except Exception as error:
        raise HubError(_said(error)) from error
    # Without the hub, the library takes whatever its cache holds.
    if wanted.revision is not None and builder.hash != wanted.revision:
        raise HubError(f"the hub does not give commit {wanted.revision}, and the cache holds {builder.hash}")
    return builder


def _said(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _class_names(kind: Any) -> list[str] | None:
    inner = getattr(kind, "feature", kind)
    names = getattr(inner, "names", None)
    return list(names) if names else None


def _named(cell: Any, names: list[str] | None) -> Any:
    if names is None:
        return cell
    if isinstance(cell, list):
        return [_named(part, names) for part in cell]
    # Unlabelled splits of the hub carry -1.
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else None

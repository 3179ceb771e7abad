"""The typed files of a project: `project.toml` and `tasks/NAME.toml`.

Knows every key, its type, range and default (the reference page is made from these fields), and which keys contradict
each other. Does not open data files, and knows nothing of encoders. Reading the files: `load_files`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from trunkline.project.stage_settings import (
    AdaptSettings,
    DistillSettings,
    ExitSettings,
    FullSettings,
    PretrainSettings,
    ScopeSettings,
    Settings,
    TuneSettings,
)
from trunkline.project.tasks import DEFAULT_METRIC, Kind
from trunkline.project.teachers import soft_file
from trunkline.project.values import HUB_FORM, Distinct, Readings, Searched, Seed, Source, Text

TASK_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
REPORTED = ("dev", "test")
SPLITS = ("train", "valid", *REPORTED)


class BudgetSettings(Settings):
    """What the merged model may lose, or what it may cost. At most one of the two."""

    min_relative_quality: Annotated[float, Field(gt=0, le=1.2)] = Field(
        default=0.996,
        description="Least average quality on `valid`, as a fraction of full fine-tuning; the cheapest set wins.",
    )
    max_cost: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Most time, as a fraction of the measured time of separate full models; the best set wins.",
    )


class CostSettings(Settings):
    """The reference request that costs are measured on."""

    batch: int = Field(default=32, ge=1, le=4096, description="Rows of the reference request.")
    tokens: int = Field(default=32, ge=4, le=8192, description="Tokens of each of its rows.")
    engine: Literal["auto", "openvino", "torch"] = Field(
        default="auto",
        description="CPU engine that costs are measured on; auto takes what `trunkline serve` takes on this CPU.",
    )
    repeats: int = Field(default=9, ge=1, le=1000, description="Timed repeats; the median counts.")


class SearchSettings(Settings):
    """How wide to search."""

    seeds: int = Field(default=1, ge=1, le=100, description="Seeds tried per candidate: seed, seed + 1, …")
    marginal_gain: float = Field(
        default=0.005,
        ge=0,
        le=1,
        description="c of the rule of Wei et al., reported beside: add layers while they gain c.",
    )


class StoreSettings(Settings):
    """Bounds of the store."""

    max_states_gb: float = Field(default=8, gt=0, description="Most disk, in GB, for cached trunk states.")


class ProjectSettings(Settings):
    """project.toml."""

    name: Text = Field(default="", description="Name of the project; by default that of its folder.")
    encoder: Text = Field(default="minilm", description="The trunk: `minilm`, a folder, or a Hugging Face hub name.")
    revision: Text | None = Field(default=None, description="Revision of an encoder from the hub.")
    seed: Seed = Field(default=13, description="Seed of training.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to train.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Arithmetic of training; auto takes bfloat16 where the machine is fast at it."
    )
    budget: BudgetSettings = Field(default=BudgetSettings(), description="What the merged model may lose or cost.")
    cost: CostSettings = Field(default=CostSettings(), description="How costs are measured.")
    search: SearchSettings = Field(default=SearchSettings(), description="How wide to search.")
    adapt: AdaptSettings = Field(default=AdaptSettings(), description="How a trunk is adapted to the tasks.")
    store: StoreSettings = Field(default=StoreSettings(), description="Bounds of the store.")


class ColumnSettings(Settings):
    """Which column of the data files holds what; by default the column of the same name."""

    text: Text | None = Field(default=None, description="The text.")
    text_pair: Text | None = Field(
        default=None, description="The second text of a pair; naming it makes the task a pair task."
    )
    label: Text | None = Field(default=None, description="Label of a classification or relevance task.")
    score: Text | None = Field(default=None, description="Number of a regression task.")
    labels: Text | None = Field(
        default=None, description="Labels of a multilabel task: a list, or text cut at `label_separator`."
    )
    tokens: Text | None = Field(
        default=None, description="Words of a tagging task: a list, or in csv and tsv text cut at white space."
    )
    tags: Text | None = Field(
        default=None, description="Their BIO tags: a list, or in csv and tsv text cut at white space."
    )
    id: Text | None = Field(default=None, description="Optional: identifies a row; must be unique within a file.")
    group: Text | None = Field(
        default=None,
        description="Rows that belong together and are never cut apart. Relevance: the query, by default the text; "
        "other kinds: only where this key is given.",
    )

    def name_of(self, role: str) -> str:
        """The column that holds `role`."""
        return getattr(self, role) or role

    def names(self, role: str) -> bool:
        """Whether the file says which column holds `role`."""
        return getattr(self, role) is not None


class DataSettings(Settings):
    """Where a task's rows are and how they are cut."""

    train: Source = Field(
        description=f"File, from the project's folder, or {HUB_FORM}; a set of the hub is identified by its commit."
    )
    valid: Source | None = Field(default=None, description="Rows to select on; by default cut from train.")
    dev: Source | None = Field(default=None, description="Rows to report on.")
    test: Source | None = Field(
        default=None, description="Rows to report on, before dev where both are given; cut from train where neither is."
    )
    unlabelled: Annotated[list[Text], Searched, Distinct] = Field(
        default=[],
        description="Files with the same columns but for the label, whose texts [exits](exits.md) learn from besides "
        "those of train.",
    )
    columns: ColumnSettings = Field(default=ColumnSettings(), description="Which column holds what.")
    label_separator: Annotated[str, Field(min_length=1)] = Field(
        default="|",
        description="Between the labels of a multilabel cell in csv and tsv; a cell of only this means no label.",
    )
    separator: Annotated[str, Field(min_length=1, max_length=1)] = Field(
        default=",", description="Between the cells of a csv."
    )
    valid_fraction: float = Field(default=0.1, gt=0, le=0.5, description="Share of train that is cut as valid.")
    test_fraction: float = Field(default=0.1, gt=0, le=0.5, description="Share of train that is cut as test.")
    max_train_rows: Annotated[int, Field(ge=10)] | None = Field(
        default=None, description="Keep at most this many rows of train, drawn before any cut."
    )
    seed: Seed = Field(
        default=13, description="Seed of cuts and draws; apart from the project's, so that all seeds share splits."
    )


class TaskSettings(Settings):
    """tasks/NAME.toml."""

    kind: Annotated[Kind, Field(strict=False)] = Field(description="What the task says about a text.")
    metric: Text | None = Field(default=None, description="What candidates are compared by; each kind has a default.")
    max_tokens: int = Field(default=128, ge=8, le=8192, description="Longer inputs are truncated.")
    labels: Annotated[list[Text], Distinct, Field(min_length=1)] | None = Field(
        default=None, description="All labels (tagging: all tags); by default those that occur in train."
    )
    positive: Text | None = Field(default=None, description="The label that f1 and relevance are about.")
    pair: Readings | None = Field(
        default=None,
        description="How a pair is read, searched; by default both ways. Naming it makes the task a pair task.",
    )
    data: DataSettings = Field(description="Where the rows are.")
    tune: TuneSettings = Field(default=TuneSettings(), description="Partial fine-tuning.")
    full: FullSettings = Field(default=FullSettings(), description="Full fine-tuning.")
    pretrain: PretrainSettings = Field(default=PretrainSettings(), description="The first of two stages.")
    distill: DistillSettings = Field(default=DistillSettings(), description="Distillation.")
    scope: ScopeSettings = Field(default=ScopeSettings(), description="Out-of-scope flags of the chosen branch.")
    exits: ExitSettings = Field(default=ExitSettings(), description="Exits of the chosen branch.")

    @property
    def soft_files(self) -> list[str]:
        """The files that hold teachers' soft labels."""
        return [path for name in self.distill.teachers if (path := soft_file(name)) is not None]

    @property
    def primary_metric(self) -> str:
        """The metric that candidates are compared by."""
        return self.metric or DEFAULT_METRIC[self.kind]


@dataclass(frozen=True)
class ProjectFiles:
    """A project as its files describe it; tasks by name, sorted."""

    root: Path
    settings: ProjectSettings
    tasks: Mapping[str, TaskSettings]


def load_files(root: Path) -> ProjectFiles:
    """Read `project.toml` and every `tasks/NAME.toml`. Raises ProjectError with all problems of all files."""
    from trunkline.errors import ProjectError
    from trunkline.project.files import parse_files

    files, problems = parse_files(root)
    if problems:
        raise ProjectError(problems)
    return files

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

from pydantic import BaseModel, ConfigDict, Field

from trunkline.project.speed import Rule
from trunkline.project.tasks import DEFAULT_METRIC, Kind
from trunkline.project.teachers import soft_file
from trunkline.project.values import (
    HUB_FORM,
    Distinct,
    LabelMaps,
    Layers,
    Modes,
    Rate,
    Readings,
    Rising,
    Searched,
    Seed,
    Source,
    Starts,
    Teacher,
    Text,
    Weights,
)

TASK_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
REPORTED = ("dev", "test")
SPLITS = ("train", "valid", *REPORTED)


class Settings(BaseModel):
    """One table of a file: typed, frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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


class TrainSettings(Settings):
    """A training schedule."""

    epochs: float = Field(default=3.0, gt=0, le=1000, description="Passes over train.")
    batch_size: int = Field(default=32, ge=1, le=4096, description="Rows per optimiser step.")
    min_steps: int = Field(default=300, ge=0, description="Floor on optimiser steps; small tasks collapse without one.")
    patience: int = Field(default=3, ge=1, description="Stop after so many evaluations on valid without a new best.")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="Share of all steps over which the learning rate rises.")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="Decoupled weight decay.")


class AdaptSettings(TrainSettings):
    """`trunkline trunk adapt`: the encoder trained on several tasks at once, before it is frozen again."""

    learning_rate: Rate = Field(default=1e-4, description="Peak learning rate.")
    tasks: Annotated[list[Text], Distinct] = Field(default=[], description="Tasks that take part; an empty list: all.")
    layers: Annotated[Layers, Rising, Field(min_length=1)] | None = Field(
        default=None,
        description="Numbers of the encoder's layers, from 1, that a [light trunk](trunks.md) starts from; by default "
        "all.",
    )
    depths: Layers = Field(
        default=[], description="Depths whose states a head of each task reads while it trains; an empty list: the top."
    )
    sampling: float = Field(
        default=1.0,
        ge=1,
        le=100,
        description="A task's share of the steps is rows ** (1 / sampling): 1 takes every row as often, more lifts the "
        "small tasks.",
    )
    teachers: Literal["none", "full"] = Field(
        default="none", description="Whose logits are learned besides the labels: `full` the task's full model."
    )
    temperature: float = Field(default=2.0, gt=0, le=100, description="T of the distillation loss.")
    gold_weight: float = Field(default=1.0, ge=0, le=100, description="Weight of the loss on the labels.")
    masked: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the steps that predict masked words, as BERT was trained: of the tasks' train texts and "
        "of `unlabelled`.",
    )
    unlabelled: Annotated[list[Text], Searched, Distinct] = Field(
        default=[], description="Data files with a column `text` to predict masked words of."
    )

    def depth(self, whole: int) -> int:
        """Layers of the trunk that it makes of an encoder of `whole` layers."""
        return len(self.layers) if self.layers else whole


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
    unlabelled: Annotated[list[Text], Distinct] = Field(
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


class TuneSettings(TrainSettings):
    """Fine-tuning of the top L layers over the frozen trunk."""

    learning_rate: Rate = Field(default=2e-4, description="Peak learning rate.")
    layers: Annotated[Layers, Field(min_length=1)] = Field(
        default=[2, 3], description="L, searched: own layers of a teacher."
    )
    pooling: Literal["cls", "mean", "concat"] = Field(
        default="cls",
        description="What the head reads of one text or a joint pair: [CLS], the mean over its tokens, or both and the "
        "maximum side by side. Only with `cls` is the last own layer computed for one position alone.",
    )


class FullSettings(TrainSettings):
    """Fine-tuning of all weights: the baseline, and a teacher."""

    learning_rate: Annotated[list[Rate], Searched, Distinct, Field(min_length=1)] = Field(
        default=[1e-4],
        description="Peak learning rate, searched: the best on `valid` is the baseline, the first one teaches.",
    )
    pair: Readings = Field(
        default=["joint"], description="How it reads a pair, searched like the learning rate; tagging reads jointly."
    )


class PretrainSettings(TrainSettings):
    """The first of two stages: students learn what teachers said of unlabelled texts, in [shards](shards.md), before
    they learn the task (TMKD). Asked for by `distill.init = "pretrained"`.
    """

    shards: Annotated[list[Text], Searched, Distinct] = Field(
        default=[],
        description="Folders that `trunkline teach` filled, from the project's folder: one for each teacher, all of "
        "the same texts.",
    )
    epochs: float = Field(default=1.0, gt=0, le=1000, description="Passes over the shards.")
    patience: int = Field(
        default=10, ge=1, description="Stop after so many evaluations on valid, of 10 in all, without a new best."
    )
    learning_rate: Rate = Field(default=2e-4, description="Peak learning rate.")
    init: Literal["teacher", "trunk", "random"] = Field(
        default="teacher", description="What the layers start from in this stage; see `distill.init`."
    )
    mode: Literal["mean", "mean_logits", "heads"] = Field(
        default="mean", description="How several teach together; see `distill.mode`."
    )
    loss: Literal["kl", "mse"] = Field(default="kl", description="Distance from a teacher; see `distill.loss`.")
    temperature: float = Field(default=2.0, gt=0, le=100, description="T of the distillation loss.")


class DistillSettings(TrainSettings):
    """Distillation of L tuned layers into the l layers of a student."""

    learning_rate: Rate = Field(default=2e-4, description="Peak learning rate.")
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Searched, Distinct] = Field(
        default=[1, 2],
        description="l, searched: each is used with every larger L, and with an equal one where another teaches; 0 is "
        "a head alone, an empty list: none.",
    )
    latents: Annotated[list[Annotated[int, Field(ge=0, le=64)]], Searched, Distinct, Field(min_length=1)] = Field(
        default=[0],
        description="Searched: so many vectors stand for a row in the student's layers, in place of its tokens, and "
        "cost that little; 0: the tokens do. Tagging has none.",
    )
    crossing: int = Field(
        default=1, ge=1, description="Of the student's layers, those in which latents read the trunk's states."
    )
    teachers: Annotated[list[Teacher], Searched, Distinct, Field(min_length=1)] = Field(
        default=["self"],
        description="Whose logits the student learns: `self` the tuned layers that it starts from, `tune:L` others, "
        "`full` the full model, `full:TRUNK` that of another trunk (each also with `@SEED`), `path:FOLDER` or "
        "`hub:OWNER/NAME` a fine-tuned classifier, `project:FOLDER#TASK` a task of another project's release, "
        "`file:PATH` [soft labels](teachers.md) from anywhere.",
    )
    compare: bool = Field(
        default=False,
        description="Whether students of fewer teachers are tried, too, to see "
        "[which one helped](teachers.md#which-teacher-helped): of none, of each alone, of all but each.",
    )
    mode: Modes = Field(
        default=["mean"],
        description="How several teach together, searched: the `mean` of what each softens to, `mean_logits` that of "
        "their logits, `heads` one head for each and one for the labels, merged into one at the end, `best` for each "
        "row the one nearest to its label.",
    )
    loss: Annotated[list[Literal["kl", "mse"]], Searched, Distinct, Field(min_length=1)] = Field(
        default=["kl"],
        description="Distance from a teacher, searched: `kl` cross entropy with what it softens to, `mse` squared "
        "distance; regression knows the latter alone.",
    )
    weights: Weights = Field(
        default={}, description="How much a teacher counts against the others, searched; 1 where nothing is said."
    )
    label_maps: LabelMaps = Field(
        default={},
        description="What labels of a foreign teacher are called in the task, where not the same; several may become "
        'one, and `""` stands for what the task does not have.',
    )
    init: Starts = Field(
        default=["teacher"],
        description="Start of the student's layers, searched: l of the teacher's, of the encoder's, random, or all of "
        "what the first stage made (`[pretrain]`).",
    )
    take: Annotated[list[Literal["bottom", "spread", "top"]], Searched, Distinct, Field(min_length=1)] = Field(
        default=["bottom"],
        description="Which l of the teacher's, or of the encoder's, layers above the fork these are, searched: the "
        "lowest, those that lie evenly from the lowest to the highest, the highest.",
    )
    temperature: Annotated[list[Annotated[float, Field(gt=0, le=100)]], Searched, Distinct, Field(min_length=1)] = (
        Field(default=[2.0], description="T of the distillation loss, searched.")
    )
    gold_weight: Annotated[list[Annotated[float, Field(ge=0, le=100)]], Searched, Distinct, Field(min_length=1)] = (
        Field(default=[1.0], description="Weight of the loss on the labels, searched.")
    )

    @property
    def taught_by_others(self) -> bool:
        """Whether a student has teachers besides the tuned layers that it starts from."""
        return any(teacher != "self" for teacher in self.teachers)


class ExitSettings(TrainSettings):
    """Exits, where rows may leave before the head: small classifiers on the way to the head of the chosen branch, which
    teaches them on train rows, labels unused (FastBERT).
    """

    enabled: bool = Field(default=False, description="Whether the chosen branch gets exits.")
    forms: Annotated[list[Literal["attention", "linear"]], Searched, Distinct, Field(min_length=1)] = Field(
        default=["attention", "linear"],
        description="How an exit reads states, searched: `attention` FastBERT's narrow self-attention, `linear` one "
        "linear layer on [CLS] and the mean, in tagging on each token.",
    )
    depths: Layers = Field(
        default=[],
        description="Layers after which there is an exit, counted from the embeddings through the trunk and the "
        "branch's own; an empty list: those that save measured time on `valid`.",
    )
    rule: Annotated[Rule, Field(strict=False)] = Field(
        default=Rule.ENTROPY,
        description="What makes a row leave: an exit that is sure (`entropy`), or exits that agree (`patience`).",
    )
    learning_rate: Rate = Field(default=2e-3, description="Peak learning rate.")
    epochs: float = Field(default=5.0, gt=0, le=1000, description="Passes over train.")


class ScopeSettings(Settings):
    """Texts that are unlike those that the task was trained on are flagged, by the states that the chosen branch reads
    anyway: [out of scope](out-of-scope.md).
    """

    enabled: bool = Field(default=False, description="Whether the chosen branch flags texts that are out of scope.")
    false_alarms: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Share of the texts that are in scope which are flagged all the same, as `valid` says.",
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

"""The tables of a project's files that say how a stage works: `[adapt]`, `[tune]`, `[full]`, `[pretrain]`, `[distill]`,
`[exits]`, `[scope]`.

Knows keys, types, ranges and defaults, as `config` does, whose files these tables are part of.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from trunkline.project.speed import Rule
from trunkline.project.values import (
    Distinct,
    LabelMaps,
    Layers,
    Modes,
    Rate,
    Readings,
    Rising,
    Searched,
    ShardWeights,
    Starts,
    Teacher,
    Text,
    Weights,
)


class Settings(BaseModel):
    """One table of a file: typed, frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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
    weights: ShardWeights = Field(
        default={},
        description="How much the teacher of a folder counts against the others; 1 where nothing is said.",
    )
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
        "`tune:L/READING` those that read pairs so, `full` the full model, `full:TRUNK` that of another trunk (each "
        "also with `@SEED`), `path:FOLDER` or `hub:OWNER/NAME` a fine-tuned classifier, `project:FOLDER#TASK` a task "
        "of another project's release, "
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
    hidden: Annotated[list[Annotated[float, Field(ge=0, le=100)]], Searched, Distinct, Field(min_length=1)] = Field(
        default=[0.0],
        description="Weight of a loss on hidden states, searched: the squared distance of the student's layers from "
        "those of `self`. 0: none; latents, and a head alone, have none.",
    )
    layer_map: Annotated[list[Literal["uniform", "top"]], Searched, Distinct, Field(min_length=1)] = Field(
        default=["uniform"],
        description="Which of those layers the student's are compared with, searched: evenly, the last with the last, "
        "or the highest.",
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

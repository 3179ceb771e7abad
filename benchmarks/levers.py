"""What each lever does for a cheap branch, one at a time: `python benchmarks/levers.py DATA_FOLDER --work FOLDER`.

The branch that all are compared with: one layer over [CLS] at fork 4 of the trunk as published, trained on the labels.
Each lever changes one thing about it; small GLUE tasks, three seeds, rows and epochs capped as on the map. `--encoder`
takes another trunk, such as an adapted one, and adds its figures to the result. Levers that turned out to help are
settings of a project; the others live here alone.

Result: benchmarks/results/levers.json, docs/levers.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Bench, figures, run_all, shortened
from data_projects import write_project
from levers_page import BASE, RESULT, write_page
from torch import Tensor, nn
from torch.nn import functional as F

from trunkline.atomic import write_json
from trunkline.machine import machine
from trunkline.model.branch import Branch, Reading, load_branch, new_branch
from trunkline.model.encoders import Encoder
from trunkline.model.heads import Pooling
from trunkline.pipeline.execute import BRANCH, ENCODER
from trunkline.pipeline.progress import Silent
from trunkline.pipeline.project import Project
from trunkline.pipeline.stages import StageKind
from trunkline.project.data import TaskData
from trunkline.project.tasks import Kind
from trunkline.training.candidates import OverStates, Trained, logits_of, train
from trunkline.training.loop import BatchRows
from trunkline.training.material import FIT, TaskMaterial
from trunkline.training.teaching import SoftLoss, Teaching, distilled, gold

TASKS = ("cola", "mrpc", "rte", "stsb")
SEEDS = (13, 14, 15)
ROWS = 2_500
HEADS = 12
"""Parts of a state whose relations are compared on their own, as MiniLM does per attention head."""
REPLACED = 0.15
"""Share of words that masked text takes from other rows."""


@dataclass(frozen=True)
class Recipe:
    """A branch and how it is trained; the defaults are what levers are compared with.

    `mixed` counts the depths, the fork the deepest, that it reads a learned mix of. `hidden` and `relation` are weights
    of losses against the last states of the full model, `hidden_cls` of the first one's [CLS] alone. `extra` is text
    that only the teacher labels: "recombined" or "masked", as many rows as train has.
    """

    fork: int = 4
    layers: int = 1
    pooling: str = "cls"
    latents: int = 0
    crossing: int = 1
    mixed: int = 1
    random: bool = False
    taught: bool = False
    temperature: float = 2.0
    gold_weight: float = 1.0
    hidden: float = 0.0
    hidden_cls: float = 0.0
    relation: float = 0.0
    extra: str = ""
    longer: float = 1.0


TAUGHT = Recipe(taught=True)
LEVERS = {
    BASE: Recipe(),
    "random start": Recipe(random=True),
    "three times as long": Recipe(longer=3.0),
    "mean": Recipe(pooling="mean"),
    "concat": Recipe(pooling="concat"),
    "mix of 3 depths": Recipe(mixed=3),
    "4 latents": Recipe(latents=4),
    "8 latents": Recipe(latents=8),
    "8 latents, 2 layers, 1 crosses": Recipe(latents=8, layers=2),
    "two layers": Recipe(layers=2),
    "fork 5": Recipe(fork=5),
    "fork 3": Recipe(fork=3),
    "distilled, T 2": TAUGHT,
    "distilled, T 1": replace(TAUGHT, temperature=1.0),
    "distilled, T 4": replace(TAUGHT, temperature=4.0),
    "distilled, no labels": replace(TAUGHT, gold_weight=0.0),
    "distilled, labels x 4": replace(TAUGHT, gold_weight=4.0),
    "distilled, three times as long": replace(TAUGHT, longer=3.0),
    "distilled, hidden states": replace(TAUGHT, hidden=1.0),
    "distilled, state of [CLS]": replace(TAUGHT, hidden_cls=1.0),
    "distilled, relations": replace(TAUGHT, relation=1.0),
    "distilled, recombined text": replace(TAUGHT, extra="recombined"),
    "distilled, masked text": replace(TAUGHT, extra="masked"),
}


@dataclass(frozen=True)
class Trial:
    """A lever on a task with a seed, over the trunk of this fingerprint."""

    trunk: str
    task: str
    lever: str
    seed: int


def main() -> None:
    """Train what is not trained yet, and write result and page of all that is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds glue/")
    parser.add_argument("--work", type=Path, required=True, help="folder of the project, kept between runs")
    parser.add_argument("--encoder", type=Path, help="a trunk, instead of the one as published")
    parser.add_argument("--levers", nargs="+", default=list(LEVERS), help="some of them, by name")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="some of the tasks")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    parser.add_argument("--page", type=Path, help="page, instead of docs/levers.md or beside the result")
    options = parser.parse_args()
    encoder = ["--encoder", str(options.encoder.resolve())] if options.encoder else []
    write_project(options.data, options.work, options.tasks, "--rows", str(ROWS), "--distill", "--tune", "2", *encoder)
    project = shortened(Project.load(options.work), {})
    bench = Bench(project, options.work)
    trunk = project.source.fingerprint[:16]
    levers = dict.fromkeys([BASE, *options.levers])
    trials = [Trial(trunk, task, lever, seed) for task in options.tasks for lever in levers for seed in SEEDS]
    held: list[Taught] = []

    def run(trial: Trial) -> dict[str, Any]:
        if not held or held[0].task != trial.task:
            held[:] = [Taught(bench, trial.task)]
        recipe = LEVERS[trial.lever]
        return figures(bench.material(trial.task), trained(bench, held[0], recipe, trial.seed))

    found = json.loads(options.out.read_text()) if options.out.exists() else {"trunks": {}}

    def about(trial: Trial) -> dict[str, Any]:
        return {**bench.about(trial.task), "recipe": asdict(LEVERS[trial.lever])}

    rows = run_all(trials, options.work / "levers.jsonl", run, lambda line: print(line, flush=True), about)
    found["command"] = "python benchmarks/levers.py DATA_FOLDER --work FOLDER, and again with --encoder TRUNK"
    found["machine"] = machine()
    found["train_rows"] = ROWS
    side, done = "adapted" if options.encoder else "published", {(row["task"], row["lever"]) for row in rows}
    others = [row for row in found["trunks"].get(side, ()) if (row["task"], row["lever"]) not in done]
    found["trunks"][side] = [*others, *rows]
    write_json(options.out, found)
    write_page(options.out, options.page)


class Taught:
    """A task, and what its full model says: trained as a stage of the project, once."""

    def __init__(self, bench: Bench, task: str) -> None:
        self.task, self._bench = task, bench

    @cached_property
    def _model(self) -> tuple[Branch, Encoder]:
        alone = self._bench.alone(self.task)
        [stage] = alone.graph.of(self.task, StageKind.FULL)
        alone.train([stage.id], show=Silent())
        folder = alone.store.get(alone.graph.keys[stage.id]).folder
        encoder = Encoder.load(folder / ENCODER)
        return load_branch(folder / BRANCH, encoder), encoder

    def logits(self, material: TaskMaterial) -> Any:
        """Of the train rows, in order."""
        return logits_of(material, *self._model, material.data.train)

    def states(self, material: TaskMaterial) -> dict[int, Tensor]:
        """The last states of every train row, (T, H) each."""
        _, encoder = self._model
        examples = material.examples(FIT, reading_of(material))
        found = {}
        with torch.no_grad():
            for rows in np.array_split(material.data.train, max(1, len(material.data.train) // 64)):
                [batch] = examples.token_batches(rows, encoder)
                last = encoder.hidden_states(batch)[-1]
                for row, states, mask in zip(rows, last, batch.mask, strict=True):
                    found[int(row)] = states[: int(mask.sum())]
        return found


class OverAll(OverStates):
    """A branch whose last layer runs for all tokens, though its head reads [CLS]: its states are compared."""

    def forward(self, rows: BatchRows) -> Tensor:
        logits: Tensor = self.branch(self._encoder[0], *self.read(rows))
        return logits


class Mixed(nn.Module):
    """A branch over a learned mix of the states at the fork and at depths below it (as ELMo, Peters et al. 2018)."""

    def __init__(self, material: TaskMaterial, branch: Branch, weights: nn.Parameter, pool: str) -> None:
        super().__init__()
        self.branch, self.weights = branch, weights
        self._encoder = [material.trunk.encoder]
        fork, reading = branch.spec.fork, branch.spec.reading
        self._depths = [material.states(pool, reading, fork + 1 - len(weights) + i) for i in range(len(weights))]

    def forward(self, rows: BatchRows) -> Tensor:
        shares = torch.softmax(self.weights, dim=0)
        states, masks = [], []
        for slots in zip(*self._depths, strict=True):
            read = [slot.batch(rows) for slot in slots]
            states.append(torch.stack([share * one for share, (one, _) in zip(shares, read, strict=True)]).sum(0))
            masks.append(read[0][1])
        logits: Tensor = self.branch(self._encoder[0], states, masks)
        return logits


def reading_of(material: TaskMaterial) -> Reading:
    """Pairs are read jointly."""
    return Reading.SINGLE if material.data.fit.pairs is None else Reading.JOINT


def trained(bench: Bench, taught: Taught, recipe: Recipe, seed: int) -> Trained:
    """The branch of a recipe with its metrics."""
    material = bench.material(taught.task, recipe.pooling)
    epochs = material.settings.tune.epochs * recipe.longer
    if recipe.extra:
        material = extended(material, recipe.extra, taught, seed)
        epochs /= 2  # as many steps as without
    torch.manual_seed(seed)
    spec = material.spec(reading_of(material), recipe.fork, recipe.layers)
    if recipe.latents:
        few = {"latents": recipe.latents, "crossing": recipe.crossing, "pooling": Pooling.LATENTS}
        spec = spec.model_copy(update=few)
    branch = new_branch(spec, material.trunk.encoder, random=recipe.random)
    weights = nn.Parameter(torch.tensor([0.0] * (recipe.mixed - 1) + [2.0]))

    def module(pool: str) -> nn.Module:
        if recipe.mixed > 1:
            return Mixed(material, branch, weights, pool)
        return (OverAll if recipe.hidden or recipe.relation else OverStates)(material, branch, pool)

    loss = gold(material, branch)
    if recipe.taught:
        teaching = Teaching(recipe.temperature, recipe.gold_weight)
        loss = distilled(material, branch, [taught.logits(material)], teaching)
    if recipe.hidden or recipe.hidden_cls or recipe.relation:
        loss = with_states(loss, branch, taught.states(material), recipe)
    schedule = bench.schedule(material, seed, epochs=epochs)
    return train(material, branch, module, schedule, bench.checkpoint(), lambda _: None, loss)


def with_states(loss: SoftLoss, branch: Branch, aims: dict[int, Tensor], recipe: Recipe) -> SoftLoss:
    """A loss with those against the teacher's last states beside it."""
    seen: list[Tensor] = []
    branch.head.register_forward_pre_hook(lambda _, given: seen.__setitem__(slice(None), given[0][:1]))

    def both(rows: BatchRows, logits: Tensor, targets: Tensor) -> Tensor:
        states = seen[0].float()  # (B, T, H), or (B, 1, H) where [CLS] alone is compared
        wanted = nn.utils.rnn.pad_sequence([aims[int(row)] for row in rows], batch_first=True)  # (B, T' <= T, H)
        if recipe.hidden_cls and not (recipe.hidden or recipe.relation):
            return loss(rows, logits, targets) + recipe.hidden_cls * (states[:, 0] - wanted[:, 0]).square().mean()
        states = states[:, : wanted.shape[1]]
        mask = torch.stack([torch.arange(wanted.shape[1]) < len(aims[int(row)]) for row in rows])  # (B, T')
        total = loss(rows, logits, targets)
        total = total + recipe.hidden * (states - wanted).square().mean(-1)[mask].mean()
        return total + recipe.relation * relations(states, wanted, mask) if recipe.relation else total

    return both


def relations(states: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Divergence of how tokens relate, each to all, in the parts of two sets of states (B, T, H): MiniLM's value
    relation (Wang et al. 2020, section 3.2), of last states in place of values.
    """

    def of(values: Tensor) -> Tensor:
        parts = values.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (B, heads, T, H / heads)
        scores = parts @ parts.transpose(-1, -2) / parts.shape[-1] ** 0.5
        return scores.masked_fill(~mask[:, None, None, :], -1e4).log_softmax(-1)

    each = F.kl_div(of(states), of(wanted), log_target=True, reduction="none").sum(-1)  # (B, heads, T)
    return each.mean(1)[mask].mean()


def extended(material: TaskMaterial, how: str, taught: Taught, seed: int) -> TaskMaterial:
    """The material with as many rows again of text that nobody labelled; the teacher's answer stands as their label."""
    data, rng = material.data, np.random.default_rng(seed)
    rows = data.fit.take(data.train)
    if how == "recombined" and rows.pairs is not None:
        extra = replace(rows, pairs=[rows.pairs[i] for i in rng.permutation(len(rows))])
    elif how == "recombined":
        words = [text.split() for text in rows.texts]
        order = rng.permutation(len(rows))
        halves = [(words[i][: len(words[i]) // 2], words[j][len(words[j]) // 2 :]) for i, j in enumerate(order)]
        extra = replace(rows, texts=[" ".join(head + tail) for head, tail in halves])
    else:
        pool = " ".join(rows.texts).split()

        def masked(text: str) -> str:
            drawn = rng.integers(len(pool), size=len(text.split()))
            kept = rng.random(len(drawn)) >= REPLACED
            return " ".join(w if k else pool[d] for w, k, d in zip(text.split(), kept, drawn, strict=True))

        pairs = None if rows.pairs is None else [masked(text) for text in rows.pairs]
        extra = replace(rows, texts=[masked(text) for text in rows.texts], pairs=pairs)
    start = len(data.fit)
    more = np.arange(start, start + len(extra))

    def whole(added: TaskData) -> TaskMaterial:
        return replace(material, data=added, _examples={})

    fit = data.fit + extra
    logits = taught.logits(whole(replace(data, fit=fit, train=more)))
    labels = (
        [float(value[0]) for value in logits]
        if material.kind is Kind.REGRESSION
        else [data.labels[int(np.argmax(value))] for value in logits]
    )
    fit = data.fit + replace(extra, targets=labels)
    return whole(replace(data, fit=fit, train=np.concatenate([data.train, more])))


if __name__ == "__main__":
    main()

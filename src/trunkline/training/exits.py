"""Exits of a finished branch, taught by the branch itself, whose own weights stay as they are.

All exits that there may be learn side by side what the head says of the train rows, labels unused (self-distillation:
Liu et al. 2020, FastBERT, section 3.2.2). Knows a branch and its material; nothing of stages, nor of which exits are
kept.

Notation: B rows, T tokens, H width, C outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from trunkline.atomic import write_bytes
from trunkline.model.branch import Branch, BranchSpec, Reading, in_unit, may_exit
from trunkline.model.exits import Form, new_exit
from trunkline.model.tokens import TokenBatch
from trunkline.model.trunk import Trunk
from trunkline.project.tasks import Kind
from trunkline.training.candidates import Report
from trunkline.training.leaving import Place
from trunkline.training.loop import BatchRows, Epochs, Outcome, Schedule, by_length, fit
from trunkline.training.losses import exit_loss
from trunkline.training.material import FIT, UNLABELLED, TaskMaterial
from trunkline.training.states import TOKENS_PER_PASS, at_forks


class Lengthened(Trunk):
    """A trunk with the own layers of a finished branch above its fork, all but the last."""

    def __init__(self, trunk: Trunk, branch: Branch) -> None:
        super().__init__(trunk.encoder, _digest(trunk.fingerprint, branch))
        self._branch = [branch]  # in a list: its weights are the branch's, and stay what they are

    def states(self, batch: TokenBatch, forks: Iterable[int]) -> dict[int, Tensor]:
        """The states (B, T, H) at these depths, each layer run at most once."""
        [branch], wanted = self._branch, set(forks)
        fork = branch.spec.fork
        above = {depth for depth in wanted if depth > fork}
        found = super().states(batch, wanted - above | ({fork} if above else set()))
        if above:
            with torch.no_grad():
                own = islice(branch.own_states(self.encoder, found[fork], batch.mask), max(above) - fork)
                found |= dict(enumerate(own, fork + 1))
        return {depth: found[depth] for depth in wanted}


def _digest(fingerprint: str, branch: Branch) -> str:
    """Identifies a trunk with the own layers of this branch."""
    sha = hashlib.sha256(f"{fingerprint} {branch.spec.fork}".encode())
    for name, weight in branch.layers.state_dict().items():
        sha.update(name.encode() + weight.cpu().numpy().tobytes())
    return sha.hexdigest()


class OnTheWay:
    """A finished branch over the states of one pool. Called with row numbers it gives ({depth: states (B, T, H)}, mask
    (B, T), the head's logits): states at `depths` at least. States between own layers are cached as the trunk's are.
    """

    def __init__(self, material: TaskMaterial, branch: Branch, depths: Collection[int], pool: str) -> None:
        spec = branch.spec
        self._encoder = material.trunk.encoder
        self._end = branch.end() if any(depth > spec.fork for depth in depths) else branch
        wanted = {self._end.spec.fork, *depths}
        above = {depth for depth in wanted if depth > spec.fork}
        [self._states] = material.states_at(pool, spec.reading, wanted - above)
        if above:
            [found] = material.states_at(pool, spec.reading, above, Lengthened(material.trunk, branch))
            self._states = {**self._states, **found}

    @torch.no_grad()
    def __call__(self, rows: BatchRows) -> tuple[dict[int, Tensor], Tensor, Tensor]:
        device = next(self._end.parameters()).device
        read, mask = at_forks(self._states, rows)
        states, mask = {depth: values.to(device) for depth, values in read.items()}, mask.to(device)
        return states, mask, self._end(self._encoder, [states[self._end.spec.fork]], [mask])


class Exits(nn.Module):
    """Exits at all of these places, side by side."""

    def __init__(self, spec: BranchSpec, places: Sequence[Place]) -> None:
        super().__init__()
        self._spec, self.places = spec, tuple(places)
        tokens = spec.kind is Kind.TAGGING
        self.made = nn.ModuleDict(
            {_name(place): new_exit(place[1], spec.width, spec.outputs, tokens=tokens) for place in places}
        )

    def forward(self, states: dict[int, Tensor], mask: Tensor, places: Sequence[Place] | None = None) -> list[Tensor]:
        """Logits as a head gives them, of the exits at these places or at all, from states by depth."""
        asked = self.places if places is None else places
        return [in_unit(self._spec, self.at(place)(states[place[0]], mask)) for place in asked]

    def at(self, place: Place) -> nn.Module:
        """The exit at this place."""
        return self.made[_name(place)]


def _name(place: Place) -> str:
    depth, form = place
    return f"{form}-{depth}"


def _place(name: str) -> Place:
    form, depth = name.rsplit("-", 1)
    return int(depth), Form(form)


def train_exits(
    material: TaskMaterial,
    branch: Branch,
    schedule: Schedule,
    checkpoint: Path,
    report: Report,
    *,
    forms: Sequence[Form],
    depths: Sequence[int],
) -> tuple[Exits, Outcome] | None:
    """Exits of each of these forms for `branch`, and how their training went; None where the branch can have none.

    `depths` are where exits shall stand, none given: wherever they may. Those at which this branch can have none are
    left out, and said.
    """
    spec = branch.spec
    allowed = may_exit(spec)
    misfits = [depth for depth in depths if depth not in allowed]
    if misfits or not allowed:
        material.say(f"{spec.task}: {_left_out(spec, misfits)}")
    places = [(depth, form) for depth in (depths or allowed) if depth in allowed for form in forms]
    return _train(material, branch.eval(), places, schedule, checkpoint, report) if places else None


def save_exits(exits: Exits, path: Path) -> None:
    """Write one safetensors file."""
    write_bytes(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in exits.state_dict().items()}))


def load_exits(path: Path, spec: BranchSpec) -> Exits:
    """Exits of a branch, as `save_exits` wrote them."""
    weights = load_file(path)
    exits = Exits(spec, sorted({_place(name.split(".")[1]) for name in weights}))
    exits.load_state_dict(weights)
    return exits


def _left_out(spec: BranchSpec, misfits: Sequence[int]) -> str:
    what = f"no exit after layer {', '.join(map(str, misfits))}" if misfits else "no exits"
    if spec.reading is Reading.SEPARATE:
        return f"{what}: the chosen branch reads two texts apart, and nothing before its head knows both"
    allowed = may_exit(spec)
    where = "has no layer to have them after"
    if allowed:
        most = f" to {allowed[-1]}" if len(allowed) > 1 else ""
        where = f"can have them after layer {allowed[0]}{most}"
    return f"{what}: the chosen branch (fork {spec.fork}, {spec.layers} of its own) {where}"


def _train(
    material: TaskMaterial,
    branch: Branch,
    places: Sequence[Place],
    schedule: Schedule,
    checkpoint: Path,
    report: Report,
) -> tuple[Exits, Outcome]:
    torch.manual_seed(schedule.seed)
    spec = branch.spec
    exits = Exits(spec, places).to(schedule.device)
    pools = {FIT: material.data.train}
    if material.unlabelled is not None:
        pools[UNLABELLED] = np.arange(len(material.unlabelled))
    ways = {pool: OnTheWay(material, branch, {depth for depth, _ in places}, pool) for pool in pools}
    of = {pool: material.examples(pool, spec.reading) for pool in pools}
    valid = material.data.valid

    def losses(pool: str, batch: BatchRows) -> tuple[Tensor, Tensor]:
        """Mean loss of each exit, and how many predictions that is the mean of."""
        states, mask, head = ways[pool](batch)
        keep = of[pool].counted(batch, mask.shape[1]).to(head.device)
        found = [exit_loss(spec.kind, logits, head, keep=keep, std=spec.std) for logits in exits(states, mask)]
        return torch.stack(found), keep.sum()

    def mean(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        found, counts = (torch.stack(each) for each in zip(*batches, strict=True))  # (batches, exits), (batches,)
        shares = counts / counts.sum().clamp(min=1)
        mean: Tensor = (found * shares[:, None]).sum(0)
        return mean

    @torch.no_grad()
    def held_out() -> float:
        batches = by_length(of[FIT].lengths[valid], TOKENS_PER_PASS)
        return -float(mean(losses(FIT, valid[picks]) for picks in batches).mean())

    # Rows of all pools count through: those of the first, then those of the next.
    starts = np.cumsum([0, *map(len, pools.values())])
    lengths = np.concatenate([of[pool].lengths[rows] for pool, rows in pools.items()])

    def loss(batch: np.ndarray) -> Tensor:
        pool_of = np.searchsorted(starts, batch, side="right") - 1
        mine = [(pool, rows[batch[pool_of == i] - starts[i]]) for i, (pool, rows) in enumerate(pools.items())]
        return mean(losses(pool, rows) for pool, rows in mine if len(rows)).sum()

    outcome = fit(
        exits,
        steps=schedule.steps(len(lengths)),
        batch=Epochs(np.arange(len(lengths)), lengths, schedule.batch_size, schedule.seed),
        loss=loss,
        evaluate=held_out,
        schedule=schedule,
        checkpoint=checkpoint,
        report=report,
    )
    return exits, outcome
